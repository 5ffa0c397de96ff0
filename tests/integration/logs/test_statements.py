"""The statements of logs and artifacts, on the real schema: each can be prepared, the hot ones scan little."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest_asyncio

from coordinator.store.logs import SQL
from coordinator.store.sql import all_statements
from tests.integration.logs.world import TOKEN, World, make_attempt, make_job, make_run

TERM = "00000000-0000-0000-0000-000000000001"
FAMILIES = ("logs.", "artifacts.", "singletons.")


async def test_every_statement_can_be_prepared(world: World) -> None:
    """A statement that nobody ran yet must not fail in front of people."""
    wrong = {}
    async with world.database.connection() as db:
        for name, statement in all_statements().items():
            if name.startswith(FAMILIES):
                try:
                    await db.prepare(statement)
                except asyncpg.PostgresError as error:
                    wrong[name] = str(error)
    assert wrong == {}


@pytest_asyncio.fixture
async def full(world: World) -> AsyncIterator[World]:
    """A database as after a day: many logs, and one of 20,000 records."""
    job = await make_job(world, await make_run(world))
    await make_attempt(world, job)
    await world.value(
        """INSERT INTO attempt (job_id, run_id, agent_id, token, try, state)
           SELECT a.job_id, a.run_id, a.agent_id, a.token, 1, 'running' FROM attempt a, generate_series(1, 5000)"""
    )
    await world.value("INSERT INTO log (attempt_id, stream, next, bytes) SELECT id, 'main', 11, 1000 FROM attempt")
    await world.value(
        """INSERT INTO log_record (attempt_id, stream, sequence, bytes_from, raw_length, record)
           SELECT id, 'main', n, (n - 1) * 100, 100, '' FROM attempt, generate_series(1, 10) n"""
    )
    await world.value(
        """INSERT INTO log_record (attempt_id, stream, sequence, bytes_from, raw_length, record)
           SELECT (SELECT min(id) FROM attempt), 'main', n, (n - 1) * 100, 100, '' FROM generate_series(11, 20000) n"""
    )
    await world.value("UPDATE log SET next = 20001, bytes = 2000000 WHERE attempt_id = (SELECT min(id) FROM attempt)")
    for table in ("attempt", "log", "log_record"):
        await world.value(f"ANALYZE {table}")
    yield world


async def plan(world: World, statement: str, *arguments: object) -> dict[str, Any]:
    async with world.database.connection() as db:
        transaction = db.transaction()
        await transaction.start()
        try:
            found = await db.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *arguments)
        finally:
            await transaction.rollback()
    return dict(json.loads(found)[0]["Plan"])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def scanned(plan: dict[str, Any]) -> dict[str, float]:
    """Rows of tables that were looked at, by table; what no index led to counts as well."""
    rows: dict[str, float] = {}
    for node in nodes(plan):
        if table := node.get("Relation Name"):
            if node["Node Type"] == "ModifyTable":
                continue
            assert "Index" in node["Node Type"] or "Bitmap" in node["Node Type"], f"{node['Node Type']} on {table}"
            looked = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            rows[table] = rows.get(table, 0) + looked
    return rows


async def test_an_append_touches_only_the_rows_of_its_own_streams(full: World) -> None:
    """It is the hottest write there is: its cost must not grow with the logs that are there."""
    ids = [row["id"] for row in await full.fetch("SELECT id FROM attempt ORDER BY id DESC LIMIT 20")]
    count = len(ids)
    found = await plan(
        full,
        SQL.append,
        ids,
        [TOKEN] * count,
        ["main"] * count,
        [11] * count,
        [13] * count,
        [1 + 2 * n for n in range(count)],
        [1200] * count,
        [1 + n // 2 for n in range(2 * count)],
        [1000, 1100] * count,
        [100] * (2 * count),
        [None] * (2 * count),
        [None] * (2 * count),
        [b""] * (2 * count),
    )
    assert found["Actual Rows"] == count
    assert scanned(found) == {"attempt": count, "log": 2 * count}


async def test_a_page_is_read_by_its_key_and_bounded(full: World) -> None:
    """Every reader does it again and again, also on a log of a million records."""
    attempt = await full.value("SELECT min(id) FROM attempt")
    found = await plan(full, SQL.page, attempt, "main", 5_000)
    assert found["Actual Rows"] == 512
    assert scanned(found)["log_record"] <= 513


async def test_the_place_of_an_offset_is_found_by_halving(full: World) -> None:
    """No index of its own for this, which would make every append dearer."""
    attempt = await full.value("SELECT min(id) FROM attempt")
    assert await full.value(SQL.begin, attempt, "main", 1_234_567) == 12_346
    rows = scanned(await plan(full, SQL.begin, attempt, "main", 1_234_567))
    assert rows["log_record"] <= 16


async def test_the_sweep_and_the_compaction_look_at_what_is_due_alone(full: World) -> None:
    """They run for ever beside a history that only grows."""
    await full.value("UPDATE log SET sealed_at = clock_timestamp(), final_records = next - 1, compacted_to = next - 1")
    await full.value("VACUUM ANALYZE log")
    assert scanned(await plan(full, SQL.sealed_to_compact, 64)).get("log", 0) == 0
    assert scanned(await plan(full, SQL.open_to_compact, 1, 1, 64)).get("log", 0) == 0


async def test_small_logs_are_read_and_swapped_by_their_keys(full: World) -> None:
    """It runs beside the appends, hundreds of logs a second."""
    ids = [row["id"] for row in await full.fetch("SELECT id FROM attempt ORDER BY id DESC LIMIT 20")]
    count = len(ids)
    names = ["main"] * count
    await full.value("INSERT INTO singleton (name, term, replica) VALUES ('compactor', $1, $1)", TERM)
    found = await plan(full, SQL.small_records, ids, names, [1] * count, [10] * count)
    assert found["Actual Rows"] == 9 * count
    assert scanned(found) == {"log_record": 9 * count}
    numbers = ([1] * count, [10] * count, [0] * count, [1000] * count)
    found = await plan(full, SQL.swap_small, ids, names, *numbers, *([b"x"] * count for _ in range(3)), TERM)
    assert found["Actual Rows"] == count
    rows = scanned(found)
    assert rows.pop("singleton") == 1
    assert rows == {"log": 2 * count, "log_record": 10 * count}
