"""Groups that nobody is in any more."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from coordinator.blobs.expiry import Expiry
from coordinator.store.singletons import Singleton
from coordinator.store.sql import statements
from tests.integration.logs.world import local_blobs
from tests.integration.store.world import PostgresWorld

GROUP = "concurrency: {group: %s}\nstages: [{name: a, jobs: {x: {steps: [{run: x}]}}}]\n"


async def groups_left(postgres: PostgresWorld, singleton: Singleton, folder: Path) -> list[str]:
    """The names of groups that are there after a sweep."""
    expiry = Expiry(postgres.database, local_blobs(folder), singleton)
    while await expiry.once():
        pass
    return [row["name"] for row in await postgres.fetch("SELECT name FROM concurrency_group ORDER BY name")]


async def test_a_group_that_nobody_is_in_is_forgotten(postgres: PostgresWorld, tmp_path: Path) -> None:
    """One of each branch that ever was would stay for ever; one that somebody is in, or joins now, must not go."""
    session = (await postgres.open(slots=9)).session_id
    first = await postgres.pipeline(GROUP % "gone")
    await postgres.work(session)
    assert await postgres.state(first[""]) == "passed"
    await postgres.pipeline(GROUP % "held")
    singleton = Singleton(postgres.database, "expiry", lambda: 0.0)
    assert await groups_left(postgres, singleton, tmp_path) == ["held"]
    # Somebody has found its group there, and is not yet in it.
    await postgres.work(session)
    joining = await asyncpg.connect(postgres.dsn)
    transaction = joining.transaction()
    await transaction.start()
    later = await postgres.fetch("SELECT id FROM run ORDER BY id DESC LIMIT 1")
    await joining.execute(statements("groups").make_groups, [later[0]["id"]], [None], ["held"])
    assert await groups_left(postgres, singleton, tmp_path) == ["held"]
    await transaction.rollback()
    assert await groups_left(postgres, singleton, tmp_path) == []
    await joining.close()
    again = await postgres.pipeline(GROUP % "held")
    await postgres.work(session)
    assert await postgres.state(again[""]) == "passed"
