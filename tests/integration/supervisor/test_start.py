"""An agent that is killed while it starts a supervisor: the next one finds it, or begins as if nothing had been."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.supervisor.client import SupervisorClient
from agent.supervisor.results import SupervisorSettings
from tests.integration.supervisor.conftest import Held, Starter, descendants, plain, when_dead

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
    named = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (each / "cmdline").read_bytes()
            if str(folder).encode() in line and b"main.py" in line:
                named.append(int(each.name))
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


async def test_a_sandbox_that_is_being_launched_is_waited_for_by_the_next_agent(start: Starter) -> None:
    """Whoever asked for it was killed; a step that is asked for too early fails the job."""
    first = await start()
    go = first.folder / "go"
    launch = plain(first.folder)
    slow = f'while [ ! -e {go} ]; do sleep 0.01; done; exec "$@"'
    asking = asyncio.create_task(first.client.launch(replace(launch, argv=("sh", "-c", slow, "sh", *launch.argv))))
    while (await first.client.state()).phase == "idle":
        pass
    await first.client.close()
    await asyncio.gather(asking, return_exceptions=True)
    found = await SupervisorClient.find(first.folder)
    assert found is not None
    second = Held(first.folder, found)
    assert (await found.state()).phase == "launched"
    waiting = asyncio.create_task(found.launched())
    go.touch()
    await waiting
    assert (await second.run("echo well")).exit_code == 0
    await found.launched()  # asked again: nothing more
    await found.end()
    await found.close()
