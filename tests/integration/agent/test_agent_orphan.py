"""What an agent does about a supervisor that says nothing any more."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.orphan import close_orphaned_log, end_supervisor, ended_within
from agent.supervisor.client import SupervisorClient
from agent.supervisor.reading import SpoolReader
from agent.supervisor.records import Kind
from agent.supervisor.results import SupervisorSettings
from agent.supervisor.spool import Spool, SpoolFull


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


@pytest.mark.parametrize("kind", [Kind.FRAME, Kind.CLOSED])
def test_a_spool_that_is_full_is_closed_without_the_marker(tmp_path: Path, kind: Kind) -> None:
    """A job that filled its spool, or even its reserve, and lost its supervisor has to be settled all the same."""
    limit = 64 << 10
    full = Spool(tmp_path, limit)
    with contextlib.suppress(SpoolFull):
        while True:
            full.append(kind, b'{"result": "x"}', time_ms=1, section=1, raw_length=1)
    full.close()
    offset = close_orphaned_log(tmp_path, "it died", SystemClock(), limit=limit).offset
    again = Spool(tmp_path, limit)
    again.close()
    assert offset == again.offset == full.offset
    assert full.sequence <= again.sequence <= full.sequence + 4


def test_the_end_of_an_orphaned_log_keeps_to_what_the_coordinator_takes(tmp_path: Path) -> None:
    """A sentence may quote what a job said, at any length: a record that is refused would lose all of the log."""
    spool = Spool(tmp_path, 1 << 20)
    spool.append(Kind.OPENED, b"{}", time_ms=1, section=1)
    spool.close()
    close_orphaned_log(tmp_path, "no " * 1000, SystemClock())
    closed = next(record for record in SpoolReader(tmp_path).read(1) if record.kind is Kind.CLOSED)
    result = closed.facts()["result"]
    assert (len(result), result[-1]) == (1000, "…")


def runs(pid: int) -> bool:
    """Whether it is there and more than a zombie that nobody has collected yet."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
