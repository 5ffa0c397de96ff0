"""The records of a spool, byte for byte. Shared by the supervisor, which writes them, and the agent, which reads.

A record is a header, a payload and the CRC-32 of both, begun with the seed of its segment: bytes of a job that look
like a record, found behind a damaged one, are none. Sequence numbers count from 1 without gaps; `offset` is the raw
offset in the log where the record begins. The payload of a frame is one zstd frame of its own; that of the
other kinds is JSON.
"""

from __future__ import annotations

import json
import struct
import zlib
from enum import IntEnum
from typing import Any, Final, NamedTuple

MAIN: Final = 0
"""Number of the stream `main`: the only one so far; services will get theirs."""
STREAMS: Final = {MAIN: "main"}

TEXT_MOST: Final = 1_000
"""Characters of a section's title or result: a coordinator refuses more, and with it all of the log."""

_HEADER: Final = struct.Struct("<2sBBBBQQQIII")
_MAGIC: Final = b"HR"
_FORMAT: Final = 1
_OURS: Final = 1
"""The one flag so far."""
_CRC: Final = struct.Struct("<I")
OVERHEAD: Final = _HEADER.size + _CRC.size
_MOST: Final = 1 << 20
"""Longest payload that is believed: a header that says more is torn."""


class Kind(IntEnum):
    """What a record is."""

    OPENED = 1
    """A section begins: `{"kind", "title", "step", "ours"}`; step -1: not a step."""
    FRAME = 2
    """Bytes of the log, zstd level 1, at most 64 KiB raw."""
    CLOSED = 3
    """A section ends: `{"result"}`, empty when all went well."""
    OUTCOME = 4
    """The last record: `{"cause", "sentence"}`."""


class Record(NamedTuple):
    """One record. Times are wall clock milliseconds, for people."""

    sequence: int
    kind: Kind
    offset: int
    time_ms: int
    section: int
    raw_length: int
    """Bytes of the log in it: 0 for all but frames."""
    payload: bytes
    stream: int = MAIN
    ours: bool = False
    """A frame of what Headrace itself says, not the job."""

    def facts(self) -> dict[str, Any]:
        """The payload of all kinds but frames."""
        found = json.loads(self.payload)
        return found if isinstance(found, dict) else {}


def shortened(text: str) -> str:
    """`text`, or as much of it as a title or a result may have, and `…`."""
    return text if len(text) <= TEXT_MOST else f"{text[: TEXT_MOST - 1]}…"


def encode(record: Record, seed: int = 0) -> bytes:
    """The record as it stands in a segment with this seed."""
    head = _HEADER.pack(
        _MAGIC,
        _FORMAT,
        record.kind,
        record.stream,
        _OURS if record.ours else 0,
        record.sequence,
        record.offset,
        record.time_ms,
        record.section,
        record.raw_length,
        len(record.payload),
    )
    crc = zlib.crc32(record.payload, zlib.crc32(head, seed))
    return b"".join((head, record.payload, _CRC.pack(crc)))


def decode(data: bytes, at: int = 0, seed: int = 0) -> tuple[Record, int] | None:
    """The record at `at` and where the next one begins; None if there is no whole and sound one."""
    if len(data) - at < OVERHEAD:
        return None
    magic, version, kind, stream, flags, sequence, offset, time_ms, section, raw, length = _HEADER.unpack_from(data, at)
    end = at + OVERHEAD + length
    if magic != _MAGIC or version != _FORMAT or length > _MOST or end > len(data):
        return None
    (crc,) = _CRC.unpack_from(data, end - _CRC.size)
    if zlib.crc32(data[at : end - _CRC.size], seed) != crc:
        return None
    payload = data[at + _HEADER.size : end - _CRC.size]
    return Record(sequence, Kind(kind), offset, time_ms, section, raw, payload, stream, bool(flags & _OURS)), end


def sound_after(data: bytes, at: int, seed: int) -> int | None:
    """Where the next whole and sound record begins, from `at` on; None: there is none."""
    while (at := data.find(_MAGIC, at)) >= 0:
        if decode(data, at, seed) is not None:
            return at
        at += 1
    return None
