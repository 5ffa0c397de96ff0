"""PostgreSQL behind a pooler in transaction mode: limits hold, nothing stays behind, listening goes past it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
import pytest

from coordinator.dispatch.port import Wake
from coordinator.errors import BadInput, StoreDown
from coordinator.store.migrate import migrate
from coordinator.store.wakes import Wakes
from tests.harness.pgbouncer import PgBouncer
from tests.harness.postgres import dsn_at, socket_of
from tests.integration.store.world import J, PostgresWorld

NOTE = '{"replica": "other", "kinds": [], "runs": [7], "logs": []}'
LISTENING = """
SELECT pid FROM pg_stat_activity WHERE application_name = 'headrace listen' AND datname = current_database()
AND pid <> $1 AND state = 'idle' AND (query LIKE '%LISTEN%' OR query LIKE '%wakes.probe%')
"""


async def test_a_statement_that_hangs_ends_with_its_timeout(postgres: PostgresWorld) -> None:
    """By itself, in a transaction, and one that waits for a lock: none may hold a session of the pooler for ever."""

    async def in_a_transaction() -> None:
        async with postgres.database.transaction() as db:
            await db.fetch("SELECT pg_sleep(60)")

    async def behind_a_lock() -> None:
        async with postgres.database.transaction() as db:
            await db.fetch("LOCK TABLE project")

    async with postgres.database.transaction() as db:
        await db.fetch("LOCK TABLE project")
        with pytest.raises(StoreDown, match="lock timeout"):
            await behind_a_lock()
    ended = await asyncio.gather(postgres.fetch("SELECT pg_sleep(60)"), in_a_transaction(), return_exceptions=True)
    assert ["statement timeout" in str(each) and isinstance(each, StoreDown) for each in ended] == [True, True]


async def test_a_limit_ends_with_its_transaction(postgres: PostgresWorld, pgbouncer: PgBouncer) -> None:
    """The session is given to others next, who have their own; ours are never those that another one left."""
    await postgres.fetch("SELECT 1")
    other = await asyncpg.connect(pgbouncer.dsn_of(postgres.dsn), statement_cache_size=0)
    try:
        assert {await other.fetchval("SHOW statement_timeout") for _ in range(10)} == {"0"}
        await other.execute("SET statement_timeout = '1h'")
        shown = {await postgres.value("SELECT current_setting('statement_timeout')") for _ in range(10)}
        assert shown == {"10s"}
    finally:
        await other.close()


async def test_what_raises_or_is_cancelled_leaves_nothing_behind(postgres: PostgresWorld) -> None:
    """Neither a row nor an open transaction: the next one to have the connection would write into it."""

    async def broken(error: type[Exception] | None) -> None:
        async with postgres.database.transaction() as db:
            await db.execute("INSERT INTO pool (name) VALUES ('half')")
            if error is not None:
                raise error
            await db.execute("SELECT pg_sleep(60)")

    with pytest.raises(KeyError):
        await broken(KeyError)
    task = asyncio.create_task(broken(None))
    while not await postgres.fetch("SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'"):  # noqa: ASYNC110 - inside the server
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(asyncpg.UniqueViolationError):
        await postgres.fetch("INSERT INTO pool (name) VALUES ('default')")
    assert [row["name"] for row in await postgres.fetch("SELECT name FROM pool")] == ["default"]
    assert not await postgres.value(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
    )


async def test_a_snapshot_sees_one_moment_and_writes_nothing(postgres: PostgresWorld) -> None:
    """What a page shows fits together."""
    async with postgres.database.snapshot() as db:
        before = await db.fetchval("SELECT count(*) FROM run")
        await postgres.run(J("a"))
        assert await db.fetchval("SELECT count(*) FROM run") == before
        with pytest.raises(StoreDown, match="read-only"):
            async with postgres.database.snapshot() as other:
                await other.execute("DELETE FROM pool")


async def test_a_pooler_where_postgresql_itself_is_needed_is_named(fresh_database: str, pgbouncer: PgBouncer) -> None:
    """Migrations hold a lock of the session; a pooler would leave it with anybody."""
    with pytest.raises(BadInput, match="set HEADRACE_DATABASE_DIRECT_URL"):
        await migrate(pgbouncer.dsn_of(fresh_database))


@contextlib.asynccontextmanager
async def _running(wakes: Wakes) -> AsyncIterator[None]:
    task = asyncio.create_task(wakes.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _listening(postgres: PostgresWorld, but: int = 0) -> int:
    """The server's process that listens, once there is another one than `but`."""
    while not (pid := await postgres.value(LISTENING, but)):  # noqa: ASYNC110 - inside the server
        await asyncio.sleep(0.01)
    return int(pid)


async def test_each_wake_is_heard_though_the_pool_goes_through_a_pooler(postgres: PostgresWorld) -> None:
    """LISTEN belongs to a session: through the pooler nobody would be told, and all would wait for polls."""
    heard: asyncio.Queue[Wake] = asyncio.Queue()
    ear = Wakes(postgres.database, postgres.dsn, "ear", heard=heard.put_nowait, grew=lambda _: None)
    mouth = Wakes(postgres.database, postgres.dsn, "mouth", heard=lambda _: None, grew=lambda _: None)
    async with _running(ear):
        await _listening(postgres)
        async with _running(mouth):
            for number in range(20):
                mouth.tell(Wake(runs=frozenset({number})))
                assert (await asyncio.wait_for(heard.get(), 30)).runs == {number}


class Ways:
    """Ways to the server, each of which can stop to carry anything and say nothing about it."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.open: list[asyncio.Event] = []
        self._carrying: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Yields the address by which the server is reached through them."""
        async with await asyncio.start_server(self._take, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            yield dsn_at(self._dsn, f"127.0.0.1:{port}")
            for each in self._carrying:
                each.cancel()
            await asyncio.wait(self._carrying)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above, below = await asyncio.open_unix_connection(socket_of(self._dsn))
        self.open.append(asyncio.Event())
        self.open[-1].set()
        for source, target in ((reader, below), (above, writer)):
            self._carrying.append(asyncio.create_task(self._carry(source, target, self.open[-1])))

    @staticmethod
    async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, way: asyncio.Event) -> None:
        try:
            while data := await source.read(65536):
                await way.wait()
                target.write(data)
        finally:
            target.close()


async def test_a_listener_that_is_half_open_is_noticed_and_made_anew(postgres: PostgresWorld) -> None:
    """A failover or a firewall ends connections without a word: all wakes would be lost, until the next restart."""
    ways = Ways(postgres.dsn)
    heard: asyncio.Queue[Wake] = asyncio.Queue()
    async with ways.serving() as dsn:
        ear = Wakes(postgres.database, dsn, "ear", heard=heard.put_nowait, grew=lambda _: None, probe_s=0.2)
        async with _running(ear):
            first = await _listening(postgres)
            ways.open[0].clear()
            await _listening(postgres, but=first)
            await postgres.fetch("SELECT pg_notify('headrace', $1)", NOTE)
            assert (await asyncio.wait_for(heard.get(), 30)).runs == {7}
