"""A PostgreSQL that can be shot and started again, while the daemons keep their addresses of it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Coroutine
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import asyncpg

from coordinator.store.embedded import EmbeddedPostgres, Tools
from tests.chaos.clock import HOUR, SteppedClock

T = TypeVar("T")


class Postgres:
    """A real server on one folder, fsync and all. It lives in a thread of its own: whoever tests may block.

    `stepped`: its clock can be.
    """

    def __init__(self, folder: Path, *, stepped: bool) -> None:
        folder.mkdir()
        self._folder = folder / "data"
        self.clock = SteppedClock(folder, cached=True)
        self._tools = Tools(setpriv=self.clock.wrapped("setpriv")) if stepped else Tools()
        self._begun = time.time()
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
            self._server = self._do(EmbeddedPostgres(self._folder, tools=self._tools).__aenter__())
            self.dsn = self._server.dsn

    def shoot(self) -> None:
        """An immediate shutdown: no checkpoint, no goodbye."""
        assert self._server is not None
        os.kill(self._server.pid, signal.SIGQUIT)
        self._do(self._server.ended())
        self._stop()

    def true_time(self, of: datetime) -> float:
        """When something was by this machine's clock (seconds since the epoch) that bears a time of the database's,
        whose clock may have been an hour off then: since the start it is far less than an hour.
        """
        said = of.timestamp()
        return said - HOUR * round((said - self._begun - HOUR * 0.4) / HOUR)

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
