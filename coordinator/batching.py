"""Group commit: everything that waits while one batch is written is the next batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Gathers items of many callers into batches; one batch is under way at a time.

    `flush` gets the items in the order they came and returns one result for each; one that is an exception is
    raised at the caller of that item alone. What it raises itself is raised at every caller of that batch.
    Callers wait while `most` items are pending: back-pressure, not memory.
    """

    def __init__(
        self, flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]], *, most: int
    ) -> None:
        self._flush = flush
        self._most = most
        self._pending: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Condition()

    async def submit(self, item: Item) -> Result:
        """Waits until the item's batch is written. Raises what its flush raised."""
        async with self._room:
            await self._room.wait_for(lambda: len(self._pending) < self._most)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._pending.append((item, future))
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Writes batches until it is cancelled; what is pending then is cancelled too."""
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                if self._pending:
                    await self._write(self._take())
                if self._pending:
                    self._arrived.set()
        finally:
            for _, future in self._pending:
                future.cancel()

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._pending and len(batch) < self._most:
            batch.append(self._pending.popleft())
        return batch

    async def _write(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        async with self._room:
            self._room.notify_all()
        batch = [(item, future) for item, future in batch if not future.cancelled()]
        if not batch:
            return
        try:
            results = await self._flush([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:  # every caller of the batch gets it: none is swallowed
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
