"""What docs/operations/database.md says of the database."""

from __future__ import annotations

from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import asyncpg
import pytest

from coordinator.errors import StoreDown
from coordinator.store.migrate import migrate
from tests.harness.postgres import TestServer
from tests.integration.store.world import J, PostgresWorld

RAISES = "DO $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '{code}'; END $$"


async def test_a_role_that_owns_its_database_is_enough(postgres_server: TestServer) -> None:
    """No superuser is handed out for a CI: it migrates, runs a job, and reads which life of the server answers."""
    dsn = await postgres_server.create_database()
    name = urlsplit(dsn).path.strip("/")
    admin = await asyncpg.connect(dsn)
    await admin.execute("CREATE ROLE plain NOSUPERUSER NOCREATEDB NOCREATEROLE")
    await admin.execute(f'ALTER DATABASE "{name}" OWNER TO plain')
    try:
        async with AsyncExitStack() as up:
            plain = f"{dsn}&role=plain"  # the server lets in one user alone: it becomes the other as it connects
            await migrate(plain)
            world = await PostgresWorld.opened(plain, up)
            made = await world.run(J("a"))
            opened = await world.open(slots=1)
            (job,) = await world.claim(opened.session_id, 1)
            await world.start(job)
            await world.end(job)
            assert await world.state(made[""]) == "passed"
            assert (await world.at.observe()).server
            assert await world.value("SELECT current_user || current_setting('is_superuser')") == "plainoff"
    finally:
        await admin.close()
        await postgres_server.drop_database(dsn)


@pytest.mark.parametrize("code", ["53100", "25006"], ids=["disk full", "read-only"])
async def test_what_the_server_cannot_do_is_told_in_its_own_sentence(postgres: PostgresWorld, code: str) -> None:
    """`/readyz` repeats it: the operator reads what to mend, and no client takes it for a mistake of its own."""
    with pytest.raises(StoreDown, match="No space left on device"):
        await postgres.fetch(RAISES.format(code=code))
