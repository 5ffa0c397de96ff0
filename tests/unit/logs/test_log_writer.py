"""The writer of logs beside a store with a defect: what others have sent is stored all the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from coordinator.logs.bells import LogBells
from coordinator.logs.writer import LogWriter
from coordinator.store.logs import LastWord, LogStand, RecordRun
from headrace.v1 import log_pb2


class EndsNone:
    """Appends all, and fails as no store may when a log is to end."""

    async def append(self, runs: Sequence[RecordRun]) -> Sequence[LogStand | None]:
        """Has everything."""
        return [LogStand(next=run.next, bytes=run.bytes_to, final_records=None, added=0) for run in runs]

    async def hand_in(self, last_words: Sequence[LastWord]) -> Sequence[int]:
        """Is broken."""
        raise ValueError(f"a defect: {len(last_words)}")


async def test_a_defect_at_the_end_of_a_log_ends_no_writer() -> None:
    """It writes for all agents of the replica."""
    writer = LogWriter(EndsNone(), LogBells())
    running = asyncio.create_task(writer.run())
    for _ in range(2):
        word = log_pb2.RecordBatch(attempt_id=1, token=b"t", stream="main", final=0)
        async with asyncio.timeout(10):
            (durable,) = await (await writer.submit([word]))
        assert not durable.rejected
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
