"""Writes logs: what agents send at the same time is gathered and committed by one statement.

The queue is bounded in bytes: when the database is slow, the streams of the agents wait, and so do their spools.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from coordinator.errors import CoordinatorError, StoreDown
from coordinator.logs.bells import LogBells
from coordinator.logs.bounds import BadRecord, check_record, check_stream
from coordinator.store.logs import LastWord, LogStand, NewRecord, RecordRun
from headrace.v1 import log_pb2

QUEUE_BYTES = 16 << 20
"""What may wait at a replica, in bytes; then streams are held."""
GROUP_BYTES = 4 << 20
"""What one statement writes, about, in bytes."""
GROUP_RECORDS = 8_192
GROUP_RUNS = 1_024

_Key = tuple[int, bytes, str]
_log = structlog.get_logger(__name__)


class LogStore(Protocol):
    """Where logs are kept: `coordinator.store.logs.PostgresLogs`. Each call is a transaction, or raises StoreDown."""

    async def append(self, runs: Sequence[RecordRun]) -> Sequence[LogStand | None]:
        """Writes what fits of each run, at most one run a stream."""
        ...

    async def hand_in(self, last_words: Sequence[LastWord]) -> Sequence[int]:
        """Seals what is whole; returns the attempts."""
        ...


@dataclass(slots=True)
class _Submission:
    """What came in one message. An element of `runs` is a sentence where the batch can never be stored."""

    batches: Sequence[log_pb2.RecordBatch]
    runs: list[RecordRun | str]
    answer: asyncio.Future[list[log_pb2.Durable]]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(run.size for run in self.runs if isinstance(run, RecordRun)) + 1_000


class LogWriter:
    """Takes batches of records; `run` writes them until it is cancelled. `stored` is told of raw bytes
    committed.
    """

    def __init__(self, store: LogStore, bells: LogBells, *, stored: Callable[[int], None] = lambda _: None) -> None:
        self._stored = stored
        self._store = store
        self._bells = bells
        self._waiting: deque[_Submission] = deque()
        self._queued = 0
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._stopped = False

    async def submit(self, batches: Sequence[log_pb2.RecordBatch]) -> asyncio.Future[list[log_pb2.Durable]]:
        """Queues batches, after waiting for room. The future has an answer a batch, once they are committed.

        It raises StoreDown when the database failed: nothing is known then, and all may be sent again.
        """
        runs = list[RecordRun | str]()
        for batch in batches:
            if runs:
                await asyncio.sleep(0)  # judging costs: a heartbeat may come in between
            runs.append(_run_of(batch))
        submission = _Submission(batches, runs, asyncio.get_running_loop().create_future())
        while self._queued >= QUEUE_BYTES and not self._stopped:
            self._room.clear()
            await self._room.wait()
        if self._stopped:
            raise StoreDown("the coordinator is stopping: send the log to another")
        self._queued += submission.size
        self._waiting.append(submission)
        self._work.set()
        return submission.answer

    async def run(self) -> None:
        """Writes until it is cancelled."""
        group: list[_Submission] = []
        try:
            while True:
                group = await self._gather()
                await self._write(group)
                self._queued -= sum(each.size for each in group)
                self._room.set()
        finally:
            self._stopped = True
            self._room.set()
            _fail([*group, *self._waiting], StoreDown("the coordinator is stopping: send the log to another"))

    async def _gather(self) -> list[_Submission]:
        while not self._waiting:
            self._work.clear()
            await self._work.wait()
        group, size, runs, records = list[_Submission](), 0, 0, 0
        while self._waiting and size < GROUP_BYTES and runs < GROUP_RUNS and records < GROUP_RECORDS:
            each = self._waiting.popleft()
            group.append(each)
            size += each.size
            runs += len(each.runs)
            records += sum(len(run.records) for run in each.runs if isinstance(run, RecordRun))
        return group

    async def _write(self, group: list[_Submission]) -> None:
        joined = _joined(group)
        try:
            stands = await self._append(list(joined.values()))
            sealed = await self._hand_in(_last_words(group))
        except StoreDown as error:
            _fail(group, error)
            return
        by_key = dict(zip(joined, stands, strict=True))
        grown = {
            key: stand.added for key, stand in by_key.items() if isinstance(stand, LogStand) and stand.added is not None
        }
        self._stored(sum(grown.values()))
        self._bells.grew([*(key[0] for key in grown), *sealed])
        for each in group:
            if not each.answer.done():
                each.answer.set_result(_answers(each, by_key))

    async def _hand_in(self, last_words: Sequence[LastWord]) -> Sequence[int]:
        if not last_words:
            return ()
        try:
            return await self._store.hand_in(last_words)
        except StoreDown:
            raise
        except Exception:
            # A defect. What was stored beside it stands, and these logs are sealed when their time is over.
            _log.exception("logs could not be ended", attempts=[word.attempt_id for word in last_words])
            return ()

    async def _append(self, runs: list[RecordRun]) -> list[LogStand | CoordinatorError | None]:
        if not runs:
            return []
        try:
            return list(await self._store.append(runs))
        except StoreDown:
            raise
        except Exception as error:
            # A defect. It must not take with it what happens to stand in the same group.
            _log.exception("log records could not be stored", runs=len(runs), attempts=[run.attempt_id for run in runs])
            if len(runs) > 1:
                return [stand for run in runs for stand in await self._append([run])]
            failure = CoordinatorError("these log records could not be stored")
            failure.__cause__ = error
            return [failure]


def _run_of(batch: log_pb2.RecordBatch) -> RecordRun | str:
    """The records of a batch up to the first gap in it, or why it can never be stored."""
    run = RecordRun(batch.attempt_id, batch.token, batch.stream, 0, [])
    try:
        check_stream(batch.stream)
        for record in batch.records:
            raw_length = check_record(record)
            if not run.records:
                run.first = record.sequence
            elif record.sequence != run.next:
                break
            elif record.offset != run.bytes_to:
                raise BadRecord(f"record {record.sequence} does not begin where the one before it ends")
            run.records.append(_new_record(record, raw_length))
    except BadRecord as error:
        return str(error)
    return run


def _last_words(group: Sequence[_Submission]) -> list[LastWord]:
    """Of batches that can be stored; at most one a stream: a statement changes no row twice."""
    told = {
        (batch.attempt_id, batch.token, batch.stream): batch.final
        for each in group
        for batch, run in zip(each.batches, each.runs, strict=True)
        if batch.HasField("final") and isinstance(run, RecordRun)
    }
    return [LastWord(*key, records) for key, records in told.items()]


def _new_record(record: log_pb2.Record, raw_length: int) -> NewRecord:
    new = NewRecord(record.offset, raw_length, record.SerializeToString())
    if record.HasField("opened"):
        new.section, new.opened = record.opened.section, True
    elif record.HasField("closed"):
        new.section, new.opened = record.closed.section, False
    return new


def _joined(group: Sequence[_Submission]) -> dict[_Key, RecordRun]:
    """One run a stream: a statement changes no row twice. What does not touch it is left to be sent again.

    After a reconnect the old connection's records may still be here, ahead of the same ones sent again.
    """
    joined: dict[_Key, RecordRun] = {}
    for each in group:
        for run in each.runs:
            if isinstance(run, str):
                continue
            key = (run.attempt_id, run.token, run.stream)
            before = joined.get(key)
            if before is None or not before.records:
                joined[key] = RecordRun(run.attempt_id, run.token, run.stream, run.first, list(run.records))
            elif run.records:
                _join(before, run)
    return joined


def _join(before: RecordRun, run: RecordRun) -> None:
    """Widens `before` by what `run` has before and behind it, if they touch and their offsets fit."""
    if before.first <= run.first <= before.next < run.next:
        more = run.records[before.next - run.first :]
        if more[0].offset == before.bytes_to:
            before.records.extend(more)
    elif run.first < before.first <= run.next:
        first, rest = run.first, before.records[run.next - before.first :]
        if not rest or rest[0].offset == run.bytes_to:
            before.first, before.records = first, [*run.records, *rest]


def _answers(submission: _Submission, stands: dict[_Key, LogStand | CoordinatorError | None]) -> list[log_pb2.Durable]:
    return [
        _answer(batch, run, None if isinstance(run, str) else stands[run.attempt_id, run.token, run.stream])
        for batch, run in zip(submission.batches, submission.runs, strict=True)
    ]


def _answer(
    batch: log_pb2.RecordBatch, run: RecordRun | str, stand: LogStand | CoordinatorError | None
) -> log_pb2.Durable:
    answer = log_pb2.Durable(attempt_id=batch.attempt_id, stream=batch.stream)
    if isinstance(run, str):
        sentence = run
    elif stand is None:
        sentence = "the token is not that of an attempt that may write logs"
    elif isinstance(stand, CoordinatorError):
        sentence = str(stand)
    else:
        answer.sequence, answer.offset = stand.next - 1, stand.bytes
        sentence = _misfit(run, stand)
    if sentence:
        answer.rejected, answer.sentence = True, sentence
    return answer


def _misfit(run: RecordRun, stand: LogStand) -> str:
    """Why what is left of a run can never be stored; empty: it is stored, or may be sent again."""
    if run.next <= stand.next:
        return ""
    if stand.final_records is not None and run.next - 1 > stand.final_records:
        return "the log is sealed, or its outcome named fewer records"
    if run.first <= stand.next and run.records[stand.next - run.first].offset != stand.bytes:
        return f"record {stand.next} does not begin where the one before it ends"
    return ""


def _fail(group: Sequence[_Submission], error: CoordinatorError) -> None:
    for each in group:
        if not each.answer.done():
            each.answer.set_exception(error)
            each.answer.exception()  # seen: whoever asked may have gone
