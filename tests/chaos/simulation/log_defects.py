"""Defects of the way that a log takes, put in on purpose: see `defects.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agent.forwarder import LogSource
from agent.supervisor.reading import SpoolReader
from agent.supervisor.spool import Spool, Sync
from coordinator.errors import StoreDown
from coordinator.logs.writer import LogWriter
from coordinator.store.logs import LogFinal, LogStand, RecordRun
from tests.chaos.simulation.swaps import Swaps
from tests.harness import memory_logs, memory_rows
from tests.harness.memory_rows import Rows


def a_log_is_acknowledged_before_it_is_stored(put: Swaps) -> None:
    """Whether the commit came is not waited for."""

    async def hopeful(self: LogWriter, runs: list[RecordRun]) -> Any:
        try:
            return await append(self, runs)
        except StoreDown:
            return [LogStand(run.next, run.bytes_to, None, None) for run in runs]

    append = put.swap(LogWriter, "_append", hopeful)


def what_comes_twice_is_stored_twice(put: Swaps) -> None:
    """Where a run begins is not compared with how far the log is."""

    def greedy(rows: Rows, runs: Sequence[RecordRun]) -> Any:
        for run in runs:
            log = rows.logs.get((run.attempt_id, run.stream))
            if log is not None and run.records:
                run.first = log.next
        return append(rows, runs)

    append = put.swap(memory_logs, "append", greedy)
    put.swap(memory_logs, "_fits", lambda run, log: bool(run.records))


def a_sync_that_failed_is_trusted(put: Swaps) -> None:
    """The next one says that all is well."""

    def trusting(self: Spool, sync: Sync, error: OSError | None) -> None:
        del error
        finish(self, sync, None)

    finish = put.swap(Spool, "finish_sync", trusting)


def rot_is_skipped_in_silence(put: Swaps) -> None:
    """What cannot be read is passed over, and those behind it move up."""

    def silent(self: SpoolReader, until: Any, text: str = "") -> Iterator[Any]:
        if text:
            yield from up_to(self, until, text)
        elif until.sequence > self._stand.sequence and until.offset >= self._stand.offset:
            self._stand = until

    up_to = put.swap(SpoolReader, "_up_to", silent)


def a_log_is_sealed_before_its_last_record(put: Swaps) -> None:
    """An outcome ends the log where it is."""

    def hasty(rows: Rows, final: LogFinal) -> None:
        stored = {stream: log.next - 1 for (attempt, stream), log in rows.logs.items() if attempt == final.attempt_id}
        close(rows, LogFinal(final.attempt_id, stored))

    close = put.swap(memory_rows, "close_logs", hasty)


def what_is_not_synced_leaves_the_machine(put: Swaps) -> None:
    """A record is sent as soon as it is written."""

    def early(self: LogSource, there: int) -> None:
        grown(self, there + 1_000)

    grown = put.swap(LogSource, "grown", early)


def what_was_sent_is_forgotten(put: Swaps) -> None:
    """A new connection goes on where the old one was."""

    def onward(self: LogSource) -> None:
        self._sizes.clear()
        self.is_due = not self.done.is_set()

    put.swap(LogSource, "rewind", onward)


def nobody_dials_for_what_was_not_acknowledged(put: Swaps) -> None:
    """The forwarder connects again when there is something new."""
    put.swap(LogSource, "is_unheard", property(lambda _: False))


LOG_DEFECTS: Sequence[Callable[[Swaps], None]] = (
    a_log_is_acknowledged_before_it_is_stored,
    what_comes_twice_is_stored_twice,
    a_sync_that_failed_is_trusted,
    rot_is_skipped_in_silence,
    a_log_is_sealed_before_its_last_record,
    what_is_not_synced_leaves_the_machine,
    what_was_sent_is_forgotten,
    nobody_dials_for_what_was_not_acknowledged,
)
