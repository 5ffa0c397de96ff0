"""A migrated database a test, and one replica over it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from coordinator.store.migrate import migrate
from tests.harness.postgres import TestServer, fresh_database, postgres_server
from tests.integration.logs.world import World, local_blobs, replica

__all__ = ["database_template", "fresh_database", "postgres_server", "world"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def database_template(postgres_server: TestServer) -> str:
    return await postgres_server.make_template("spine_logs", migrate)


@pytest_asyncio.fixture
async def world(fresh_database: str, tmp_path: Path) -> AsyncIterator[World]:
    async with replica(fresh_database, local_blobs(tmp_path / "blobs")) as world:
        yield world
