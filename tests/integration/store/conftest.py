"""Both dispatch stores behind one fixture: whatever is tested with `world` holds for the simulation too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from coordinator.store.migrate import migrate
from tests.harness.postgres import TestServer, fresh_database, postgres_server
from tests.integration.store.world import MemoryWorld, PostgresWorld, World

__all__ = ["database_template", "fresh_database", "postgres", "postgres_server", "world"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def database_template(postgres_server: TestServer) -> str:
    return await postgres_server.make_template("spine_store", migrate)


@pytest_asyncio.fixture
async def postgres(fresh_database: str) -> AsyncIterator[PostgresWorld]:
    """What only PostgreSQL can show."""
    async with AsyncExitStack() as up:
        yield await PostgresWorld.opened(fresh_database, up)


@pytest_asyncio.fixture(params=["memory", "postgres"])
async def world(
    request: pytest.FixtureRequest, postgres_server: TestServer, database_template: str
) -> AsyncIterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    dsn = await postgres_server.create_database(database_template)
    async with AsyncExitStack() as up:
        up.push_async_callback(postgres_server.drop_database, dsn)
        yield await PostgresWorld.opened(dsn, up)
