"""What a person is told whose database cannot be brought to this version's schema."""

from __future__ import annotations

from importlib.resources import files

import asyncpg
import pytest

from coordinator.errors import BadInput, StoreDown
from coordinator.store.migrate import migrate, newest_revision
from coordinator.store.migrations.script import digest


@pytest.mark.parametrize("dsn", ["foo", "postgresql://[::1/headrace", "postgresql://a@b:port/c"])
async def test_an_address_that_is_none_is_bad_input_and_is_not_repeated(dsn: str) -> None:
    """A slip in a setting is no mistake of Headrace; the address may hold a password."""
    with pytest.raises(BadInput, match="postgresql://USER") as caught:
        await migrate(dsn)
    assert dsn not in str(caught.value)


async def test_a_database_that_does_not_exist_is_named(fresh_database: str) -> None:
    """`createdb` was forgotten: one sentence says so."""
    base, slash, rest = fresh_database.rpartition("/")
    name, _, options = rest.partition("?")
    with pytest.raises(BadInput, match=r"nowhere.* does not exist"):
        await migrate(f"{base}{slash}{name}_nowhere" + (f"?{options}" if options else ""))


async def test_a_database_that_nobody_serves_is_down() -> None:
    """That may mend itself: it is tried again."""
    with pytest.raises(StoreDown, match="cannot be reached"):
        await migrate("postgresql://nobody@127.0.0.1:1/nothing")


@pytest.mark.parametrize(
    "other", ["UPDATE schema_script SET sha256 = 'of another build'", "DROP TABLE schema_script"], ids=["else", "none"]
)
async def test_a_database_of_another_build_is_refused_before_anything_is_served(
    fresh_database: str, other: str
) -> None:
    """A coordinator once served such a one: every Hello failed on a missing column, and nobody was told why."""
    await migrate(fresh_database)
    await migrate(fresh_database)  # our own is not refused
    connection = await asyncpg.connect(fresh_database)
    await connection.execute(other)
    await connection.close()
    with pytest.raises(BadInput, match="made by another build"):
        await migrate(fresh_database)


SPINE = "a816313857356138f2b39fd43d0ecf31c4905364f829cbd2f11e47fbe3466d0f"
"""Of `0001_spine.sql`, which is in databases of people: what is to be changed is changed by another migration."""


async def test_a_database_of_the_first_schema_is_brought_to_the_newest_with_what_is_in_it(fresh_database: str) -> None:
    """An upgrade is a restart, nothing else."""
    text = files("coordinator.store.migrations.versions").joinpath("0001_spine.sql").read_text("utf-8")
    assert digest(text) == SPINE
    connection = await asyncpg.connect(fresh_database)
    try:
        await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        await connection.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        await connection.execute("INSERT INTO alembic_version VALUES ('0001')")
        await connection.execute(text)
        await connection.execute("INSERT INTO schema_script (name, sha256) VALUES ('0001_spine.sql', $1)", SPINE)
        await connection.execute(
            "INSERT INTO pool (name) VALUES ('default') ON CONFLICT DO NOTHING;"
            "INSERT INTO agent (name, pool, instance, version, labels, slots, sandboxes)"
            " VALUES ('old', 'default', 'i', '0.1.0', '{}', 1, '[]')"
        )
        await migrate(fresh_database)
        assert await connection.fetchval("SELECT version_num FROM alembic_version") == newest_revision()
        row = await connection.fetchrow("SELECT errored, quarantine, refusal FROM agent WHERE name = 'old'")
        assert tuple(row) == (0, "", "")
    finally:
        await connection.close()


async def test_a_database_of_the_version_before_gets_what_is_new(fresh_database: str) -> None:
    """Nothing that was there changes: whoever still runs the version before goes on beside this one."""
    await migrate(fresh_database)
    connection = await asyncpg.connect(fresh_database)
    columns = "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
    after = set(await connection.fetch(columns))
    await connection.execute("DROP INDEX queue_waited, artifact_of_job, producer_of_job, member_of_run")
    await connection.execute("ALTER TABLE run DROP COLUMN forgotten_at")  # and the indexes that name it
    await connection.execute("DROP TABLE expansion, expansion_due")
    await connection.execute("DELETE FROM schema_script WHERE name IN ('0003_late_matrices.sql', '0004_keep.sql')")
    await connection.execute("UPDATE alembic_version SET version_num = '0002'")
    before = set(await connection.fetch(columns))
    await migrate(fresh_database)
    assert set(await connection.fetch(columns)) == after
    assert {row["table_name"] for row in after - before} == {"expansion", "expansion_due", "run"}
    assert await connection.fetchval("SELECT version_num FROM alembic_version") == newest_revision()
    await connection.close()
