"""Reads logs: from any offset, in order, from segments and from what is not compacted yet, live until the end.

A reader goes at its own speed: it holds a page, at most about 1 MiB, and no connection while its client is slow.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from coordinator.blobs.store import BlobStore
from coordinator.errors import NotFound
from coordinator.logs.bells import LogBells
from coordinator.logs.segment import DamagedSegment, Segment
from coordinator.store import logs
from coordinator.store.database import Database
from coordinator.store.logs import JobAttempt, LogState
from headrace.v1 import log_pb2


@dataclass(frozen=True, slots=True)
class TailOf:
    """What is read. `attempt_try` 0: the newest; `offset`: the first raw byte; `follow`: also what is yet to come."""

    run_id: int
    job: str
    attempt_try: int
    stream: str
    offset: int
    follow: bool


@dataclass(frozen=True, slots=True)
class Tailed:
    """A record of an attempt's log, or its end. Attempt 0: the job has none."""

    attempt_id: int
    attempt_try: int
    what: log_pb2.Record | log_pb2.TailEnd


class LogReader:
    """Reads logs of one database and its segments in a blob store. `poll_s`: how long a lost ring may cost."""

    def __init__(self, database: Database, blobs: BlobStore, bells: LogBells, *, poll_s: float = 2.0) -> None:
        self._database = database
        self._blobs = blobs
        self._bells = bells
        self._poll_s = poll_s

    async def tail(self, ask: TailOf) -> AsyncGenerator[Tailed, None]:
        """Gives the records from the offset on, before them those that open the sections it lies in; last the end.

        Raises NotFound for an unknown job or try, StoreDown, BlobError.
        """
        found = await self._attempt(ask)
        if found.attempt_id is None:
            yield Tailed(0, 0, log_pb2.TailEnd(offset=0, complete=found.ended))
            return
        attempt, number = found.attempt_id, found.attempt_try
        with self._bells.hung(run=ask.run_id, attempt=attempt) as bell:
            cursor = await self._cursor(attempt, ask)
            for record in cursor.sections:
                yield Tailed(attempt, number, record)
            while True:
                for record in await cursor.page():
                    yield Tailed(attempt, number, record)
                if cursor.more:
                    continue
                state = await cursor.look()
                if cursor.more:
                    continue
                sealed = state.sealed if state.next else state.over
                if sealed or not ask.follow:
                    yield Tailed(attempt, number, log_pb2.TailEnd(offset=state.bytes, complete=sealed))
                    return
                await bell.wait(self._poll_s)

    async def _attempt(self, ask: TailOf) -> JobAttempt:
        """Waits for the job's first attempt, if it is to be followed."""
        with self._bells.hung(run=ask.run_id) as bell:
            while True:
                async with self._database.connection() as db:
                    found = await logs.find_attempt(db, ask.run_id, ask.job, ask.attempt_try)
                if found is None:
                    raise NotFound(f"run {ask.run_id} has no job `{ask.job}`")
                if found.attempt_id is None and ask.attempt_try:
                    raise NotFound(f"job `{ask.job}` of run {ask.run_id} has no try {ask.attempt_try}")
                if found.attempt_id is not None or found.ended or not ask.follow:
                    return found
                await bell.wait(self._poll_s)

    async def _cursor(self, attempt: int, ask: TailOf) -> _Cursor:
        cursor = _Cursor(self._database, self._blobs, attempt, ask)
        if ask.offset > 0:
            async with self._database.connection() as db:
                cursor.sequence = await logs.begin(db, attempt, ask.stream, ask.offset)
            await cursor.skip()
            async with self._database.connection() as db:
                cursor.sections = _open(await logs.sections_before(db, attempt, ask.stream, cursor.sequence))
        return cursor


class _Cursor:
    """A place in a stream: `sequence` is read next. `more`: another page can be had at once."""

    def __init__(self, database: Database, blobs: BlobStore, attempt: int, ask: TailOf) -> None:
        self._database = database
        self._blobs = blobs
        self._attempt = attempt
        self._stream = ask.stream
        self._offset = ask.offset
        self._segment: Segment | None = None
        self.sequence = 1
        self.sections: Sequence[log_pb2.Record] = ()
        self.more = False

    async def skip(self) -> None:
        """Goes, in a segment, to the first record that touches the offset or lies behind it."""
        if await self._find_segment() and self._segment is not None:
            self.sequence = self._segment.sequence_at(self._offset)

    async def page(self) -> list[log_pb2.Record]:
        """The next records, if there are any. Those before the offset are left out."""
        if self._segment is not None and self._segment.holds(self.sequence):
            found = await self._segment.page(self._blobs, self.sequence)
        else:
            self._segment = None
            async with self._database.connection() as db:
                rows = await logs.page(db, self._attempt, self._stream, self.sequence)
            # It was compacted while we looked: the page begins behind a gap, and the segment has what is missing.
            contiguous = bool(rows) and rows[0][0] == self.sequence
            found = [log_pb2.Record.FromString(record) for _, record in rows] if contiguous else []
        self.more = bool(found)
        if found:
            self.sequence = found[-1].sequence + 1
        return [record for record in found if _touches(record, self._offset)]

    async def look(self) -> LogState:
        """Looks how far the stream has come, after a page without records."""
        async with self._database.connection() as db:
            state = await logs.state(db, self._attempt, self._stream)
        if state.compacted_to >= self.sequence and not await self._find_segment():
            raise DamagedSegment(f"the log's part that holds record {self.sequence} is missing")
        self.more = state.next > self.sequence
        return state

    async def _find_segment(self) -> bool:
        async with self._database.connection() as db:
            row = await logs.segment_of(db, self._attempt, self._stream, self.sequence)
        self._segment = None if row is None else Segment.of(row)
        return row is not None


def _touches(record: log_pb2.Record, offset: int) -> bool:
    return record.offset >= offset or record.offset + record.frame.raw_length > offset


def _open(records: Sequence[bytes]) -> list[log_pb2.Record]:
    """The openings of the sections that are still open after these records."""
    still: dict[int, log_pb2.Record] = {}
    for data in records:
        record = log_pb2.Record.FromString(data)
        if record.HasField("opened"):
            still[record.opened.section] = record
        else:
            still.pop(record.closed.section, None)
    return list(still.values())
