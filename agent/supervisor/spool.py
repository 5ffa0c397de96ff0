"""The spool: an attempt's log and its outcome, on disk until the coordinator has them. The writing end.

Append-only segments (`segments.py`) of checksummed records (`records.py`), one writer. The agent reads the same files
(`reading.py`), also while they grow and after the supervisor's death. What is on disk when:

- A record is written at once, so that it survives the supervisor and the agent, and is torn only by a power cut.
- It is *synced*, file and folder, before anybody is told of it: what has left this machine is never forgotten by it,
  and a number never stands for two different records.
- The room of sections and of the outcome is taken beforehand (`reserve`), on the disk and in the limit.
- A disk that fails once (a sync, or a write for another reason than room) is not asked again: Linux drops what it
  could not write, and the next sync says that all is well. The spool is `broken` from then on, takes no more, and
  only what was synced before counts.
"""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

from agent.supervisor.damage import Stand
from agent.supervisor.disk import FULL, Disk, read_from
from agent.supervisor.records import OVERHEAD, Kind, Record, decode, encode, sound_after
from agent.supervisor.segments import Segment, named, segments

LIMIT: Final = 256 << 20
"""Bytes on disk that one attempt may hold before its job has to wait."""
_SEGMENT: Final = 4 << 20
_RESERVE: Final = 1 << 20
_ON_DISK: Final = 32 << 10
"""Bytes of the disk that are kept for sections and the outcome."""
_SMALL: Final = 64 << 10


class SpoolFull(Exception):
    """There is no room, by the spool's limit or on the disk. Nothing was written; try again after `ack`."""


class SpoolBroken(Exception):
    """The disk has failed: nothing more is taken. The message is the reason."""


class _Done(NamedTuple):
    """A segment that is not written to any more: what is needed to throw it away."""

    path: Path
    last: int
    size: int


class Sync(NamedTuple):
    """What one sync covers. `run` may be called in another thread; it touches nothing of the spool."""

    disk: Disk
    files: tuple[int, ...]
    folders: tuple[Path, ...]
    stand: Stand
    begun: int
    """How many segments had been begun."""

    def run(self) -> OSError | None:
        """Does it; returns what went wrong."""
        try:
            for file in self.files:
                self.disk.sync(file)
            for folder in self.folders:
                self.disk.sync_folder(folder)
        except OSError as error:
            return error
        return None


