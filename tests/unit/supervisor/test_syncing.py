"""The disk's time is not the supervisor's."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

from agent.supervisor.loop import Loop
from agent.supervisor.records import Kind
from agent.supervisor.spool import Spool
from agent.supervisor.syncing import Syncing
from tests.harness.faulty_disk import FaultyDisk


class SlowDisk(FaultyDisk):
    """One that hangs in its syncs until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def sync(self, file: int) -> None:
        """Hangs."""
        self.go_on.wait()
        super().sync(file)


def rounds(loop: Loop, syncing: Syncing, until_synced: int, most: int = 200) -> int:
    """Runs the loop until so much is durable; returns how many rounds it went."""
    done = 0

    def tick() -> int | None:
        nonlocal done
        done += 1
        due = syncing.tick(done * 10)
        if syncing.spool.synced.sequence >= until_synced or syncing.spool.broken or done >= most:
            loop.stop()
        return 5 if due is None else min(due, 5)

    loop.run(tick)
    return done


def test_a_disk_that_hangs_in_a_sync_holds_up_nothing_but_what_is_said_of_the_log(tmp_path: Path) -> None:
    """A deployment has to end at its deadline, whatever the disk does; and nothing is told that is not kept."""
    disk, loop = SlowDisk(), Loop()
    spool = Spool(tmp_path, disk=disk)
    syncing = Syncing(loop, spool)
    spool.append(Kind.FRAME, b"x", time_ms=1, section=1, raw_length=1)
    assert rounds(loop, syncing, 1, most=20) == 20
    spool.append(Kind.FRAME, b"y", time_ms=1, section=1, raw_length=1)
    assert spool.synced.sequence == 0
    disk.go_on.set()
    rounds(loop, syncing, 2)
    assert (spool.synced.sequence, spool.synced.offset) == (2, 2)
    syncing.close()
    spool.close()


def test_a_sync_that_fails_is_not_begun_again(tmp_path: Path) -> None:
    """The second one would say that all is well."""
    disk, loop = FaultyDisk(), Loop()
    spool = Spool(tmp_path, disk=disk)
    syncing = Syncing(loop, spool)
    spool.append(Kind.FRAME, b"x", time_ms=1, section=1, raw_length=1)
    disk.fails = {"sync": errno.EIO}
    rounds(loop, syncing, 1)
    disk.fails = {}
    assert spool.broken == "the log on the agent's disk could not be synced: Input/output error"
    assert syncing.tick(10_000) is None
    assert len(disk.calls) == 1
    syncing.close()
    spool.close()


def test_a_slow_disk_is_left_to_the_jobs_most_of_the_time_and_an_outcome_does_not_wait(tmp_path: Path) -> None:
    """Fifty syncs a second are nothing to one disk, and all that another one can do."""
    disk, loop = FaultyDisk(), Loop()
    spool = Spool(tmp_path, disk=disk)
    syncing = Syncing(loop, spool)

    def synced_at(began: int, ended: int) -> int | None:
        spool.append(Kind.FRAME, b"x", time_ms=1, section=1, raw_length=1)
        assert syncing.tick(began) is None
        loop.run(lambda: loop.stop() if spool.synced.sequence == spool.sequence else 5)
        spool.append(Kind.FRAME, b"x", time_ms=1, section=1, raw_length=1)
        return syncing.tick(ended)

    assert synced_at(1_000, 1_001) == 20
    assert synced_at(2_000, 2_100) == 400
    assert synced_at(3_000, 9_000) == 1_000
    spool.append(Kind.OUTCOME, b"{}", time_ms=1, section=1)
    syncing.tick(9_001)
    loop.run(lambda: loop.stop() if spool.synced.sequence == spool.sequence else 5)
    syncing.close()
    spool.close()
