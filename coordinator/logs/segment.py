"""A segment of a log: zstd frames one behind the other, and an index that says which record each of them is.

The object alone is one zstd stream of the raw log (`zstd -d` reads it). The index, beside its row, holds all else:

```
magic       4 bytes, HRS1
count       u32: records
entry * count:
    kind    u8: 0 a frame of the job's, 1 a section record, 2 a frame of ours
    time    i64: milliseconds since the Unix epoch
    a b c   u32 each: raw length, section, compressed length; of a section record: 0, 0, length of its bytes
sections    the section records as they came, in order
```

Numbers are little-endian. Sequences and offsets follow from the first ones and the lengths.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from coordinator.blobs.store import BlobStore
from coordinator.errors import CoordinatorError
from coordinator.logs.bounds import COMPRESSED_MOST
from coordinator.store.logs import SegmentRow
from headrace.v1 import log_pb2

PAGE_BYTES = 1 << 20
"""What is read of a segment at once, about, in bytes."""
PAGE_RECORDS = 512

_HEAD = struct.Struct("<4sI")
_ENTRY = struct.Struct("<BqIII")
_MAGIC = b"HRS1"
_FRAME, _SECTION, _OURS = 0, 1, 2


class DamagedSegment(CoordinatorError):
    """A segment is not what was written."""


class SegmentWriter:
    """Puts records together, in order; `index` and `size` say what has been put."""

    def __init__(self) -> None:
        self._entries = bytearray()
        self._sections = bytearray()
        self.count = 0
        self.raw = 0
        self.size = 0

    def add(self, data: bytes) -> bytes:
        """Takes a serialised record; returns what of it belongs into the object."""
        record = log_pb2.Record.FromString(data)
        self.count += 1
        if record.HasField("frame"):
            frame = record.frame
            kind = _OURS if frame.ours else _FRAME
            self._entries += _ENTRY.pack(kind, record.time_ms, frame.raw_length, frame.section, len(frame.zstd))
            self.raw += frame.raw_length
            self.size += len(frame.zstd)
            return frame.zstd
        self._entries += _ENTRY.pack(_SECTION, record.time_ms, 0, 0, len(data))
        self._sections += data
        return b""

    def index(self) -> bytes:
        """The index of all that was added."""
        return _HEAD.pack(_MAGIC, self.count) + bytes(self._entries) + bytes(self._sections)


@dataclass(frozen=True, slots=True)
class _Place:
    """A record: where it is in the object (frames) or among the section records."""

    kind: int
    time_ms: int
    raw_length: int
    section: int
    start: int
    end: int
    offset: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment with its index read. Memory: about 100 bytes a record."""

    row: SegmentRow
    places: tuple[_Place, ...] = field(repr=False)
    sections: bytes = field(repr=False)

    @classmethod
    def of(cls, row: SegmentRow) -> Segment:
        """Reads the index. Raises DamagedSegment."""
        places, sections = _read(row)
        return cls(row, places, sections)

    def holds(self, sequence: int) -> bool:
        """Whether a record is in it."""
        return self.row.first_sequence <= sequence <= self.row.last_sequence

    def sequence_at(self, offset: int) -> int:
        """The first record that touches a raw offset or lies behind it; the one after the last if none does."""
        for number, place in enumerate(self.places, self.row.first_sequence):
            if place.offset >= offset or place.offset + place.raw_length > offset:
                return number
        return self.row.last_sequence + 1

    async def page(self, blobs: BlobStore, sequence: int) -> list[log_pb2.Record]:
        """Records from a sequence on, at most about 1 MiB of them, read by one ranged get. Raises BlobError."""
        first = sequence - self.row.first_sequence
        chosen, size = list[_Place](), 0
        for place in self.places[first : first + PAGE_RECORDS]:
            if size >= PAGE_BYTES:
                break
            chosen.append(place)
            size += place.end - place.start
        frames = [place for place in chosen if place.kind != _SECTION and place.end > place.start]
        begin = frames[0].start if frames else 0
        data = bytearray()
        if frames:
            if self.row.key is None:
                data += (self.row.data or b"")[begin : frames[-1].end]
            else:
                async for chunk in blobs.get(self.row.key, begin, frames[-1].end):
                    data += chunk
            if len(data) != frames[-1].end - begin:
                raise DamagedSegment("a part of a log is shorter than its index says")
        return [self._record(place, number, data, begin) for number, place in enumerate(chosen, sequence)]

    def _record(self, place: _Place, sequence: int, data: bytearray, begin: int) -> log_pb2.Record:
        if place.kind == _SECTION:
            return log_pb2.Record.FromString(self.sections[place.start : place.end])
        frame = log_pb2.Frame(
            raw_length=place.raw_length,
            zstd=bytes(data[place.start - begin : place.end - begin]),
            section=place.section,
            ours=place.kind == _OURS,
        )
        return log_pb2.Record(sequence=sequence, offset=place.offset, time_ms=place.time_ms, frame=frame)


def _read(row: SegmentRow) -> tuple[tuple[_Place, ...], bytes]:
    index = row.index
    if len(index) < _HEAD.size:
        raise DamagedSegment("the index of a part of a log is damaged")
    magic, count = _HEAD.unpack_from(index)
    body = _HEAD.size + count * _ENTRY.size
    if magic != _MAGIC or len(index) < body or count != row.last_sequence - row.first_sequence + 1:
        raise DamagedSegment("the index of a part of a log is damaged")
    places, at, at_section, offset = list[_Place](), 0, 0, row.bytes_from
    for kind, time_ms, raw_length, section, length in _ENTRY.iter_unpack(index[_HEAD.size : body]):
        if kind in {_FRAME, _OURS} and length <= COMPRESSED_MOST:
            places.append(_Place(kind, time_ms, raw_length, section, at, at + length, offset))
            at += length
        elif kind == _SECTION and not raw_length:
            places.append(_Place(kind, time_ms, 0, 0, at_section, at_section + length, offset))
            at_section += length
        else:
            raise DamagedSegment("the index of a part of a log is damaged")
        offset += raw_length
    if at != row.size or body + at_section != len(index):
        raise DamagedSegment("the index of a part of a log is damaged")
    return tuple(places), index[body:]
