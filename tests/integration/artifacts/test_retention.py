"""Runs whose time is over: gone with all that is theirs, and nothing that is another's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

import grpc
import pytest

from coordinator.blobs.expiry import Expiry
from coordinator.blobs.keys import artifact_key
from coordinator.blobs.store import StoreUnavailable
from coordinator.dispatch.bells import LocalBells
from coordinator.errors import NotFound, StoreDown
from coordinator.logs.compaction import Compactor
from coordinator.store import retention
from coordinator.store.runs import PostgresRuns
from coordinator.store.singletons import Singleton
from coordinator.store.sql import statements
from coordinator.store.views import Views
from tests.integration.artifacts.test_artifacts import digest, publish, refused
from tests.integration.artifacts.test_expiry import TERM, a_term, download
from tests.integration.logs.test_statements import nodes, plan
from tests.integration.logs.world import Stream, World, make_attempt, make_job, make_run

SQL = statements("retention")
DAY = 86_400
TABLES = (
    *("run", "stage", "cells", "job", "fragment", "dependency", "attempt", "lease", "queue", "group_member"),
    *("log", "log_record", "log_section", "log_segment", "artifact", "artifact_file", "artifact_producer"),
)


class Trouble:
    """A store in which deleting fails, before or after it was done, at the `count`th time."""

    def __init__(self, world: World, count: int, *, after: bool) -> None:
        self._blobs = world.blobs
        self._left = count
        self._after = after

    async def delete(self, keys: Iterable[str]) -> None:
        self._left -= 1
        if self._left or self._after:
            await self._blobs.delete(keys)
        if not self._left:
            raise StoreUnavailable("the store does not answer")


async def sweep(world: World, blobs: object = None, *, days: float = 90) -> Counter[str]:
    """One replica sweeps until there is nothing more to do; returns what it counted."""
    counted: Counter[str] = Counter()
    term = a_term(world)
    expiry = Expiry(
        *(world.database, blobs or world.blobs, term),  # type: ignore[arg-type]  # a store that fails
        keep_runs_s=days * DAY,
        deleted=lambda what, count: counted.update([what] * count),
    )
    try:
        while await expiry.once():
            pass
    finally:
        await term.leave()
    return counted


async def a_full_run(world: World) -> int:
    """A run that has something of everything: two jobs, artifacts, a long log in segments and one that is hot."""
    run = await make_run(world)
    first = await make_job(world, run)
    last = await make_job(world, run, "last", stage=1, needs=["build"])
    for job in (first, last):
        attempt = await make_attempt(world, job)
        await publish(world, run, attempt, f"dist-{job}", b"one", str(job).encode())
        await world.append(Stream(attempt).write(b"x").batch())
    await world.value("INSERT INTO cells (run_id, name, max_parallel, fail_fast) VALUES ($1, 'c', 1, true)", run)
    await world.value(
        "INSERT INTO fragment (run_id, number, job_id, step, sha256, text, added) VALUES ($1, 1, $2, 0, $3, '', 1)",
        *(run, first, bytes.fromhex(digest(b"f"))),
    )
    key = f"logs/{run}/{attempt}/main/000000000000000-{'0' * 16}"
    await world.blobs.put(key, b"segment")
    await world.value(
        """INSERT INTO log_segment (attempt_id, stream, first_sequence, last_sequence, bytes_from, bytes_to, key, size,
                                    sha256, index)
           VALUES ($1, 'other', 1, 1, 0, 1, $2, 7, '', '')""",
        *(attempt, key),
    )
    return run


async def over(world: World, run: int, days: float, *, forgotten: bool = False) -> None:
    """It ended so many days ago; `forgotten`: and was found to be over more than an hour ago."""
    await world.value(
        "UPDATE attempt SET state = 'passed', ended_at = clock_timestamp() WHERE run_id = $1 AND ended_at IS NULL", run
    )
    await world.value(
        """UPDATE run SET state = 'passed', unfinished = 0, active = 0,
               ended_at = clock_timestamp() - make_interval(secs => $2),
               forgotten_at = CASE WHEN $3 THEN clock_timestamp() - interval '61 minutes' END WHERE id = $1""",
        *(run, days * DAY, forgotten),
    )


async def rows(world: World) -> dict[str, int]:
    return {table: await world.value(f"SELECT count(*) FROM {table}") for table in TABLES}


async def objects(world: World, run: int) -> list[str]:
    """The keys of a run's objects that are in the store."""
    keys = {row["key"] for row in await world.fetch("SELECT key FROM log_segment WHERE key IS NOT NULL")}
    for row in await world.fetch(
        "SELECT x.attempt_id, f.sha256 FROM artifact x JOIN artifact_file f ON f.artifact_id = x.id"
    ):
        keys.add(artifact_key(run, row["attempt_id"], row["sha256"].hex()))
    return [key for key in sorted(keys) if key.split("/")[1] == str(run) and await world.blobs.head(key) is not None]


