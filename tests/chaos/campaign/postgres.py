"""A PostgreSQL that can be shot and started again, while the daemons keep their addresses of it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncpg

from coordinator.store.embedded import EmbeddedPostgres

T = TypeVar("T")


class Postgres:
    """A real server on one folder, fsync and all. It lives in a thread of its own: whoever tests may block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="postgres", daemon=True)
        self._server: EmbeddedPostgres | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        """Starts it, with recovery where it was shot. The address stays what it was."""
        if self._server is None:
            self._server = self._do(EmbeddedPostgres(self._folder).__aenter__())
            self.dsn = self._server.dsn

    def shoot(self) -> None:
        """An immediate shutdown: no checkpoint, no goodbye."""
        assert self._server is not None
        os.kill(self._server.pid, signal.SIGQUIT)
        self._do(self._server.ended())
        self._stop()

    def rows(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """What a statement returns."""
        return self._do(self._rows(statement, values))

    async def _rows(self, statement: str, values: tuple[object, ...]) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.dsn, timeout=10)
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()

    def _stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            self._do(server.__aexit__(None, None, None))

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)
