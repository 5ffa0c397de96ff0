"""Limits, and what is left of a sandbox when it is over: nothing, also after a crash of whoever made it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import docker
import pytest

from agent.problems import Cause, JobProblem
from agent.sandbox import names
from agent.sandbox.protocol import Limits
from headrace.pipeline.plan import Network, SandboxKind
from tests.harness.sandbox_world import DOCKER_AGENT, World

pytestmark = [pytest.mark.root, pytest.mark.docker]

MEGABYTE = 1 << 20


def control_file(folders: tuple[Path, ...], name: str) -> Path:
    """The file of that name in whichever folder has it."""
    return next(folder / name for folder in folders if (folder / name).exists())


def counter(folders: tuple[Path, ...], file: str, key: str) -> int:
    """A `key number` line of a cgroup file."""
    fields = dict(line.split() for line in control_file(folders, file).read_text().splitlines())
    return int(fields[key])


def ended(pid: int) -> bool:
    """Whether a process is gone, or at least dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def traces(world: World) -> list[str]:
    """Whatever bears the agent's name on this machine."""
    found = []
    for family in ("iptables", "ip6tables"):
        saved = subprocess.run([f"{family}-save"], capture_output=True, text=True, check=True).stdout
        found += [line for line in saved.splitlines() if world.agent in line]
        found += [line for line in saved.splitlines() if f"HR-hr{names.agent_tag(world.agent)}" in line]
    tag = names.agent_tag(world.agent)
    found += [link.name for link in Path("/sys/class/net").iterdir() if link.name.startswith(f"hr{tag}")]
    found += [space.name for space in Path("/run/netns").glob(f"*{tag}*")]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if tag in line]
    found += [str(folder) for folder in Path("/sys/fs/cgroup").glob(f"*/headrace/{world.agent}")]
    return found


async def test_memory_is_limited_and_the_kill_is_counted(world: World) -> None:
    """The kernel enforces the limit, on the child that takes too much; the sandbox goes on and the cgroup tells."""
    job = await world.start(limits=Limits(memory=96 * MEGABYTE))
    folders = job.prepared.cgroups
    name, key = "memory.oom_control", "oom_kill"
    before = counter(folders, name, key)
    ran = await job.run("python3 -c 'x = bytearray(200 << 20)'")
    assert ran.code == 137
    assert counter(folders, name, key) == before + 1
    assert (await job.run("python3 -c 'x = bytearray(20 << 20)'")).code == 0


async def test_processes_are_limited(world: World) -> None:
    """A fork bomb ends at the limit, and the next step runs."""
    job = await world.start(limits=Limits(pids=40))
    ran = await job.run("for i in $(seq 100); do sleep 3 & done; wait")
    assert ran.code != 0
    assert counter(job.prepared.cgroups, "pids.events", "max") > 0
    await job.run("kill -9 -1")
    assert (await job.run("sleep 0; echo again")).out == "again\n"


async def test_a_job_gets_no_more_than_its_slots_share(world: World) -> None:
    """What a job asks for above the slot's share would be taken from its neighbours."""
    job = await world.start(limits=Limits(memory=1 << 40))
    assert int(control_file(job.prepared.cgroups, "memory.limit_in_bytes").read_text()) == 1 << 30


@pytest.mark.parametrize("network", [Network.NONE, Network.FULL])
async def test_nothing_is_left_of_a_removed_sandbox(world: World, network: Network) -> None:
    """No process, cgroup, interface, namespace, mount, rule, container, network or volume."""
    job = await world.start(network)
    await job.run("sleep 1000 >/dev/null 2>&1 &")
    assert traces(world) or (world.sandbox.kind is SandboxKind.DOCKER and network is Network.NONE)
    pid = job.pid
    await world.end(job)
    assert traces(world) == []
    assert ended(pid)


async def test_removing_twice_is_no_mistake(world: World) -> None:
    """An agent that died in the middle of a removal begins anew."""
    job = await world.start(Network.FULL)
    await world.end(job)
    await world.sandbox.remove(101)
    await world.sandbox.remove(102)


async def test_a_sweep_removes_what_a_crash_left_and_keeps_what_goes_on(world: World) -> None:
    """The next agent process knows which attempts it still has; all else of its id goes, even while it runs."""
    kept, lost = await world.start(Network.FULL), await world.start(Network.FULL)
    await world.sandbox.sweep(frozenset({101}))
    assert (await kept.run("echo kept")).out == "kept\n"
    assert not any(f"{world.agent}:102" in line for line in traces(world))
    assert ended(lost.pid)
    await world.end(kept)
    await world.end(lost)
    assert traces(world) == []


async def test_the_engine_keeps_nothing_either(docker_world: World, engine_url: str) -> None:
    """Containers, networks and volumes are counted at the engine itself."""
    client = docker.APIClient(base_url=engine_url, version="auto")

    def held() -> tuple[int, int, int]:
        containers = client.containers(all=True, filters={"label": f"headrace.agent={DOCKER_AGENT}"})
        networks = client.networks(filters={"label": f"headrace.agent={DOCKER_AGENT}"})
        return len(containers), len(networks), len(client.volumes()["Volumes"] or ())

    try:
        before = held()
        job = await docker_world.start(Network.FULL)
        assert held() == (before[0] + 1, before[1] + 1, before[2])
        await docker_world.end(job)
        assert held() == before
    finally:
        client.close()


async def test_an_image_that_does_not_exist_is_named_in_one_sentence(docker_world: World) -> None:
    """A mistyped image is the most common mistake of all."""
    request = docker_world.request(image="localhost:1/no-such/image:1.0")
    with pytest.raises(JobProblem) as caught:
        await docker_world.sandbox.prepare(request)
    assert caught.value.cause is Cause.IMAGE_UNAVAILABLE
    assert "localhost:1/no-such/image:1.0" in caught.value.sentence
    assert "\n" not in caught.value.sentence