class Spool:
    """The writing end. `limit` bounds the bytes on disk; a part of it is kept for section and outcome records."""

    def __init__(self, folder: Path, limit: int = LIMIT, *, disk: Disk | None = None, seed: int = 0) -> None:
        """Opens, or begins, the spool in `folder`; a torn record at its end is cut off. `seed`: a random number that no
        job can know, for the checksums of new segments. Raises OSError.
        """
        self._folder = folder
        self._limit = limit
        self._disk = disk or Disk()
        self._seed = seed
        self._reserve = min(_RESERVE, limit // 8)
        self._segment_size = min(_SEGMENT, max(4096, limit // 8))
        self._done: deque[_Done] = deque()
        self._left: list[int] = []
        """Open files of segments that are full, and not synced yet."""
        self._begun = 1
        """Segments, all in all; those that were found count as one."""
        self._named = 0
        """How many of them have names that are synced."""
        self._stand = Stand()
        self.synced = Stand()
        """What is durable."""
        self.broken = ""
        """Why nothing more is taken; empty: all is well."""
        self.acknowledged = 0
        self.over = False
        """Whether the outcome is written."""
        self._disk.reserve(folder / "reserve", _ON_DISK)
        self._segment, self._file, self._size = self._recover()

    @property
    def sequence(self) -> int:
        """Of the last record."""
        return self._stand.sequence

    @property
    def offset(self) -> int:
        """Raw bytes of the log so far."""
        return self._stand.offset

    def _recover(self) -> tuple[Segment, int, int]:
        """What is damaged inside a segment stays, for the reader to tell of; only a torn end is cut off."""
        found = segments(self._folder)
        if found and found[0].offset is not None:  # what is gone before it was acknowledged, so it was durable
            self.synced = Stand(found[0].first - 1, found[0].offset)
        for each in found:
            if each.first > self.sequence and each.offset is not None:
                self._stand = Stand(each.first - 1, each.offset, self._stand.section)
            size = self._scan(each)
            file = self._disk.begin(each.path)
            if each is found[-1]:
                self._disk.cut(file, size)
                return each, file, size
            self._left.append(file)  # who wrote it may have died before it was synced
            self._done.append(_Done(each.path, self.sequence, size))
        return self._begin()

    def _scan(self, segment: Segment) -> int:
        """Where the last sound record ends; takes the stand from it."""
        data, at, end = read_from(segment.path, 0, 1 << 30), 0, 0
        while True:
            while (found := decode(data, at, segment.seed)) is not None:
                record, at = found
                end = at
                if record.sequence > self.sequence:
                    self._stand = Stand(record.sequence, record.offset + record.raw_length, record.section)
            beyond = sound_after(data, at + 1, segment.seed)
            if beyond is None:
                return end
            at = beyond

    def _begin(self) -> tuple[Segment, int, int]:
        fresh = named(self._folder, self.sequence + 1, self.offset, self._seed)
        file = self._disk.begin(fresh.path)
        self._begun += 1
        return fresh, file, 0

    @property
    def used(self) -> int:
        """Bytes on disk."""
        return self._size + sum(segment.size for segment in self._done)

    def fits(self, *payloads: bytes) -> bool:
        """Whether frames with these payloads fit under the limit, all of them."""
        return self.used + sum(OVERHEAD + len(payload) for payload in payloads) <= self._limit - self._reserve

    def skip_to(self, stand: Stand) -> None:
        """Goes on behind `stand`, which somebody knows of although it cannot be read here any more."""
        if stand.sequence > self.sequence:
            self._stand = stand
            self._next_segment()

    def append(
        self,
        kind: Kind,
        payload: bytes,
        *,
        time_ms: int,
        section: int,
        raw_length: int = 0,
        ours: bool = False,
        at_last: bool = False,
    ) -> Record:
        """Appends a record, whole or not at all. `at_last`: a frame that may have of the room that is kept for all
        other kinds. Raises SpoolFull, SpoolBroken.
        """
        if self.broken:
            raise SpoolBroken(self.broken)
        record = Record(self.sequence + 1, kind, self.offset, time_ms, section, raw_length, payload, ours=ours)
        is_plain = kind is Kind.FRAME and not at_last
        room = self._limit - (self._reserve if is_plain else 0)
        if self.used + OVERHEAD + len(payload) > room:
            raise SpoolFull("the spool has reached its limit")
        try:
            self._write(record)
        except OSError as error:
            if error.errno not in FULL:
                raise SpoolBroken(self._break("could not be written", error)) from error
            if is_plain or not self._free_reserve():
                raise SpoolFull("the disk is full") from error
            more = {"time_ms": time_ms, "section": section, "raw_length": raw_length}
            return self.append(kind, payload, **more, ours=ours, at_last=at_last)
        self._stand = Stand(record.sequence, record.offset + raw_length, section)
        self.over = kind is Kind.OUTCOME
        return record

    def _write(self, record: Record) -> None:
        """One write; what a full disk leaves of it is cut off again, so that no torn record stands in the middle."""
        length = OVERHEAD + len(record.payload)
        if self._size and self._size + length > self._segment_size:
            self._next_segment()
        data = encode(record, self._segment.seed)
        try:
            written = self._disk.append(self._file, data)
        except OSError:
            self._disk.cut(self._file, self._size)
            raise
        if written != length:
            self._disk.cut(self._file, self._size)
            raise OSError(min(FULL), "short write")
        self._size += written

    def _next_segment(self) -> None:
        fresh = self._begin()
        self._left.append(self._file)
        self._done.append(_Done(self._segment.path, self.sequence, self._size))
        self._segment, self._file, self._size = fresh

    def _free_reserve(self) -> bool:
        """Gives the room of sections and outcome back to the disk; False: it was given before."""
        place = self._folder / "reserve"
        if not place.exists():
            return False
        self._disk.remove(place)
        return True

    @property
    def unsynced(self) -> bool:
        """Whether a sync would do anything: keep a record, or let what is acknowledged go."""
        droppable = self._named < self._begun and bool(self._done) and self._done[0].last <= self.acknowledged
        return not self.broken and (self.synced.sequence < self.sequence or droppable)

    def begin_sync(self) -> Sync | None:
        """What is to be synced now; None: nothing. To be told to `finish_sync` before it is asked again."""
        if not self.unsynced:
            return None
        folders = (self._folder, self._folder.parent) if self._named < self._begun else ()
        return Sync(self._disk, (*self._left, self._file), folders, self._stand, self._begun)

    def finish_sync(self, sync: Sync, error: OSError | None) -> None:
        """What `sync` came to. A failure is the end of this spool: a second sync would say that all is well."""
        if error is not None:
            self._break("could not be synced", error)
        if self.broken:  # also by a write meanwhile: what was told of it then stands
            return
        self.synced, self._named = sync.stand, sync.begun
        for file in sync.files[:-1]:  # full ones: the last is the one that was written to
            self._left.remove(file)
            self._disk.close(file)
        self._drop()

    def sync(self) -> None:
        """Makes everything durable. Waits for the disk. Raises SpoolBroken."""
        if (begun := self.begin_sync()) is not None:
            self.finish_sync(begun, begun.run())
        if self.broken:
            raise SpoolBroken(self.broken)

    def _break(self, what: str, error: OSError) -> str:
        self.broken = self.broken or f"the log on the agent's disk {what}: {error.strerror or error}"
        return self.broken

    def ack(self, sequence: int) -> None:
        """Everything up to `sequence` is stored elsewhere: frees whole segments, now or after a sync. Repeatable."""
        self.acknowledged = max(self.acknowledged, min(sequence, self.sequence))
        if self.broken:
            return
        full = self.used > self._limit // 2
        if self.acknowledged == self.sequence and self._size > (0 if full else _SMALL):
            with contextlib.suppress(OSError):  # no room for a new file: the old one stays a while
                self._next_segment()
        self._drop()

    def _drop(self) -> None:
        """Removes what is acknowledged. Not before the name of the newest segment is synced: a power cut would leave
        nothing that tells how far the log had come, and its numbers would be given again.
        """
        while self._named == self._begun and self._done and self._done[0].last <= self.acknowledged:
            self._disk.remove(self._done.popleft().path)

    def close(self) -> None:
        """Closes the files; the segments stay."""
        for file in (*self._left, self._file):
            self._disk.close(file)
        self._left.clear()
