"""The harness that other tests stand on."""

from __future__ import annotations

import asyncpg
import pytest

from tests.harness.postgres import TestServer


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_an_empty_database_of_its_own(fresh_database: str, turn: int) -> None:
    """A test that sees another's tables passes or fails by the order of the day."""
    connection = await asyncpg.connect(fresh_database)
    try:
        await connection.execute("CREATE TABLE only_mine (turn int)")
    finally:
        await connection.close()


async def test_a_prepared_template_is_copied_into_each_database(postgres_server: TestServer) -> None:
    """Migrations run once a session, not once a test."""

    async def prepare(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute("CREATE TABLE prepared (n int)")
        await connection.close()

    dsn = await postgres_server.create_database(await postgres_server.make_template("prepared", prepare))
    connection = await asyncpg.connect(dsn)
    try:
        assert await connection.fetchval("SELECT count(*) FROM prepared") == 0
    finally:
        await connection.close()
        await postgres_server.drop_database(dsn)
