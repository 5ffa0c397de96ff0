"""The log of an attempt in its supervisor: the agent's own writer and spool, on a disk that can do what disks do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from agent.supervisor.results import Ended
from agent.supervisor.segments import segments
from agent.supervisor.spool import Spool, Sync
from agent.supervisor.writer import LogWriter
from tests.chaos.simulation.log_judge import LogJudge
from tests.chaos.simulation.printed import printed
from tests.harness.faulty_disk import FaultyDisk

LIMIT = 256 << 10
"""Bytes of a spool: small, so that it has many segments, and is full now and then."""
HOLD_MS = 20_000
_SYNC_MS = 100


class SimulatedDisk(FaultyDisk):
    """The disk of a machine: files in memory. `begins`: for whoever starts when it is full or broken."""

    def __init__(self) -> None:
        super().__init__()
        self._lost: dict[Path, int] = {}

    def sync(self, file: int) -> None:
        """One that fails loses what it should have kept, whatever the next one says."""
        path = self._paths[file]
        try:
            self._check("sync")
        except OSError:
            self._lost.setdefault(path, self._synced[path])
            raise
        self._synced[path] = self._lost.get(path, os.fstat(file).st_size)

    def sync_folder(self, folder: Path) -> None:
        """Costs nothing here but what it means."""
        self._check("sync_folder")
        self._named |= {path for path in self._synced if path.parent == folder}

    def power_cut(self, kept: Callable[[int], int]) -> None:
        """What is there afterwards was on the disk."""
        super().power_cut(kept)
        self._lost.clear()

    def heal(self) -> None:
        """It is as it should be."""
        self.fails.clear()

    def forget(self, folder: Path) -> None:
        """The folder is removed."""
        for path in [each for each in self._synced if each.parent == folder]:
            self.remove(path)
        if folder.is_dir():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()

    def rot(self, folder: Path, rng: random.Random) -> bool:
        """A byte of a spool is another. False: there is none."""
        files = [each.path for each in segments(folder) if each.path.stat().st_size]
        if not files:
            return False
        path = rng.choice(files)
        with path.open("r+b") as file:
            at = rng.randrange(path.stat().st_size)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << rng.randrange(8)]))
        return True


class SimulatedLog:
    """What a supervisor does about its log: it prints now and then, frames, spools and syncs."""

    def __init__(self, attempt: int, folder: Path, disk: SimulatedDisk, rng: random.Random, judge: LogJudge) -> None:
        """Raises OSError, as the spool does."""
        folder.mkdir(parents=True, exist_ok=True)
        self._attempt, self._rng, self._judge = attempt, rng, judge
        self.spool = Spool(folder, LIMIT, disk=disk, seed=rng.getrandbits(32))
        self._writer = LogWriter(self.spool, now_ms, now_ms, hold_ms=HOLD_MS)
        self._life = judge.begins(attempt, self.spool.offset)
        self._said = 0
        self._prints: list[tuple[int, int]] = []
        """When, and how much, the latest first."""
        self._syncing: tuple[int, Sync, OSError | None] | None = None
        self._rests = 0
        self._ended = False
        self.changed = asyncio.Event()
        """Something is to be done."""
        self.news, self.more = asyncio.Event(), asyncio.Event()
        """More is durable, or the log is over: for who ends it, and for who follows it."""
        self.failed: Callable[[], None] = lambda: None
        """Called when the disk has failed."""
        self.is_open = True
        self._writer.open_section("setup", "Set up")

    @property
    def broken(self) -> str:
        return self.spool.broken

    def begin(self, lasts: float) -> None:
        """The commands run: they print, somewhere in their time."""
        self._writer.open_section("step", "true", step=0)
        for _ in range(self._rng.choice((0, 1, 2, 3, 5))):
            most = self._rng.choice((1, 30, 200, 2_000, 9_000, 70_000))
            self._prints.append((now_ms() + round(1000 * self._rng.uniform(0, lasts)), self._rng.randint(1, most)))
        self._prints.sort(reverse=True)
        self.changed.set()

    def end_step(self) -> None:
        """The commands are over: what they have not printed they never will."""
        self._prints.clear()
        if self.is_open:
            self._writer.close_section("")
            self.changed.set()

    async def run(self) -> None:
        """As the supervisor's loop, until it is closed."""
        while self.is_open:
            wait = self._tick(now_ms())
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self.changed.wait()

    def _tick(self, now: int) -> float | None:
        """Does what is due; how many seconds nothing will be."""
        while self._prints and self._prints[-1][0] <= now and not self._writer.blocked:
            _, size = self._prints.pop()
            self._writer.write(printed(self._attempt, self._life, self._said, size))
            self._said += size
            self._judge.prints(self._attempt, self._said)
        self._writer.tick()
        if self._syncing is not None and self._syncing[0] <= now:
            (_, sync, error), self._syncing = self._syncing, None
            self.spool.finish_sync(sync, error)
            self._rests = now + _SYNC_MS
            self.tell()
            if self.broken:
                self.failed()
        if self._syncing is None and now >= self._rests and (begun := self.spool.begin_sync()) is not None:
            # What the disk keeps is what was there when it was asked; that it has is told later.
            self._syncing = now + self._rng.choice((1, 5, 30, 800)), begun, begun.run()
        dues = [
            self._prints[-1][0] if self._prints and not self._writer.blocked else None,
            self._writer.due,
            self._syncing[0] if self._syncing is not None else self._rests if self.spool.unsynced else None,
            now + 500 if self._writer.blocked else None,
        ]
        waits = [max(1, due - now) / 1000 for due in dues if due is not None]
        return min(waits) if waits else None

    def tell(self) -> None:
        """The agent is told what is durable: from now on this may be known elsewhere."""
        self._judge.keeps(self._attempt, self.spool.synced.sequence, self.spool.synced.offset)
        self.news.set()
        self.more.set()

    def acknowledge(self, sequence: int) -> None:
        """The coordinator has it."""
        if self.is_open:
            self.spool.ack(sequence)
            self._writer.drain()
            self.changed.set()

    def end(self) -> Ended | None:
        """Writes the outcome, once, as `agent.supervisor.attempt` does. None: it is not durable yet."""
        if not self._ended:
            self._ended = True
            self._writer.outcome("", "")
            self.changed.set()
        return Ended.of({**self._writer.kept, "cause": "", "sentence": ""}) if self._writer.durable else None

    def close(self) -> None:
        """The process is gone; what it wrote is there."""
        if self.is_open:
            self.is_open = False
            self.spool.close()
            self.changed.set()
            self.news.set()
        self.more.set()


def full(disk: SimulatedDisk) -> None:
    """Nothing more fits, for now."""
    disk.fails["append"] = errno.ENOSPC


def failing(disk: SimulatedDisk) -> None:
    """What is synced is not kept."""
    disk.fails["sync"] = errno.EIO


def now_ms() -> int:
    """The clocks of every machine."""
    return round(asyncio.get_running_loop().time() * 1000)
