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


async def _become(dsn: str, revision: str, *, works_since: str) -> None:
    """What the database of a newer version looks like to this one."""
    connection = await asyncpg.connect(dsn)
    script = "INSERT INTO schema_script (name, sha256, works_since) VALUES ($1, 'of the newer one', $2)"
    await connection.execute(script, f"{revision}_more.sql", works_since)
    await connection.execute("UPDATE alembic_version SET version_num = $1", revision)
    await connection.close()


async def test_a_database_of_a_newer_version_is_used_as_long_as_that_says_it_may_be(fresh_database: str) -> None:
    """In a rolling upgrade an old replica may end and start again while the newer ones have migrated already."""
    assert await migrate(fresh_database) == newest_revision()
    await _become(fresh_database, "9998", works_since=newest_revision())
    assert await migrate(fresh_database) == "9998"
    assert await migrate(fresh_database) == "9998"  # and is left as it is
    await _become(fresh_database, "9999", works_since="9998")
    with pytest.raises(BadInput, match=rf"newer version of headrace.*revision 9999.*revision {newest_revision()}"):
        await migrate(fresh_database)


async def test_what_a_later_script_allows_does_not_mend_what_one_before_it_has_ended(fresh_database: str) -> None:
    """A version that cannot use one script's tables cannot use them after the next script either."""
    await migrate(fresh_database)
    await _become(fresh_database, "9998", works_since="9998")
    await _become(fresh_database, "9999", works_since="0001")
    with pytest.raises(BadInput, match="newer version of headrace"):
        await migrate(fresh_database)


async def test_every_script_says_since_when_code_works_on_its_tables(fresh_database: str) -> None:
    """One that said nothing would let versions start that it breaks. Those before the rule are exempt."""
    await migrate(fresh_database)
    connection = await asyncpg.connect(fresh_database)
    kept = dict(await connection.fetch("SELECT left(name, 4), works_since FROM schema_script ORDER BY name"))
    await connection.close()
    assert list(kept)[-1] == newest_revision()
    for revision, since in kept.items():
        assert (since is None) if revision < "0005" else (since is not None and "0001" <= since <= revision), revision


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
    await connection.execute("DROP INDEX run_unfinished, queue_waited, artifact_of_job, producer_of_job, member_of_run")
    await connection.execute("ALTER TABLE run DROP COLUMN forgotten_at")  # and the indexes that name it
    await connection.execute("DROP TABLE expansion, expansion_due")
    await connection.execute("ALTER TABLE schema_script DROP COLUMN works_since")
    await connection.execute("DELETE FROM schema_script WHERE name > '0003'")
    await connection.execute("UPDATE alembic_version SET version_num = '0002'")
    before = set(await connection.fetch(columns))
    await migrate(fresh_database)
    assert set(await connection.fetch(columns)) == after
    assert {row["table_name"] for row in after - before} == {"expansion", "expansion_due", "run", "schema_script"}
    assert await connection.fetchval("SELECT version_num FROM alembic_version") == newest_revision()
    await connection.close()
