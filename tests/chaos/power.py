"""A machine that loses its power: all its processes are gone at once, and so is all but what is on its disk."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from agent.sandbox import names
from tests.chaos.engine import Engine, kill_all, unmount
from tests.integration.coordinator.processes import Daemon


def instance_of(agent: Daemon) -> str:
    """The id that all that it makes bears."""
    return (agent.folder / "instance").read_text().strip()


def power_off(agent: Daemon, engine: Engine | None = None) -> None:
    """The machine of this agent, and of the engine that it uses: agent, supervisors, guards and sandboxes, dockerd and
    its containers. Gone are /run, network namespaces, interfaces, cgroups and mounts, as after a boot; firewall rules
    stay, as on a machine that keeps them.
    """
    instance = instance_of(agent)
    agent.process.kill()
    kill_all(str(agent.folder), instance)
    agent.process.wait()
    unmount(agent.folder)
    if engine is not None:
        engine.power_off()
    _forget_network(instance)
    shutil.rmtree(Path("/run/headrace") / instance, ignore_errors=True)
    for root in Path("/sys/fs/cgroup").glob(f"**/headrace/{instance}"):
        for group in sorted(root.glob("**/"), reverse=True):
            group.rmdir()


def left_of(agent: Daemon) -> list[str]:
    """What the kernel and the disk still have of jobs of this agent, while the agent itself lives."""
    instance = instance_of(agent)
    tag = names.agent_tag(instance)
    rules = [
        line
        for tables in ("iptables-save", "ip6tables-save")
        for line in subprocess.run([tables], capture_output=True, text=True, check=True).stdout.splitlines()
        if instance in line
    ]
    return [
        *rules,
        *(file.name for file in Path("/run/netns").glob(f"headrace-{tag}-*")),
        *(file.name for file in Path("/sys/class/net").glob(f"{names.PREFIX}{tag}*")),
        *(str(file) for file in (agent.folder / "workspaces").iterdir()),
    ]


def _forget_network(instance: str) -> None:
    tag = names.agent_tag(instance)
    for space in Path("/run/netns").glob(f"headrace-{tag}-*"):
        subprocess.run(["ip", "netns", "delete", space.name], check=True)
    for interface in Path("/sys/class/net").glob(f"{names.PREFIX}{tag}*"):
        subprocess.run(["ip", "link", "delete", interface.name], check=False)
