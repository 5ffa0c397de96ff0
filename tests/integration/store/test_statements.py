"""Every statement on the real schema; the hot ones with the plan that they must have, on a full database."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from coordinator.store.sql import all_statements, statements
from tests.harness.postgres import TestServer
from tests.integration.store.full import Full, filled
from tests.integration.store.world import J, PostgresWorld

DISPATCH = statements("dispatch")
SETTLE = statements("settle")
RUNS = statements("runs")
QUEUED = 1_000_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(postgres_server: TestServer, database_template: str) -> AsyncIterator[dict[str, Full]]:
    """`much`: a million queued jobs, 1,000 agents, and as much history; `little`: 80 and 10."""
    found, dsns = {}, []
    for name, jobs, agents in (("much", QUEUED, 1000), ("little", 80, 10)):
        dsn = await postgres_server.create_database(database_template)
        dsns.append(dsn)
        async with AsyncExitStack() as up:
            world = await PostgresWorld.opened(dsn, up)
            await world.run(*(J(f"c{n}", labels=(("n", str(n)),)) for n in range(4)))
        found[name] = Full(await filled(dsn, jobs, agents))
    yield found
    for full in found.values():
        await full.db.close()
    for dsn in dsns:
        await postgres_server.drop_database(dsn)


on_one_loop = pytest.mark.asyncio(loop_scope="module")


@on_one_loop
@pytest.mark.parametrize("name", sorted(all_statements()))
async def test_every_statement_fits_the_schema(both: dict[str, Full], name: str) -> None:
    """A column renamed in a migration and forgotten in a statement would be found by a user."""
    await both["little"].db.prepare(all_statements()[name])


WHOLE = {
    "fleet.pools": {"queue"},
    "fleet.queued_without_place": {"job", "queue"},  # of jobs those that are queued: here all
}
"""What reads a table that grows from end to end, once, and may: it counts, for a scrape or a page of the fleet."""
SMALL = {
    *("agent", "session", "lease", "pool", "project", "class", "singleton", "project_share", "environment"),
    "segment_upload",
}
"""Tables that grow with the fleet and the projects, and not with what they do; and what is under way at a moment."""


@on_one_loop
async def test_no_statement_reads_a_table_that_grows_from_end_to_end(both: dict[str, Full]) -> None:
    """By the plan that it has in the end, at a million jobs: also a statement that is written tomorrow."""
    found = {}
    for name, statement in all_statements().items():
        plan = await both["much"].expected(statement)
        tables = {node["Relation Name"] for node in plan.nodes if node["Node Type"] == "Seq Scan"} - SMALL
        if unexpected := tables - WHOLE.get(name, set()):
            found[name] = unexpected
    assert not found


@on_one_loop
async def test_a_claim_reads_the_queue_in_order_and_no_more_than_it_takes(both: dict[str, Full]) -> None:
    """It costs the same with a million queued jobs as with a few: by rows, not by time."""
    rows = {}
    for name, full in both.items():
        classes = [row["id"] for row in await full.db.fetch(DISPATCH.classes)]
        assert len(classes) == 4
        plan = await full.plan(DISPATCH.claim, classes, 5)
        assert name == "little" or plan.scans("queue") == {"queue_order", "queue_pkey"}
        rows[name] = plan.rows
    # At most what was asked for of each class, and the picked ones once more, to delete them.
    assert rows["much"] <= 4 * 5 + 5
    assert rows["much"] <= rows["little"]


@on_one_loop
async def test_the_classes_are_found_by_one_probe_each(both: dict[str, Full]) -> None:
    """A loose index scan: the depth of the queue does not matter."""
    plan = await both["much"].plan(DISPATCH.classes)
    assert "Seq Scan" not in plan.scans("queue")
    assert plan.rows < 50


@on_one_loop
async def test_a_heartbeat_touches_its_own_sessions_and_their_leases(both: dict[str, Full]) -> None:
    """Twenty agents of a thousand: nothing of the others is read."""
    full = both["much"]
    mine = [row["id"] for row in await full.db.fetch("SELECT id FROM session LIMIT 20")]
    beat = await full.plan(DISPATCH.beat, mine)
    assert beat.scans("session") == {"session_pkey"}
    assert beat.rows <= 40
    missing = await full.plan(DISPATCH.missing, mine, [5] * 20, [], [])
    assert missing.scans("lease") == {"lease_of_session"}
    assert missing.rows <= 20 * 4 * 2


@on_one_loop
async def test_the_reaper_reads_the_sessions_and_nothing_else(both: dict[str, Full]) -> None:
    """Its look grows with the fleet, never with the queue or the history; what it ends, it finds by key."""
    full = both["much"]
    assert (await full.plan(DISPATCH.counters)).rows == 1000
    await full.db.execute(
        "INSERT INTO singleton (name, term, replica) VALUES ('reaper', gen_random_uuid(), gen_random_uuid())"
    )
    term = await full.db.fetchval("SELECT term FROM singleton")
    silent = [row["id"] for row in await full.db.fetch("SELECT id FROM session LIMIT 3")]
    expire = await full.plan(DISPATCH.expire, silent, [0, 0, 0], term)
    assert expire.scans("session") == {"session_pkey"}
    leases = await full.plan(DISPATCH.leases_of_sessions, silent)
    assert leases.scans("lease") == {"lease_of_session"}
    assert leases.rows <= 12


@on_one_loop
async def test_what_follows_an_outcome_is_found_by_index(both: dict[str, Full]) -> None:
    """The direct dependents, the gates of the run, the jobs behind a gate: never the whole table."""
    full = both["much"]
    await full.db.execute("UPDATE job SET state = 'waiting', unfinished = 1 WHERE run_id = 1000500")
    dependents = await full.plan(SETTLE.dependents, [1049900, 1049901])
    assert "Seq Scan" not in dependents.scans("dependency") | dependents.scans("job")
    assert dependents.rows <= 8
    gates = await full.plan(SETTLE.gates, [1000500])
    assert gates.scans("stage") == {"stage_pkey"}
    assert gates.rows == 2
    behind = await full.plan(SETTLE.behind, [1000500], [1])
    assert "Seq Scan" not in behind.scans("job")
    assert behind.rows <= 110, "of one run at most"
    needs = await full.plan(SETTLE.needs_of, [1049901, 1049902])
    assert "Seq Scan" not in needs.scans("dependency") | needs.scans("job")
    assert needs.rows <= 8
    locked = await full.plan(SETTLE.lock_runs, [1000500, 1000501])
    assert locked.scans("run") == {"run_pkey"}


@on_one_loop
async def test_the_sweeps_that_must_find_nothing_read_nothing(both: dict[str, Full]) -> None:
    """`mend` runs for ever over all jobs there are: a partial index makes it free."""
    plan = await both["much"].plan(DISPATCH.waiting_for_nothing)
    assert plan.scans("job") == {"job_waiting_for_nothing"}
    assert plan.rows == 0


@on_one_loop
async def test_what_a_project_has_under_way_is_counted_no_further_than_the_bound(both: dict[str, Full]) -> None:
    """At every run that is made: 10,000 are under way here, beside 100,000 that have ended."""
    full = both["much"]
    repository = await full.db.fetchval("SELECT repository FROM project")
    for values in ((repository, 0), ("", 1000500)):
        plan = await full.plan(RUNS.unfinished, *values, 100)
        assert plan.scans("run") - {"run_pkey"} == {"run_unfinished"}
        assert plan.rows <= 100 + 2
    assert (await full.db.fetchrow(RUNS.unfinished, repository, 0, 100))["runs"] == 100
    assert (await full.db.fetchrow(RUNS.unfinished, "of nobody", 0, 100))["runs"] == 0


@on_one_loop
async def test_a_guard_would_see_a_claim_that_sorts_the_whole_queue(both: dict[str, Full]) -> None:
    """The statement that one writes first, and that does 16 claims a second at a million queued rows."""
    classes = [row["id"] for row in await both["much"].db.fetch(DISPATCH.classes)]
    plan = await both["much"].plan(
        "SELECT job_id FROM queue WHERE cls = ANY($1) ORDER BY prio DESC, vt, job_id LIMIT 5 FOR UPDATE SKIP LOCKED",
        classes,
    )
    assert plan.rows > QUEUED / 2


def test_statements_have_names_and_reasons() -> None:
    """What a database administrator sees in pg_stat_activity begins with the name."""
    assert all(re.match(r"/\* [a-z_]+\.[a-z_0-9]+ \*/ ", text) for text in all_statements().values())


@on_one_loop
async def test_an_agent_that_names_very_many_attempts_costs_no_more_than_reading_them(both: dict[str, Full]) -> None:
    """Compared one by one with each lease, a million names took twelve seconds, and every heartbeat failed."""
    full = both["much"]
    mine = [row["id"] for row in await full.db.fetch("SELECT id FROM session LIMIT 20")]
    plan = await full.plan(DISPATCH.missing, mine, [5] * 20, [mine[0]] * 20_000, list(range(20_000)))
    assert any(node.get("Join Type") == "Anti" for node in plan.nodes)


@on_one_loop
async def test_who_is_told_another_reason_is_found_by_index(both: dict[str, Full]) -> None:
    """It is asked at every bell of the queue, and nearly always there is nobody."""
    full = both["much"]
    classes = [row["id"] for row in await full.db.fetch(DISPATCH.classes)]
    plan = await full.plan(DISPATCH.queued_with_other_reason, classes, ['""'] * len(classes))
    assert plan.scans("job") == {"job_reason"}
    assert plan.rows <= 10


@on_one_loop
async def test_what_an_agent_holds_is_found_by_index(both: dict[str, Full]) -> None:
    """At every Hello: a fleet that reconnects would read all leases once for each agent."""
    plan = await both["much"].plan(DISPATCH.leases_of_agent, 1000001)
    assert plan.scans("lease") == {"lease_of_agent"}


@on_one_loop
async def test_what_looks_for_time_that_is_over_reads_what_is_over(both: dict[str, Full]) -> None:
    """Each is asked for ever, and finds next to nothing: an index that is read to its end is no help."""
    full = both["much"]
    classes = [row["id"] for row in await full.db.fetch(DISPATCH.classes)]
    await full.db.execute("UPDATE job SET due_at = clock_timestamp() + interval '1 h' WHERE id < 1050000")
    for statement, values in (
        (DISPATCH.forget_requests, ()),
        (DISPATCH.queued_too_long, (86_400, classes)),
        (SETTLE.due, ()),
        (SETTLE.expired_doors, ()),
    ):
        plan = await full.plan(statement, *values)
        assert plan.rows <= len(classes), statement


@on_one_loop
async def test_the_pools_are_counted_in_one_pass(both: dict[str, Full]) -> None:
    """At every scrape: once for each pool would be ten times a million rows where there are ten pools."""
    full = both["much"]
    await full.db.execute("INSERT INTO pool (name) SELECT 'p' || n FROM generate_series(1, 9) n")
    plan = await full.plan(statements("fleet").pools)
    assert sum(node["Actual Loops"] for node in plan.nodes if node.get("Relation Name") == "queue") == 1


async def test_requests_are_forgotten_after_a_week(postgres: PostgresWorld) -> None:
    """They are kept for whoever asks again, not for ever."""
    for request in ("request-old", "request-new"):
        await postgres.run(J("a"), request=request)
    await postgres.fetch("UPDATE request SET created_at = created_at - interval '8 days' WHERE id = 'request-old'")
    await postgres.at.mend(3600)
    assert [row["id"] for row in await postgres.fetch("SELECT id FROM request")] == ["request-new"]