async def still_there(world: World, keys: Iterable[str]) -> list[str]:
    return [key for key in keys if await world.blobs.head(key) is not None]


async def test_an_old_run_goes_with_all_that_is_its_and_another_stays_whole(world: World) -> None:
    """Disks fill otherwise; and what is deleted of one run must be of none that people still look at."""
    old, young = await a_full_run(world), await a_full_run(world)
    before = await rows(world)
    await world.value("INSERT INTO request (id, kind, run_id) VALUES ('request-1', 'create', $1)", old)
    await world.value("INSERT INTO environment (project_id, name, fencing) SELECT id, 'live', 7 FROM project")
    gone, kept = await objects(world, old), await objects(world, young)
    assert len(gone) == len(kept) == 5
    await over(world, young, 89)
    await over(world, old, 91, forgotten=True)
    assert await sweep(world) == {"runs": 1, "objects": 5}
    assert await rows(world) == {table: count // 2 for table, count in before.items()}
    assert (await still_there(world, gone), await still_there(world, kept)) == ([], kept)
    assert await world.value("SELECT run_id FROM request") == old
    assert await world.value("SELECT fencing FROM environment") == 7


async def test_there_is_no_such_run_from_the_moment_that_it_is_forgotten(world: World) -> None:
    """Nobody is shown half of a run, retries it, or is sent to an object that goes; and its objects stay an hour
    longer, for those who were sent to them before."""
    run = await a_full_run(world)
    kept = await objects(world, run)
    await over(world, run, 91)
    views, bells = Views(world.database, LocalBells(lambda _: None)), LocalBells(lambda _: None)
    assert (await views.run(run)).run["id"] == run
    assert await sweep(world) == {}
    assert await still_there(world, kept) == kept
    for asked in (
        views.run(run),
        views.run(0, "r"),
        PostgresRuns(world.database, bells, long_lease_s=600).retry("request-1", run, ""),
    ):
        with pytest.raises(NotFound):
            await asked
    assert await views.runs("", 0, 10) == []
    assert (await refused(download(world, run, "dist")))[0] is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError, match="has no job"):
        [each async for each in world.tail(run, follow=False)]


@pytest.mark.parametrize("why", ["running", "leased", "young", "for ever"])
async def test_a_run_that_may_go_on_or_is_to_be_kept_is_kept(world: World, why: str) -> None:
    """A retry takes an old run back to life, and a lost deployment may yet be reported about."""
    run = await a_full_run(world)
    before = await rows(world)
    if why != "running":
        await over(world, run, 89 if why == "young" else 1000)
    if why == "leased":
        await world.value(
            """INSERT INTO lease (attempt_id, job_id, run_id, agent_id, token, number, at_most_once, permit)
               SELECT id, job_id, run_id, agent_id, token, 1, true, 'n' FROM attempt ORDER BY id LIMIT 1"""
        )
        before["lease"] = 1
    assert await sweep(world, days=0 if why == "for ever" else 90) == {}
    assert await rows(world) == before
    assert await world.value("SELECT forgotten_at FROM run") is None


async def test_a_run_that_is_being_retried_at_this_moment_is_kept(world: World) -> None:
    """Whoever has its lock first decides; the other one is told the truth."""
    run = await a_full_run(world)
    await over(world, run, 91)
    async with world.database.transaction() as db:
        await db.execute("SELECT 1 FROM run WHERE id = $1 FOR UPDATE", run)
        assert await asyncio.wait_for(sweep(world), 30) == {}
        await db.execute("UPDATE run SET state = 'running', unfinished = 1, ended_at = NULL WHERE id = $1", run)
    assert await sweep(world) == {}
    assert await world.value("SELECT forgotten_at FROM run") is None


STEPS = ("delete_files", "close_logs", "delete_segments", "delete_records", "delete_jobs", "delete_run")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["first objects", "last objects", *STEPS])
async def test_a_sweep_that_breaks_off_anywhere_is_taken_up_again(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str, *, after: bool
) -> None:
    """No object is left that nobody knows of: each has a row for as long as it is there."""
    run = await a_full_run(world)
    keys = await objects(world, run)
    await over(world, run, 91, forgotten=True)
    if step in STEPS:
        monkeypatch.setattr(retention, step, _breaks(getattr(retention, step), after=after))
        with pytest.raises(StoreDown):
            await sweep(world)
        monkeypatch.undo()
    else:
        with pytest.raises(StoreUnavailable):
            await sweep(world, Trouble(world, 1 if step == "first objects" else 2, after=after))
    assert await still_there(world, keys) == await objects(world, run)
    await sweep(world)
    assert await still_there(world, keys) == []
    assert set((await rows(world)).values()) == {0}


