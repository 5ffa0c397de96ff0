"""Both dispatch stores behind one fixture: whatever is tested with `world` holds for the simulation too.

What speaks with PostgreSQL most is held through a pooler in transaction mode as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from coordinator.store.migrate import migrate
from tests.harness.pgbouncer import PgBouncer
from tests.harness.postgres import TestServer, fresh_database, postgres_server
from tests.integration.store.world import MemoryWorld, PostgresWorld, World

__all__ = ["database_template", "fresh_database", "pgbouncer", "postgres", "postgres_server", "world"]

POOLED = {"test_claims", "test_pooler", "test_races", "test_reports", "test_rules", "test_sessions"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`[pooler]` beside `[postgres]`, where that is chosen."""
    pooled = metafunc.module.__name__.rpartition(".")[2] in POOLED
    kinds = ["postgres", "pooler"] if pooled else ["postgres"]
    if "world" in metafunc.fixturenames:
        metafunc.parametrize("world", ["memory", *kinds], indirect=True)
    if "postgres" in metafunc.fixturenames:
        metafunc.parametrize("postgres", kinds, indirect=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def database_template(postgres_server: TestServer) -> str:
    return await postgres_server.make_template("spine_store", migrate)


@pytest.fixture(scope="session")
def pgbouncer(postgres_server: TestServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    """One for the session, as the server is."""
    folder: Path = tmp_path_factory.mktemp("pgbouncer")
    with PgBouncer(postgres_server.dsn, folder) as pooler:
        yield pooler


def _pooler(request: pytest.FixtureRequest) -> PgBouncer | None:
    """It is started for the tests that want it alone."""
    found: PgBouncer | None = request.getfixturevalue("pgbouncer") if request.param == "pooler" else None
    return found


@pytest_asyncio.fixture
async def postgres(request: pytest.FixtureRequest, fresh_database: str) -> AsyncIterator[PostgresWorld]:
    """What only PostgreSQL can show."""
    async with AsyncExitStack() as up:
        yield await PostgresWorld.opened(fresh_database, up, _pooler(request))


@pytest_asyncio.fixture
async def world(
    request: pytest.FixtureRequest, postgres_server: TestServer, database_template: str
) -> AsyncIterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    dsn = await postgres_server.create_database(database_template)
    async with AsyncExitStack() as up:
        up.push_async_callback(postgres_server.drop_database, dsn)
        yield await PostgresWorld.opened(dsn, up, _pooler(request))
