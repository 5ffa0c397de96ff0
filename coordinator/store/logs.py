"""Logs in PostgreSQL: hot records as they came, sections, segments, and how far each stream has come."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.store.database import Connection, Database
from coordinator.store.sql import statements

SQL = statements("logs")

_FINAL_STREAMS = 100
_FINAL_MOST = 1 << 53
_STREAM = re.compile(r"[a-z0-9_][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class LogFinal:
    """What an outcome says of an attempt's logs: how many records each stream has in the end."""

    attempt_id: int
    streams: Mapping[str, int]


@dataclass(slots=True)
class NewRecord:
    """A record on its way into the database. `section` is set for one that opens or closes a section."""

    offset: int
    raw_length: int
    record: bytes = field(repr=False)
    section: int | None = None
    opened: bool | None = None


@dataclass(slots=True)
class RecordRun:
    """Records of one stream that follow one another from sequence `first` on. Empty: a question how far it is."""

    attempt_id: int
    token: bytes = field(repr=False)
    stream: str
    first: int
    records: list[NewRecord]

    @property
    def next(self) -> int:
        """The sequence after the last record."""
        return self.first + len(self.records)

    @property
    def bytes_to(self) -> int:
        """The raw offset after the last record."""
        return self.records[-1].offset + self.records[-1].raw_length if self.records else 0

    @property
    def size(self) -> int:
        """Bytes of all records, as they are stored."""
        return sum(len(each.record) for each in self.records)


@dataclass(frozen=True, slots=True)
class LastWord:
    """An agent has `records` records of a stream, and there will be no more."""

    attempt_id: int
    token: bytes = field(repr=False)
    stream: str
    records: int


@dataclass(frozen=True, slots=True)
class LogStand:
    """How far a stream is durable after an append: `next` is wanted next. `added`: raw bytes, None: no record."""

    next: int
    bytes: int
    final_records: int | None
    added: int | None


@dataclass(frozen=True, slots=True)
class LogState:
    """How far a stream has come. `next` 0: it has no record yet. `over`: without a row it never will."""

    next: int
    bytes: int
    sealed: bool
    compacted_to: int
    over: bool


