"""An agent that is killed while it starts a supervisor: the next one finds it, or begins as if nothing had been."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from agent.supervisor.client import SupervisorClient
from agent.supervisor.results import SupervisorSettings
from tests.integration.supervisor.conftest import descendants, when_dead

DIES = """
import asyncio, os, signal, sys
from pathlib import Path
from agent.supervisor import client

spawn = asyncio.create_subprocess_exec

async def spawn_and_die(*words, **options):
    process = await spawn(*words, **options)
    if sys.argv[2] == "later":
        await process.wait()
    print(process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.create_subprocess_exec = spawn_and_die
asyncio.run(client.SupervisorClient.start(Path(sys.argv[1]), 1, settings=client.SupervisorSettings()))
"""
ROOT = Path(__file__).resolve().parents[3]


def supervisors(folder: Path) -> list[int]:
    """Those of the attempt; guards left out."""
    named = [
        int(each.name)
        for each in Path("/proc").glob("[0-9]*")
        if str(folder).encode() in (each / "cmdline").read_bytes() and b"main.py" in (each / "cmdline").read_bytes()
    ]
    return [pid for pid in named if not any(pid in descendants(other) for other in named if other != pid)]


@pytest.mark.parametrize("dead", ["at once", "later"])
async def test_an_agent_that_is_killed_while_it_starts_a_supervisor_is_no_harm_to_the_job(
    folder: Path, dead: str
) -> None:
    """Else the job has erred, and a deployment that never began has failed."""
    folder.mkdir(mode=0o700)
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", DIES, str(folder), dead, cwd=ROOT)
    assert await agent.wait() == -signal.SIGKILL
    settings = SupervisorSettings()
    client = await SupervisorClient.find(folder) or await SupervisorClient.start(folder, 1, settings=settings)
    try:
        assert (await client.state()).phase == "idle"
        assert supervisors(folder) == [client.pid]
    finally:
        await client.end()
        await client.leave()


async def test_a_supervisor_that_died_before_anything_was_launched_is_replaced(folder: Path) -> None:
    """Its agent had not yet written down that there is one: the job has not begun."""
    folder.mkdir(mode=0o700)
    first = await SupervisorClient.start(folder, 1, settings=SupervisorSettings())
    dead = when_dead(first.pid)
    os.kill(first.pid, signal.SIGKILL)
    await dead
    await first.close()
    assert await SupervisorClient.find(folder) is None
    second = await SupervisorClient.start(folder, 1, settings=SupervisorSettings())
    assert second.pid != first.pid
    await second.end()
    await second.leave()
