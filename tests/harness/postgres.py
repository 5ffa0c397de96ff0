"""A real PostgreSQL for tests: one server a session, one fresh database a test.

```python
from tests.harness.postgres import database_template, fresh_database, postgres_server  # in a conftest.py
async def test_...(fresh_database: str): connection = await asyncpg.connect(fresh_database)
```

A conftest that wants tables in each fresh database overrides `database_template` with a session fixture that
calls `await postgres_server.make_template("name", prepare)`.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
import pytest_asyncio

from coordinator.store.embedded import EmbeddedPostgres


def socket_of(dsn: str) -> str:
    """The path of the socket of a server that is reached by one."""
    (folder,) = parse_qs(urlsplit(dsn).query)["host"]
    return f"{folder}/.s.PGSQL.5432"


def dsn_at(dsn: str, address: str) -> str:
    """The same database where a proxy before its socket listens, at HOST:PORT."""
    parts = urlsplit(dsn)
    return f"postgresql://{parts.netloc.rpartition('@')[0]}@{address}{parts.path}?sslmode=disable"


class TestServer:
    """A running server that makes and drops databases. Not for tests of durability: fsync is off."""

    __test__ = False

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._postgres = postgres
        self._numbers = itertools.count(1)

    @property
    def dsn(self) -> str:
        """The server's own database: use `create_database` for one to write to."""
        return self._postgres.dsn

    def dsn_of(self, database: str) -> str:
        return self._postgres.dsn.replace("/headrace?", f"/{database}?")

    async def create_database(self, template: str = "template1") -> str:
        """Make a database as a copy of the template (nobody may be connected to that) and return its DSN."""
        name = f"test_{next(self._numbers)}"
        await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.dsn_of(name)

    async def drop_database(self, dsn: str) -> None:
        """Drop a database, and whoever is still connected to it."""
        name = dsn.split("@/", 1)[1].split("?", 1)[0]
        await self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    async def make_template(self, name: str, prepare: Callable[[str], Awaitable[None]]) -> str:
        """Make a database, have it prepared (migrated, say) through its DSN, and return its name for copies."""
        await self._execute(f'CREATE DATABASE "{name}"')
        await prepare(self.dsn_of(name))
        return name

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server() -> AsyncIterator[TestServer]:
    with tempfile.TemporaryDirectory(prefix="hr-pg-") as folder:
        settings = {"fsync": "off", "max_connections": "200"}
        async with EmbeddedPostgres(Path(folder), settings=settings) as postgres:
            yield TestServer(postgres)


@pytest.fixture(scope="session")
def database_template() -> str:
    """The database that `fresh_database` copies."""
    return "template1"


@pytest_asyncio.fixture
async def fresh_database(postgres_server: TestServer, database_template: str) -> AsyncIterator[str]:
    """The DSN of a database of the test's own, dropped afterwards."""
    dsn = await postgres_server.create_database(database_template)
    yield dsn
    await postgres_server.drop_database(dsn)
