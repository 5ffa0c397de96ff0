"""A TCP proxy between two real parts, which does what networks do: it stalls, goes deaf one way, delays and cuts."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

T = TypeVar("T")
Ends: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
UP, DOWN = "up", "down"
"""From whoever dialled to the target, and back."""


class Proxy:
    """Listens on `address` as long as it is entered. It runs in a thread: whoever tests may block.

    `target` is HOST:PORT or the path of a Unix socket, and may be changed for the connections to come. `host`: where it
    listens.
    """

    def __init__(self, target: str, host: str = "127.0.0.1") -> None:
        self.target = target
        self._host = host
        self.accepted = 0
        """Connections so far."""
        self.delay_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._passes = {UP: asyncio.Event(), DOWN: asyncio.Event()}
        self._open: set[asyncio.Task[None]] = set()
        self._changed = threading.Condition()
        for each in self._passes.values():
            each.set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._take, self._host, 0))
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stall(self, *ways: str) -> None:
        """Nothing gets through any more in these directions (both, if none is named); the sockets stay open."""
        for way in ways or (UP, DOWN):
            self._loop.call_soon_threadsafe(self._passes[way].clear)

    def resume(self) -> None:
        """What has waited arrives, and all that follows."""
        for each in self._passes.values():
            self._loop.call_soon_threadsafe(each.set)

    def cut(self) -> None:
        """Ends every connection at once."""
        self._do(self._end_all())

    def wait_for_connections(self, count: int, seconds: float) -> bool:
        """Whether so many have been accepted within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.accepted >= count, seconds)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _stop(self) -> None:
        self._server.close()
        await self._end_all()

    async def _end_all(self) -> None:
        tasks = list(self._open)
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._changed:
            self.accepted += 1
            self._changed.notify_all()
        other: asyncio.StreamWriter | None = None
        try:
            answers, other = await self._dial()
            up, down = self._pumps((reader, writer), (answers, other))
            pumps = [asyncio.create_task(up), asyncio.create_task(down)]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in pumps:
                    each.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the target is not there: whoever dialled sees the end
        finally:
            for each in (writer, other):
                if each is not None:
                    each.transport.abort()

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.target.startswith("/"):
            return await asyncio.open_unix_connection(self.target)
        host, _, port = self.target.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    def _pumps(self, near: Ends, far: Ends) -> tuple[Coroutine[Any, Any, None], Coroutine[Any, Any, None]]:
        """What carries a connection from whoever dialled to the target, and back."""
        return self._pump(near[0], far[1], UP), self._pump(far[0], near[1], DOWN)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._passes[way].wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
