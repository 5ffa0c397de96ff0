"""The spool: an attempt's log and its outcome, on disk until the coordinator has them.

Append-only segments `spool.<first sequence>` of checksummed records (`records.py`). One writer: the supervisor. The
agent reads the same files with a `SpoolReader` of its own, also while they grow and after the supervisor's death.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.supervisor.records import OVERHEAD, Kind, Record, decode, encode

LIMIT: Final = 256 << 20
"""Bytes on disk that one attempt may hold before its job has to wait."""
_SEGMENT: Final = 4 << 20
_RESERVE: Final = 1 << 20
_SMALL: Final = 64 << 10
_READ: Final = 1 << 20
_NAME: Final = "spool."


class SpoolFull(Exception):
    """There is no room, by the spool's limit or on the disk. Nothing was written; try again after `ack`."""


class SpoolGone(Exception):
    """A record was asked for that has been acknowledged and thrown away, or cannot be read any more."""


def segments(folder: Path) -> list[tuple[int, Path]]:
    """First sequence number and file of each segment, in order."""
    with contextlib.suppress(FileNotFoundError):
        found = [(int(name[len(_NAME) :]), folder / name) for name in os.listdir(folder) if _is_segment(name)]  # noqa: PTH208 - names alone
        return sorted(found)
    return []


def _is_segment(name: str) -> bool:
    return name.startswith(_NAME) and name[len(_NAME) :].isdecimal()


class _Segment:
    """A segment that is not written to any more: what is needed to throw it away."""

    __slots__ = ("last", "path", "size")

    def __init__(self, path: Path, last: int, size: int) -> None:
        self.path = path
        self.last = last
        self.size = size


class Spool:
    """The writing end. `limit` bounds the bytes on disk; a part of it is kept for section and outcome records."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        """Opens, or begins, the spool in `folder`; a torn record at its end is cut off. Raises OSError."""
        self._folder = folder
        self._limit = limit
        self._reserve = min(_RESERVE, limit // 8)
        self._segment_size = min(_SEGMENT, max(4096, limit // 8))
        self._done: deque[_Segment] = deque()
        self.sequence = 0
        """Of the last record."""
        self.offset = 0
        """Raw bytes of the log so far."""
        self.acknowledged = 0
        self._path, self._file, self._size = self._recover()

    def _recover(self) -> tuple[Path, int, int]:
        found = segments(self._folder)
        for first, path in found:
            self.sequence = first - 1
            size = self._scan(path)
            if (first, path) == found[-1]:
                file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                os.ftruncate(file, size)
                return path, file, size
            self._done.append(_Segment(path, self.sequence, size))
        return self._begin()

    def _scan(self, path: Path) -> int:
        """Length of the sound part; takes sequence and offset from it."""
        data, at = path.read_bytes(), 0
        while (found := decode(data, at)) is not None:
            record, at = found
            self.sequence, self.offset = record.sequence, record.offset + record.raw_length
        return at

    def _begin(self) -> tuple[Path, int, int]:
        path = self._folder / f"{_NAME}{self.sequence + 1:020}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return path, os.open(path, flags, 0o600), 0

    @property
    def used(self) -> int:
        """Bytes on disk."""
        return self._size + sum(segment.size for segment in self._done)

    def fits(self, *payloads: bytes) -> bool:
        """Whether frames with these payloads fit under the limit, all of them."""
        return self.used + sum(OVERHEAD + len(payload) for payload in payloads) <= self._limit - self._reserve

    def append(
        self, kind: Kind, payload: bytes, *, time_ms: int, section: int, raw_length: int = 0, ours: bool = False
    ) -> Record:
        """Appends a record, whole or not at all. Raises SpoolFull."""
        number = self.sequence + 1
        record = Record(number, kind, self.offset, time_ms, section, raw_length, payload, ours=ours)
        data = encode(record)
        room = self._limit - (self._reserve if kind is Kind.FRAME else 0)
        if self.used + len(data) > room:
            raise SpoolFull("the spool has reached its limit")
        try:
            if self._size and self._size + len(data) > self._segment_size:
                self._next_segment()
            self._write(data)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            raise SpoolFull("the disk is full") from error
        self.sequence, self.offset = record.sequence, record.offset + raw_length
        return record

    def _write(self, data: bytes) -> None:
        """One write; what a full disk leaves of it is cut off again, so that no torn record stands in the middle."""
        try:
            written = os.write(self._file, data)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        if written != len(data):
            os.ftruncate(self._file, self._size)
            raise OSError(errno.ENOSPC, "short write")
        self._size += written

    def _next_segment(self) -> None:
        fresh = self._begin()
        os.close(self._file)
        self._done.append(_Segment(self._path, self.sequence, self._size))
        self._path, self._file, self._size = fresh

    def ack(self, sequence: int) -> None:
        """Everything up to `sequence` is stored elsewhere: frees whole segments. Repeatable."""
        self.acknowledged = max(self.acknowledged, min(sequence, self.sequence))
        full = self.used > self._limit // 2
        if self.acknowledged == self.sequence and self._size > (0 if full else _SMALL):
            with contextlib.suppress(OSError):  # no room for a new file: the old one stays a while
                self._next_segment()
        while self._done and self._done[0].last <= self.acknowledged:
            self._done.popleft().path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file; the segments stay."""
        os.close(self._file)


class SpoolReader:
    """The reading end, in another process. Remembers where it is, so that reading on costs no search."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0
        self._path: Path | None = None
        self._at = 0

    def read(self, sequence: int, limit: int = _READ, most: int = 1 << 30) -> list[Record]:
        """At most `most` records from `sequence` on, about `limit` bytes of them; empty when there are none yet.

        Raises:
            SpoolGone: the record was acknowledged before and is no longer there.

        """
        if sequence != self._next or self._path is None:
            self._seek(sequence)
        records: list[Record] = []
        for record, size in self._records():
            if record.sequence >= sequence:
                records.append(record)
                limit -= size
            if limit <= 0 or len(records) >= most:
                break
        return records

    def first(self) -> int:
        """The first record that is still there, or will be; 1 for a spool that holds nothing yet."""
        found = segments(self._folder)
        return found[0][0] if found else 1

    def _seek(self, sequence: int) -> None:
        """To the segment that holds `sequence`."""
        found = segments(self._folder)
        before = [(first, path) for first, path in found if first <= sequence]
        if found and not before:
            raise SpoolGone(f"record {sequence} is no longer in the spool: it begins with {found[0][0]}")
        self._next, self._path = before[-1] if before else (0, None)
        self._at = 0

    def _records(self) -> Iterator[tuple[Record, int]]:
        while self._path is not None:
            ended = self._following()  # asked first: a segment that has a successor grows no more
            data = self._chunk()
            at = 0
            while (found := decode(data, at)) is not None:
                record, end = found
                self._at += end - at
                self._next = record.sequence + 1
                yield record, end - at
                at = end
            if at:
                continue
            if ended is None:
                return
            self._path, self._at = ended, 0

    def _following(self) -> Path | None:
        own = self._path
        later = [path for _, path in segments(self._folder) if own is not None and path.name > own.name]
        return later[0] if later else None

    def _chunk(self) -> bytes:
        assert self._path is not None
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                return file.read(2 * _READ)
        except FileNotFoundError:
            if self._following() is None:
                raise SpoolGone("the spool is gone") from None
            return b""  # acknowledged and thrown away while we stood at its end
