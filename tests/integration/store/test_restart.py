"""PostgreSQL dies in the middle of everything and comes back: all that is told of it is StoreDown, and work goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from coordinator.errors import StoreDown
from coordinator.store.database import Database
from coordinator.store.embedded import EmbeddedPostgres
from tests.harness.pgbouncer import PgBouncer

pytestmark = pytest.mark.timeout(180)
WRITERS = 20
ROUNDS = 3


class Load:
    """Writers that never rest: statements by themselves, transactions that wait for one lock, snapshots."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.done: Counter[int] = Counter()
        self.down = 0
        self._changed = asyncio.Condition()

    async def write(self, number: int) -> None:
        """Writes for ever. Whatever it is told but StoreDown is a defect, and ends it."""
        while True:
            try:
                await self._once(number)
            except StoreDown:
                self.down += 1
                await asyncio.sleep(0.01)
            else:
                self.done[number] += 1
            async with self._changed:
                self._changed.notify_all()

    async def until(self, true: Callable[[], bool]) -> None:
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(true), 60)

    async def _once(self, number: int) -> None:
        async with self._database.connection() as db:
            await db.execute("INSERT INTO written (writer) VALUES ($1)", number)
        async with self._database.transaction() as db:
            await db.execute("UPDATE counted SET n = n + 1")
            await db.fetchval("SELECT count(*) FROM written WHERE writer = $1", number)
        async with self._database.snapshot() as db:
            await db.fetch("SELECT n FROM counted")


@pytest.mark.parametrize("pooled", [False, True], ids=["postgres", "pooler"])
async def test_a_database_that_is_shot_under_load_is_only_ever_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, pooled: bool
) -> None:
    """Twenty writers and an immediate shutdown, again and again: nothing but StoreDown is raised anywhere, nothing is
    logged by the driver or the loop, and each writer writes again by itself."""
    async with AsyncExitStack() as up:
        first = await up.enter_async_context(AsyncExitStack())
        postgres = await first.enter_async_context(EmbeddedPostgres(tmp_path / "pg"))
        dsn = postgres.dsn
        if pooled:
            dsn = up.enter_context(PgBouncer(postgres.dsn, tmp_path)).dsn_of(postgres.dsn)
        database = await up.enter_async_context(Database.open(dsn, size=8, pooler=pooled))
        async with database.transaction() as db:
            await db.execute("CREATE TABLE written (writer integer)")
            await db.execute("CREATE TABLE counted AS SELECT 0 AS n")
        load = Load(database)
        writers = [asyncio.create_task(load.write(number)) for number in range(WRITERS)]
        up.push_async_callback(_ended, writers)
        for _ in range(ROUNDS):
            load.done.clear()
            await load.until(lambda: len(load.done) == WRITERS)
            down = load.down
            os.kill(postgres.pid, signal.SIGQUIT)
            await postgres.ended()
            await load.until(lambda was=down: load.down > was + WRITERS)  # type: ignore[misc]
            await first.aclose()
            postgres = await first.enter_async_context(EmbeddedPostgres(tmp_path / "pg"))
            load.done.clear()
            await load.until(lambda: len(load.done) == WRITERS)
            assert not any(writer.done() for writer in writers), [each.exception() for each in writers if each.done()]
    assert [record.getMessage() for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []


async def _ended(writers: list[asyncio.Task[None]]) -> None:
    for each in writers:
        each.cancel()
    ended = await asyncio.gather(*writers, return_exceptions=True)
    assert {type(each) for each in ended} == {asyncio.CancelledError}, ended
