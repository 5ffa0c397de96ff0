"""Where attempts' records are kept: two places for each, written in turn, each with a checksum.

    PLACE: 64 bytes `headrace-record FORMAT NUMBER CRC LENGTH`, then that many bytes of JSON, then whatever

The newest that was synced is never written over, so a crash or a power cut at any moment leaves a whole one. A write
blanks the head first and writes it last: one that was cut short is told from one that was damaged later. The room of
both is taken when the attempt is: what it came to can be written down however full the disk is by then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.record import Record
from agent.supervisor.disk import FAILED
from headrace.daemon.folders import sync_folder

_WORD = b"headrace-record"
_FORMAT = 1
HEAD = 64
"""Bytes of the head."""
_ROOM = 64 << 10
"""Bytes that each place takes at once; a record with large outputs takes more when it comes to that."""
_SUFFIXES = (".json", ".other")


class Damaged(ValueError):
    """A file that is not what was written there."""


class NotSynced(OSError):
    """The disk took a record and did not keep it."""


@dataclass(slots=True)
class _Standing:
    """What is known of an attempt's places."""

    number: int = 0
    safe: int = 1
    """The place that is not to be written over."""
    named: set[int] = field(default_factory=set)
    """Those whose names are synced."""


class Records:
    """The folder with the records of all attempts. `failed` is told in a sentence when the disk fails."""

    def __init__(
        self, folder: Path, failed: Callable[[str], None], *, sync: Callable[[int], None] = os.fdatasync
    ) -> None:
        self._folder = folder
        self._failed = failed
        self._sync = sync
        self._owed: dict[int, Record] = {}
        self._standing: dict[int, _Standing] = {}

    def keep(self, record: Record, *, durable: bool = False) -> bool:
        """Like `write`, but a disk that is full or fails only puts it off: `pay` tries again. Whether it is written."""
        try:
            self.write(record, durable=durable)
        except OSError as error:
            if isinstance(error, NotSynced) or error.errno in FAILED:
                what = "synced" if isinstance(error, NotSynced) else "written"
                self._failed(f"the record of an attempt could not be {what} to the agent's disk: {error.strerror}")
            self._owed[record.attempt] = record
            return False
        return True

    def pay(self) -> None:
        """Writes what could not be written before. Never raises."""
        for record in list(self._owed.values()):
            self.keep(record, durable=True)

    def write(self, record: Record, *, durable: bool = False) -> None:
        """Writes the attempt's record; `durable`: also over a power cut. A few milliseconds, then. Raises OSError."""
        standing = self._standing.setdefault(record.attempt, _Standing())
        place = 1 - standing.safe
        file = self._places(record.attempt)[place]
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _put(opened, record.to_json().encode(), standing.number + 1)
            if durable:
                self._synced(opened, file, named=place in standing.named)
        finally:
            os.close(opened)
        standing.number += 1
        if durable:
            standing.safe = place
            standing.named.add(place)
        self._owed.pop(record.attempt, None)

    def _synced(self, opened: int, file: Path, *, named: bool) -> None:
        """A sync that failed is not repeated: Linux forgets what it could not write. The next one gets a new file."""
        try:
            self._sync(opened)
            if not named:
                sync_folder(self._folder)
        except OSError as error:
            file.unlink(missing_ok=True)
            raise NotSynced(error.errno, error.strerror) from error

    def remove(self, attempt: int) -> None:
        """Forgets the attempt; repeatable."""
        self._owed.pop(attempt, None)
        self._standing.pop(attempt, None)
        for place in self._places(attempt):
            place.unlink(missing_ok=True)

    def read(self, broken: Callable[[Path, Exception], None]) -> list[Record]:
        """All records, oldest attempt first; `broken` is told of a file that is none.

        Where one of an attempt's two is damaged, the other stands in for it, and says so in `Record.damage`.
        """
        names = {name for file in self._folder.iterdir() if (name := file.name.partition(".")[0]).isdecimal()}
        found = (self._read(int(name), broken) for name in names)
        return sorted((record for record in found if record is not None), key=lambda record: record.attempt)

    def _read(self, attempt: int, broken: Callable[[Path, Exception], None]) -> Record | None:
        sound: list[tuple[int, int, Record]] = []
        damage = ""
        for place, file in enumerate(self._places(attempt)):
            try:
                if (data := _data(file))[:HEAD].strip(b"\0"):
                    number, record = _unframed(data)
                    sound.append((number, place, record))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                broken(file, error)
                damage = f"the agent's record of this attempt was damaged on its disk ({file.name}: {error})"
        if not sound:
            return None
        number, place, record = max(sound, key=lambda each: each[0])
        self._standing[attempt] = _Standing(number + 1, place)
        record.damage = damage
        return record

    def _places(self, attempt: int) -> list[Path]:
        return [self._folder / f"{attempt}{suffix}" for suffix in _SUFFIXES]


def _data(file: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return file.read_bytes()
    return b""


def _put(file: int, data: bytes, number: int) -> None:
    """Writes a record into a place: its head last."""
    if os.fstat(file).st_size == 0:
        _take_room(file)
    head = b"%s %d %d %08x %d" % (_WORD, _FORMAT, number, zlib.crc32(data, number), len(data))
    for piece, at in ((bytes(HEAD), 0), (data, HEAD), (head.ljust(HEAD), 0)):
        if os.pwrite(file, piece, at) != len(piece):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _take_room(file: int) -> None:
    """Where a file system cannot, records have what room there is."""
    try:
        os.posix_fallocate(file, 0, _ROOM)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
            raise


def _unframed(data: bytes) -> tuple[int, Record]:
    """A record and its number. Raises Damaged; ValueError, KeyError and others for what is no record."""
    if data[:1] == b"{":  # of the version before
        return 0, Record.from_json(data.decode())
    match data[:HEAD].split():
        case [word, kind, number, crc, length] if word == _WORD and kind == b"%d" % _FORMAT:
            text = data[HEAD : HEAD + int(length)]
            if len(text) == int(length) and zlib.crc32(text, int(number)) == int(crc, 16):
                return int(number), Record.from_json(text.decode())
    raise Damaged("its checksum does not fit")
