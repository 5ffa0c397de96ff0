"""The writer of logs beside a store with a defect: what others have sent is stored all the same."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Sequence
from typing import Any

from coordinator.errors import StoreDown
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


class IsDown(EndsNone):
    """Cannot be reached."""

    async def append(self, runs: Sequence[RecordRun]) -> Sequence[LogStand | None]:
        """Says so."""
        raise StoreDown(f"no database for {len(runs)}")


async def test_an_answer_that_nobody_waits_for_any_more_leaves_no_traceback() -> None:
    """The database fails while the line of an agent breaks: the log of the replica is to say the first, once."""
    unheard = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    writer = LogWriter(IsDown(), LogBells())
    running = asyncio.create_task(writer.run())
    answer = await writer.submit([log_pb2.RecordBatch(attempt_id=1, token=b"t", stream="main")])
    await asyncio.wait([answer])
    running.cancel()
    await asyncio.wait([running])
    del answer, running, writer
    gc.collect()
    assert not unheard
