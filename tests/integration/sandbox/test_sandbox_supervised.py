"""Sandboxes under the real supervisor: what the two promise each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from agent.problems import Cause
from agent.sandbox.host import Host
from agent.sandbox.protocol import Limits, Prepared, SandboxRequest
from agent.supervisor.client import SupervisorClient
from agent.supervisor.reading import SpoolReader
from agent.supervisor.records import Kind
from agent.supervisor.results import Step, StepResult, SupervisorSettings
from headrace.pipeline.plan import Network
from tests.harness.sandbox_world import BWRAP_AGENT, SLOT, World, cgroups

pytestmark = [pytest.mark.root, pytest.mark.docker]


@dataclass
class Supervised:
    """A sandbox and its supervisor."""

    client: SupervisorClient
    prepared: Prepared

    async def step(self, number: int, script: str, shell: str = "sh") -> StepResult:
        """Runs one step in the workspace."""
        return await self.client.step(
            Step(number, script, script, shell, self.prepared.workspace, self.prepared.env, grace_ms=500)
        )

    def log(self) -> bytes:
        """All that is in the spool."""
        records = SpoolReader(self.client.folder / "priv").read(1)
        frames = [record.payload for record in records if record.kind is Kind.FRAME]
        return b"".join(zstandard.ZstdDecompressor().decompress(frame, 1 << 20) for frame in frames)


@pytest.fixture
async def supervised(world: World) -> AsyncIterator[Supervised]:
    """A started sandbox with 96 MiB, without network."""
    base = world.folder / "101"
    workspace = base / "w"
    workspace.mkdir(parents=True)
    folder = base / "a"
    client = await SupervisorClient.start(folder, 101, settings=SupervisorSettings())
    limits = Limits(memory=96 << 20, pids=100)
    request = SandboxRequest(101, world.agent, 0, folder, workspace, Network.NONE, world.image, limits)
    prepared = await world.sandbox.prepare(request)
    await client.launch(prepared.launch, cgroups=prepared.cgroups)
    yield Supervised(client, prepared)
    await client.kill()
    await client.end()
    await client.leave()
    await world.sandbox.remove(101)


async def test_the_host_sandbox_runs_the_same_steps_and_leaves_nothing(tmp_path: Path) -> None:
    """Where an agent allows it: no walls, but the same protocol, and the cgroup ends what is left."""
    agent = f"{BWRAP_AGENT}-host"
    sandbox = Host(slot=SLOT, environ={"PATH": "/usr/bin:/bin", "TOKEN": "secret"}, env={}, cgroups=cgroups(agent))
    (tmp_path / "w").mkdir()
    client = await SupervisorClient.start(tmp_path / "a", 7, settings=SupervisorSettings())
    request = SandboxRequest(7, agent, 0, tmp_path / "a", tmp_path / "w", Network.FULL)
    prepared = await sandbox.prepare(request)
    await client.launch(prepared.launch, cgroups=prepared.cgroups)
    job = Supervised(client, prepared)
    result = await job.step(0, "pwd; env; setsid sleep 1000 >/dev/null 2>&1 & sleep 0.1")
    assert (result.exit_code, result.cause) == (0, None), result.sentence
    left = [pid for folder in prepared.cgroups for pid in (folder / "cgroup.procs").read_text().split()]
    await client.end()
    await client.leave()
    assert str(tmp_path / "w").encode() in job.log()
    assert b"secret" not in job.log()
    await sandbox.remove(7)
    assert left
    assert not any(folder.exists() for folder in prepared.cgroups)
    for pid in left:
        assert not Path(f"/proc/{pid}/root").exists()


async def test_steps_run_and_their_output_is_spooled(supervised: Supervised) -> None:
    """The shared promise: folder, control script, FIFOs, pid proof, cgroups."""
    first = await supervised.step(0, "echo hello from $(pwd); exit 3")
    assert (first.exit_code, first.cause) == (3, Cause.STEP_FAILED)
    second = await supervised.step(1, "print('python', 6 * 7)", "python")
    assert (second.exit_code, second.cause) == (0, None), second.sentence
    await supervised.client.end()
    assert b"hello from /workspace" in supervised.log()
    assert b"python 42" in supervised.log()


async def test_an_out_of_memory_kill_is_told_from_a_failed_command(supervised: Supervised) -> None:
    """By the cgroup that the sandbox names, at its own limit."""
    killed = await supervised.step(0, "python3 -c 'x = bytearray(300 << 20)'")
    assert killed.cause is Cause.OOM, killed.sentence
    plain = await supervised.step(1, "exit 137")
    assert plain.cause is Cause.STEP_FAILED


async def test_a_supervisors_end_leaves_no_process(supervised: Supervised, world: World) -> None:
    """Ended by pidfd: the whole pid namespace, whatever the step left behind."""
    await supervised.step(0, "sleep 1000 >/dev/null 2>&1 &")
    state = await supervised.client.state()
    assert Path(f"/proc/{state.pid}").exists()
    await supervised.client.end()
    assert not Path(f"/proc/{state.pid}/root").exists()