@dataclass(frozen=True, slots=True)
class JobAttempt:
    """A job, and the attempt that was asked for; `attempt_id` None: there is none yet."""

    ended: bool
    attempt_id: int | None
    attempt_try: int


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A compacted part of a stream: an object, and the index of the records in it."""

    first_sequence: int
    last_sequence: int
    bytes_from: int
    key: str | None
    size: int
    index: bytes = field(repr=False)
    data: bytes | None = field(default=None, repr=False)
    """Instead of an object, when it is small."""


@dataclass(frozen=True, slots=True)
class HotLog:
    """A stream with records to compact: those from `compacted_to` + 1 on."""

    attempt_id: int
    run_id: int
    stream: str
    compacted_to: int
    compacted_bytes: int
    next: int
    bytes: int
    sealed: bool


@dataclass(frozen=True, slots=True)
class NewSegment:
    """Records from `first_sequence` on, put together; `bytes_from`, `bytes_to`: raw offsets."""

    attempt_id: int
    stream: str
    first_sequence: int
    last_sequence: int
    bytes_from: int
    bytes_to: int
    key: str | None
    data: bytes | None = field(repr=False)
    size: int
    sha256: bytes
    index: bytes = field(repr=False)


class PostgresLogs:
    """What agents append to, and end: `coordinator.logs.writer.LogStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, runs: Sequence[RecordRun]) -> list[LogStand | None]:
        """Writes what fits of each run, at most one run a stream. None: the attempt's token is another.

        Outside a transaction: what another one writes meanwhile has to be seen. Raises StoreDown.
        """
        async with self._database.connection() as db:
            return await _append(db, runs)

    async def hand_in(self, last_words: Sequence[LastWord]) -> list[int]:
        """Seals the logs of ended attempts whose agents have no more of them; returns the attempts."""
        told = sorted(last_words, key=lambda word: (word.attempt_id, word.stream))
        async with self._database.connection() as db:
            rows = await db.fetch(
                SQL.hand_in,
                [word.attempt_id for word in told],
                [word.token for word in told],
                [word.stream for word in told],
                [word.records for word in told],
            )
        return [row["attempt_id"] for row in rows]


async def _append(db: Connection, runs: Sequence[RecordRun]) -> list[LogStand | None]:
    stands = await _append_once(db, runs)
    # An outcome that closes the log at this very moment makes its row: the statement waited for it, but did not see
    # it. Nobody deletes such a row, so that the second look finds it.
    if unseen := [n for n, run in enumerate(runs) if _began_unseen(run, stands[n])]:
        for n, stand in zip(unseen, await _append_once(db, [runs[n] for n in unseen]), strict=True):
            stands[n] = stand
    return stands


def _began_unseen(run: RecordRun, stand: LogStand | None) -> bool:
    """Whether the beginning of a log was not written though nothing seemed to be there."""
    begins = run.first == 1 and bool(run.records) and run.records[0].offset == 0
    return begins and stand is not None and stand == LogStand(1, 0, None, None)


async def _append_once(db: Connection, runs: Sequence[RecordRun]) -> list[LogStand | None]:
    places, place = list[int](), 1
    for run in runs:
        places.append(place)
        place += len(run.records)
    records = [(number, each) for number, run in enumerate(runs, 1) for each in run.records]
    rows = await db.fetch(
        SQL.append,
        [run.attempt_id for run in runs],
        [run.token for run in runs],
        [run.stream for run in runs],
        [run.first for run in runs],
        [run.next for run in runs],
        places,
        [run.bytes_to for run in runs],
        [number for number, _ in records],
        [each.offset for _, each in records],
        [each.raw_length for _, each in records],
        [each.section for _, each in records],
        [each.opened for _, each in records],
        [each.record for _, each in records],
    )
    stands: list[LogStand | None] = [None] * len(runs)
    for row in rows:
        stands[row["n"] - 1] = LogStand(row["next"], row["bytes"], row["final_records"], row["added"])
    return stands


async def state(db: Connection, attempt_id: int, stream: str) -> LogState:
    """How far a stream has come."""
    row = await db.fetchrow(SQL.state, attempt_id, stream)
    if row is None:
        return LogState(0, 0, sealed=True, compacted_to=0, over=True)  # the run was deleted
    return LogState(row["next"] or 0, row["bytes"] or 0, bool(row["sealed"]), row["compacted_to"] or 0, row["over"])


async def page(db: Connection, attempt_id: int, stream: str, sequence: int) -> list[tuple[int, bytes]]:
    """Records not yet compacted, from a sequence on: (sequence, serialised), at most about 1 MiB of them."""
    return [(row["sequence"], row["record"]) for row in await db.fetch(SQL.page, attempt_id, stream, sequence)]


async def find_attempt(db: Connection, run_id: int, job: str, attempt_try: int) -> JobAttempt | None:
    """The newest attempt of a job that began (try 0), or that of one try. None: there is no such job."""
    row = await db.fetchrow(SQL.find_attempt, run_id, job, attempt_try)
    return None if row is None else JobAttempt(row["ended"], row["attempt_id"], row["try"] or 0)


async def begin(db: Connection, attempt_id: int, stream: str, offset: int) -> int:
    """The sequence to read from for a raw offset; some records before the offset may come first."""
    return int(await db.fetchval(SQL.begin, attempt_id, stream, offset))


async def sections_before(db: Connection, attempt_id: int, stream: str, sequence: int) -> list[bytes]:
    """Serialised section records before a sequence, in order."""
    return [row["record"] for row in await db.fetch(SQL.sections_before, attempt_id, stream, sequence)]


async def segment_of(db: Connection, attempt_id: int, stream: str, sequence: int) -> SegmentRow | None:
    """The segment that holds a record, if it is compacted."""
    row = await db.fetchrow(SQL.segment_of, attempt_id, stream, sequence)
    return None if row is None else SegmentRow(*row.values())


async def close_logs(db: Connection, outcomes: Sequence[LogFinal]) -> None:
    """Notes how many records the logs of ended attempts have; seals those that are whole.

    Part of the transaction that records the outcomes. What an agent says wrongly (a name, a number) is put right:
    no log can keep an outcome from being recorded.
    """
    told = sorted((final.attempt_id, stream, records) for final in outcomes for stream, records in final_streams(final))
    if told:
        await db.execute(SQL.close, [each[0] for each in told], [each[1] for each in told], [each[2] for each in told])
        await db.execute(SQL.close_unnamed, sorted({final.attempt_id for final in outcomes}))


def final_streams(final: LogFinal) -> list[tuple[str, int]]:
    """The streams of an outcome, put right, and how many records each has."""
    named = [(name, count) for name, count in sorted(final.streams.items()) if _STREAM.fullmatch(name)]
    streams = {"main": 0} | dict(named[:_FINAL_STREAMS])
    return [(name, min(max(count, 0), _FINAL_MOST)) for name, count in streams.items()]


async def lost_logs(db: Connection, attempts: Sequence[int]) -> None:
    """Notes that attempts were lost: their logs may still come, for an hour. Part of that transaction."""
    await db.execute(SQL.lost, sorted(set(attempts)))


async def seal_forsaken(db: Connection, term: str) -> list[int]:
    """Seals the logs whose agents did not hand in the rest in time; returns their attempts."""
    return [row["attempt_id"] for row in await db.fetch(SQL.seal_forsaken, term)]


async def sealed_to_compact(db: Connection, limit: int) -> list[HotLog]:
    """Sealed logs with hot records, oldest first."""
    return [HotLog(*row.values()) for row in await db.fetch(SQL.sealed_to_compact, limit)]


async def open_to_compact(db: Connection, limit: int, *, raw_bytes: int, records: int) -> list[HotLog]:
    """Living logs with at least so many hot raw bytes, or more hot records."""
    return [HotLog(*row.values()) for row in await db.fetch(SQL.open_to_compact, raw_bytes, records, limit)]


async def begin_upload(db: Connection, key: str) -> None:
    """Notes that an object is about to be written."""
    await db.execute(SQL.begin_upload, key)


async def end_upload(db: Connection, keys: Sequence[str]) -> None:
    """Forgets objects that are deleted."""
    await db.execute(SQL.end_upload, list(keys))


async def stray_uploads(db: Connection) -> list[str]:
    """Objects that were begun over an hour ago and never became a segment."""
    return [row["key"] for row in await db.fetch(SQL.stray_uploads)]


async def swap(db: Connection, segment: NewSegment, term: str) -> bool:
    """Puts a segment in the place of its records. False: the log is no longer as it was seen, or the term over."""
    done = await db.fetchval(
        SQL.swap,
        segment.attempt_id,
        segment.stream,
        segment.first_sequence,
        segment.last_sequence,
        segment.bytes_from,
        segment.bytes_to,
        segment.key,
        segment.data,
        segment.size,
        segment.sha256,
        segment.index,
        term,
    )
    return done is not None


async def small_records(db: Connection, hot: Sequence[HotLog]) -> list[list[bytes]]:
    """All hot records of small logs, serialised, in order: one list a log."""
    found: list[list[bytes]] = [[] for _ in hot]
    columns = (
        [log.attempt_id for log in hot],
        [log.stream for log in hot],
        [log.compacted_to + 1 for log in hot],
        [log.next for log in hot],
    )
    for row in await db.fetch(SQL.small_records, *columns):
        found[row["n"] - 1].append(row["record"])
    return found


async def swap_small(db: Connection, segments: Sequence[NewSegment], term: str) -> int:
    """Puts segments that are kept in their rows in the places of their records; returns how many it did."""
    rows = await db.fetch(
        SQL.swap_small,
        [each.attempt_id for each in segments],
        [each.stream for each in segments],
        [each.first_sequence for each in segments],
        [each.last_sequence for each in segments],
        [each.bytes_from for each in segments],
        [each.bytes_to for each in segments],
        [each.data for each in segments],
        [each.sha256 for each in segments],
        [each.index for each in segments],
        term,
    )
    return len(rows)
