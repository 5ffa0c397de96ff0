"""Logs in memory: `coordinator.store.logs`' append and what outcomes do to it, over the rows of `memory_rows`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from coordinator.core.states import ATTEMPT_LIVE, AttemptState
from coordinator.store.logs import LastWord, LogFinal, LogStand, NewRecord, RecordRun, final_streams
from tests.harness.memory_transactions import Transactions

if TYPE_CHECKING:
    from tests.harness.memory_rows import Rows


@dataclass(slots=True)
class LogRow:
    """How far a stream has come, and its records, from sequence 1 on."""

    records: list[NewRecord] = field(default_factory=list)
    bytes: int = 0
    final_records: int | None = None
    is_sealed: bool = False

    @property
    def next(self) -> int:
        return len(self.records) + 1

    def __deepcopy__(self, _: object) -> LogRow:
        return replace(self, records=list(self.records))  # a record is never changed


class MemoryLogs:
    """Appends by transactions. `looks`: called after each with the rows and the attempts."""

    def __init__(self, rows: Rows, transactions: Transactions, looks: Callable[[Rows, Sequence[int]], None]) -> None:
        self._rows, self._transactions, self._looks = rows, transactions, looks

    async def append(self, runs: Sequence[RecordRun]) -> list[LogStand | None]:
        """As `PostgresLogs.append`."""

        def body() -> list[LogStand | None]:
            stands = append(self._rows, runs)
            self._looks(self._rows, [run.attempt_id for run in runs])
            return stands

        return await self._transactions.run(body)

    async def hand_in(self, last_words: Sequence[LastWord]) -> list[int]:
        """As `PostgresLogs.hand_in`."""
        return await self._transactions.run(lambda: hand_in(self._rows, last_words))


def append(rows: Rows, runs: Sequence[RecordRun]) -> list[LogStand | None]:
    """As the statement `append`, in one transaction."""
    return [_append(rows, run) for run in runs]


def _append(rows: Rows, run: RecordRun) -> LogStand | None:
    attempt = rows.attempts.get(run.attempt_id)
    if attempt is None or attempt.attempt.token != run.token or attempt.attempt.state is AttemptState.RETURNED:
        return None
    log = rows.logs.get((run.attempt_id, run.stream))
    if log is None:
        if run.first != 1 or not run.records or run.records[0].offset != 0:
            return LogStand(1, 0, None, None)
        log = rows.logs[run.attempt_id, run.stream] = LogRow()
    final, before = log.final_records, log.bytes
    if not _fits(run, log):
        return LogStand(log.next, log.bytes, final, None)
    log.records.extend(run.records[log.next - run.first :])
    log.bytes = run.bytes_to
    log.is_sealed = final == log.next - 1
    return LogStand(log.next, log.bytes, final, log.bytes - before)


def _fits(run: RecordRun, log: LogRow) -> bool:
    within = log.final_records is None or run.next - 1 <= log.final_records
    return within and run.first <= log.next < run.next and run.records[log.next - run.first].offset == log.bytes


def close_logs(rows: Rows, final: LogFinal) -> None:
    """As the statements `close` and `close_unnamed`: an outcome says how many records there are."""
    for stream, records in final_streams(final):
        log = rows.logs.setdefault((final.attempt_id, stream), LogRow())
        if not log.is_sealed:
            log.final_records, log.is_sealed = max(records, log.next - 1), records < log.next
    for (attempt, _), log in rows.logs.items():
        if attempt == final.attempt_id and not log.is_sealed and log.final_records is None:
            log.final_records, log.is_sealed = log.next - 1, True


def lost_log(rows: Rows, attempt_id: int) -> None:
    """As the statement `lost`."""
    rows.logs.setdefault((attempt_id, "main"), LogRow())


def hand_in(rows: Rows, last_words: Sequence[LastWord]) -> list[int]:
    """As the statement `hand_in`: no more will come of an attempt that is over."""
    sealed = []
    for word in last_words:
        attempt, log = rows.attempts.get(word.attempt_id), rows.logs.get((word.attempt_id, word.stream))
        over = attempt is not None and attempt.attempt.token == word.token and attempt.attempt.state not in ATTEMPT_LIVE
        if over and log is not None and not log.is_sealed and log.next - 1 == word.records:
            log.final_records, log.is_sealed = word.records, True
            sealed.append(word.attempt_id)
    return sealed
