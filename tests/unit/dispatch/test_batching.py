"""Group commit: what waits while one batch is written is the next batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from coordinator.batching import GroupCommit


class Disk:
    """What is written to; a batch is held until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go_on = asyncio.Event()
        self.fails = False

    async def flush(self, items: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(items))
        await self.may_go_on.wait()
        if self.fails:
            raise OSError("no")
        return [item * 10 for item in items]


@asynccontextmanager
async def running(commit: GroupCommit[int, int]) -> AsyncIterator[None]:
    task = asyncio.create_task(commit.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_all_that_comes_while_a_batch_is_written_is_one_batch_in_order() -> None:
    """A thousand heartbeats are one statement."""
    disk = Disk()
    commit: GroupCommit[int, int] = GroupCommit(disk.flush, most=100)
    async with running(commit):
        tasks = [asyncio.create_task(commit.submit(n)) for n in range(10)]
        await asyncio.sleep(0)
        disk.may_go_on.set()
        assert await asyncio.gather(*tasks) == [n * 10 for n in range(10)]
    assert [item for batch in disk.batches for item in batch] == list(range(10))
    assert len(disk.batches) <= 2


async def test_every_caller_of_a_batch_that_failed_is_told_and_the_next_batch_is_written() -> None:
    """None is left waiting, and one failure is not the end."""
    disk = Disk()
    disk.fails = True
    disk.may_go_on.set()
    commit: GroupCommit[int, int] = GroupCommit(disk.flush, most=100)
    async with running(commit):
        failed = await asyncio.gather(*(commit.submit(n) for n in range(3)), return_exceptions=True)
        assert [type(each) for each in failed] == [OSError] * 3
        disk.fails = False
        assert await commit.submit(7) == 70


async def test_whoever_went_away_is_not_written() -> None:
    """A session that ended has nothing to say any more."""
    disk = Disk()
    commit: GroupCommit[int, int] = GroupCommit(disk.flush, most=100)
    gone = asyncio.create_task(commit.submit(1))
    stays = asyncio.create_task(commit.submit(2))
    await asyncio.sleep(0)
    gone.cancel()
    disk.may_go_on.set()
    async with running(commit):
        assert await stays == 20
    assert disk.batches == [[2]]


async def test_callers_wait_while_a_whole_batch_is_pending() -> None:
    """Back-pressure, not memory."""
    disk = Disk()
    commit: GroupCommit[int, int] = GroupCommit(disk.flush, most=2)
    async with running(commit):
        tasks = [asyncio.create_task(commit.submit(n)) for n in range(7)]
        await asyncio.sleep(0)
        disk.may_go_on.set()
        assert await asyncio.gather(*tasks) == [n * 10 for n in range(7)]
    assert max(map(len, disk.batches)) == 2


async def test_what_is_pending_when_it_stops_is_cancelled() -> None:
    """Nobody waits for a writer that is gone."""
    disk = Disk()
    commit: GroupCommit[int, int] = GroupCommit(disk.flush, most=100)
    async with running(commit):
        tasks = [asyncio.create_task(commit.submit(n)) for n in range(3)]
        await asyncio.sleep(0.01)
    assert await asyncio.gather(*tasks, return_exceptions=True) is not None
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]


async def test_a_result_that_is_an_exception_fails_its_own_caller_alone() -> None:
    """One bad item of five hundred is no reason to fail the others."""

    async def flush(items: Sequence[int]) -> Sequence[int | Exception]:
        return [OSError("no") if item == 2 else item for item in items]

    commit: GroupCommit[int, int] = GroupCommit(flush, most=100)
    async with running(commit):
        given = await asyncio.gather(*(commit.submit(n) for n in range(4)), return_exceptions=True)
    assert [type(each) for each in given] == [int, int, OSError, int]
