"""What an agent does about a supervisor that says nothing any more."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from agent.orphan import end_supervisor, ended_within
from agent.supervisor.client import SupervisorClient
from agent.supervisor.results import SupervisorSettings


async def test_the_wait_for_a_sandbox_has_an_end(short_path: Path) -> None:
    """A sandbox that cannot be ended, or a keeper that is frozen, must not hold a slot for ever."""
    client = await SupervisorClient.start(short_path / "A", 1, settings=SupervisorSettings())
    try:
        assert await ended_within(client, 5)
        os.kill(client.pid, signal.SIGSTOP)
        assert not await ended_within(client, 0.2)
    finally:
        end_supervisor(short_path / "A")
        await client.close()


async def test_a_frozen_supervisor_is_proved_and_ended(short_path: Path) -> None:
    """It is asked of the kernel who it is: a number from a file could be another process by now."""
    folder = short_path / "A"
    end_supervisor(folder)
    client = await SupervisorClient.start(folder, 1, settings=SupervisorSettings())
    os.kill(client.pid, signal.SIGSTOP)
    end_supervisor(folder)
    assert not runs(client.pid)
    await client.close()
    assert await SupervisorClient.find(folder) is None


def runs(pid: int) -> bool:
    """Whether it is there and more than a zombie that nobody has collected yet."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
