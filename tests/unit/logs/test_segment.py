"""The index of a segment: what went in comes out, and damage is seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import zstandard
from hypothesis import given
from hypothesis import strategies as st

from coordinator.logs.segment import DamagedSegment, Segment, SegmentWriter
from coordinator.store.logs import SegmentRow
from headrace.v1 import log_pb2

RECORDS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["frame", "ours"]), st.binary(max_size=200), st.integers(0, 1_000)),
        st.tuples(st.just("opened"), st.text(max_size=30), st.integers(1, 1_000)),
        st.tuples(st.just("closed"), st.text(max_size=30), st.integers(1, 1_000)),
    ),
    min_size=1,
    max_size=40,
)


class Bytes:
    """One object, of which ranges are read."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def get(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        for at in range(start, len(self.data) if end is None else end, 7):
            yield self.data[at : min(at + 7, len(self.data) if end is None else end)]


def made(
    parts: list[tuple[str, bytes | str, int]], *, first: int, offset: int
) -> tuple[list[log_pb2.Record], SegmentRow, bytes]:
    records, writer, data, begin = list[log_pb2.Record](), SegmentWriter(), b"", offset
    for number, (kind, content, section) in enumerate(parts, first):
        record = log_pb2.Record(sequence=number, offset=offset, time_ms=number * 7 - 3)
        if isinstance(content, bytes):
            packed = zstandard.ZstdCompressor().compress(content)
            frame = log_pb2.Frame(raw_length=len(content), zstd=packed, section=section, ours=kind == "ours")
            record.frame.MergeFrom(frame)
            offset += len(content)
        elif kind == "opened":
            record.opened.MergeFrom(log_pb2.SectionOpened(section=section, kind="step", title=content, step=-1))
        else:
            record.closed.MergeFrom(log_pb2.SectionClosed(section=section, result=content))
        records.append(record)
        data += writer.add(record.SerializeToString())
    row = SegmentRow(first, first + len(records) - 1, begin, "key", writer.size, writer.index())
    return records, row, data


@given(RECORDS, st.integers(1, 1 << 40), st.integers(0, 1 << 40), st.data())
def test_records_come_back_as_they_went_in(
    parts: list[tuple[str, bytes | str, int]], first: int, offset: int, draw: st.DataObject
) -> None:
    """Compaction is not allowed to change a log."""
    records, row, data = made(parts, first=first, offset=offset)
    segment = Segment.of(row)
    begin = draw.draw(st.integers(0, len(records) - 1))

    async def rest() -> list[log_pb2.Record]:
        return await segment.page(Bytes(data), first + begin)  # type: ignore[arg-type]  # it can be read, no more

    assert asyncio.run(rest()) == records[begin:]


@given(RECORDS, st.binary(min_size=1, max_size=4), st.data())
def test_a_damaged_index_is_refused_or_read_within_its_bounds(
    parts: list[tuple[str, bytes | str, int]], damage: bytes, draw: st.DataObject
) -> None:
    """A database may be restored from anything: no endless loop, no wild allocation."""
    _, row, data = made(parts, first=1, offset=0)
    at = draw.draw(st.integers(0, len(row.index)))
    index = row.index[:at] + damage + row.index[at + len(damage) :]
    try:
        segment = Segment.of(SegmentRow(1, row.last_sequence, 0, "key", row.size, index))
    except DamagedSegment:
        return
    assert sum(place.end - place.start for place in segment.places if place.kind != 1) == len(data)
