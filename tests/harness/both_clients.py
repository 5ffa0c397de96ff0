"""The asyncio client with the blocking client's face, so that one test speaks for both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

from headrace.client import Client


class Blocking:
    """A `Client` on a loop of its own thread; calls block, iterators iterate."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client: Client = self._wait(self._make(args, options))

    async def _make(self, args: Any, options: Any) -> Client:
        return Client(*args, **options)

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._client.close())
        self._wait(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name in {"watch", "tail"}:
            return lambda *args, **options: self._iterate(method(*args, **options))
        return lambda *args, **options: self._wait(method(*args, **options))

    def _iterate(self, iterator: AsyncIterator[Any]) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._wait(anext(iterator))
                except StopAsyncIteration:
                    return
        finally:
            self._wait(iterator.aclose())  # type: ignore[attr-defined]  # it is an async generator