def _breaks(real: object, *, after: bool) -> object:
    async def broken(*values: object) -> int:
        if after:
            await real(*values)  # type: ignore[operator]
        raise StoreDown("the database does not answer")

    return broken


async def test_a_compaction_under_way_leaves_no_object_that_nobody_knows_of(world: World) -> None:
    """It has read the records and written the object when the run goes: the object has no row that would name it."""
    run = await a_full_run(world)
    await over(world, run, 91, forgotten=True)
    await world.value("UPDATE log SET final_records = next - 1, sealed_at = clock_timestamp()")

    class Slow:
        """A store into which the object is written just as the run is deleted."""

        key = ""

        async def put(self, key: str, data: bytes, *, sha256_hex: str) -> None:
            await world.blobs.put(key, data, sha256_hex=sha256_hex)
            self.key = key
            term = a_term(world)
            held = await term.hold()
            async with world.database.connection() as db:
                assert await retention.close_logs(db, run, str(held))
            await term.leave()

    slow = Slow()
    await world.value("UPDATE log SET bytes = 70000")  # too large to be done with others
    monkey = pytest.MonkeyPatch()
    monkey.setattr("coordinator.logs.compaction.INLINE_MOST", 0)
    try:
        compactor = Compactor(world.database, slow, Singleton(world.database, "compactor", lambda: 0.0))  # type: ignore[arg-type]
        await compactor.once()
    finally:
        monkey.undo()
    assert slow.key
    assert await world.value("SELECT count(*) FROM log_segment WHERE key = $1", slow.key) == 0
    assert await world.value("SELECT count(*) FROM segment_upload WHERE key = $1", slow.key) == 1


async def test_a_replica_without_the_term_deletes_nothing(world: World) -> None:
    """Also none whose term ended while it was at work."""
    run = await a_full_run(world)
    await over(world, run, 91, forgotten=True)
    before = await rows(world)
    async with world.database.connection() as db:
        assert await retention.forget(db, TERM, older_s=DAY) == 0
        for step in (retention.close_logs, retention.delete_records, retention.delete_jobs, retention.delete_run):
            assert await step(db, run, TERM) == 0
        await retention.delete_files(db, await retention.files(db, run), TERM)
        await retention.delete_segments(db, await retention.segments(db, run), TERM)
    assert await rows(world) == before


async def test_the_sweep_reads_what_is_due_and_not_the_history(world: World) -> None:
    """It runs every minute beside a hundred thousand runs that are kept, and deletes one of them by index."""
    run = await a_full_run(world)
    await world.value(
        """INSERT INTO run (project_id, pipeline, pipeline_file, pipeline_text, source, commit, event, trusted,
                            parameters, state, unfinished, active, blocked, failed, canceled, ended_at)
           SELECT min(id), 'p', 'f', '', '', 'c', 'manual', true, '{}', 'passed', 0, 0, 0, 0, 0, clock_timestamp()
           FROM project, generate_series(1, 100000) GROUP BY generate_series"""
    )
    await world.value(
        """INSERT INTO job (run_id, stage, place, key, spec, cls, pool, at_most_once, state, unfinished)
           SELECT r.id, 0, 0, 'k', '', c.id, 'default', false, 'passed', 0 FROM run r, class c WHERE r.id <> $1""",
        run,
    )
    await world.value(
        """INSERT INTO attempt (job_id, run_id, agent_id, token, try, state, ended_at)
           SELECT j.id, j.run_id, g.id, decode(repeat('00', 16), 'hex'), 1, 'passed', clock_timestamp()
           FROM job j, agent g WHERE j.run_id <> $1""",
        run,
    )
    await world.value(
        """INSERT INTO log (attempt_id, stream, final_records, sealed_at)
           SELECT id, 'x', 0, clock_timestamp() FROM attempt"""
    )
    await over(world, run, 91)
    await world.value("INSERT INTO singleton (name, term, replica) VALUES ('expiry', $1, $1)", TERM)
    await world.value("VACUUM ANALYZE")
    for statement, values in (
        (SQL.forget, (TERM, DAY)),
        (SQL.forgotten, ()),
        (SQL.files, (run,)),
        (SQL.close_logs, (run, TERM)),
        (SQL.segments, (run,)),
        (SQL.delete_records, (run, TERM)),
        (SQL.delete_jobs, (run, TERM)),
    ):
        looked = [
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            for node in nodes(await plan(world, statement, *values))
            if node.get("Relation Name") and node["Node Type"] != "ModifyTable"
        ]
        assert sum(looked) < 60, (statement, looked)
