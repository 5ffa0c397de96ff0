"""Runs in PostgreSQL: made, canceled, retried. What people ask for, each with a request id."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordinator.core.follow import Changes
from coordinator.core.job import Job
from coordinator.core.plan import CannotRetry, Graph, active_cells, hold, must_enter, retry
from coordinator.core.run import Run
from coordinator.core.stages import CannotDecide, Decision, DoorState, asked_stage, decided
from coordinator.core.states import RUN_OVER, JobState
from coordinator.dispatch.port import Bells, Wake
from coordinator.errors import Conflict, NotFound
from coordinator.store.answers import door_of, gate_of, job_of
from coordinator.store.canceling import cancel_run
from coordinator.store.database import Connection, Database
from coordinator.store.groups import group_from_json, group_to_json, has_place, join
from coordinator.store.inserting import (
    classes_of,
    follow_up,
    insert_cells,
    insert_edges,
    insert_jobs,
    insert_stages,
)
from coordinator.store.new_rows import NewRun
from coordinator.store.settle import lock_runs, settle, write
from coordinator.store.sql import statements

RETENTION = statements("retention")
SQL = statements("runs")
SETTLE = statements("settle")


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Runs that have not ended, and their jobs that have not."""

    runs: int
    jobs: int


class PostgresRuns:
    """The transactions about whole runs."""

    def __init__(self, database: Database, bells: Bells, *, long_lease_s: float) -> None:
        self._database = database
        self._bells = bells
        self._long_lease_s = long_lease_s

    async def run_of_request(self, request_id: str) -> int | None:
        """The run that this CreateRun has made before; None: it is new."""
        async with self._database.connection() as db:
            found: int | None = await db.fetchval(SQL.run_of_request, request_id, "create")
        return found

    async def retried(self, request_id: str) -> bool:
        """Whether this Retry was carried out before."""
        async with self._database.connection() as db:
            return await db.fetchval(SQL.run_of_request, request_id, "retry") is not None

    async def unfinished(self, most: int, *, repository: str = "", run_id: int = 0) -> Unfinished:
        """What the project of a repository, or of a run, has under way; of more than `most` runs, so many."""
        async with self._database.connection() as db:
            row = await db.fetchrow(SQL.unfinished, repository, run_id, most)
        return Unfinished(row["runs"], row["jobs"])

    async def allocate(self, jobs: int) -> tuple[int, Sequence[int]]:
        """Ids for a run and its jobs. Ids that are not used in the end are gaps, nothing more."""
        async with self._database.connection() as db:
            row = await db.fetchrow(SQL.allocate, jobs)
        return row["run_id"], row["job_ids"]

    async def create(self, request_id: str, new: NewRun) -> int:
        """Stores a run and queues its first jobs; returns its id, or that of the run this request made before.

        Raises BadInput for a pool that does not exist, TooMuch beyond 1,000 queued classes.
        """
        async with self._database.transaction() as db:
            if await db.fetchval(SQL.remember_request, request_id, "create", new.id) is None:
                existing: int = await db.fetchval(SQL.run_of_request, request_id, "create")
                return existing
            wake = await _insert(db, new)
        self._bells.ring(wake)
        return new.id

    async def cancel(self, request_id: str, run_id: int, sentence: str) -> None:
        """Cancels what has not begun and asks agents to cancel the rest, but for what runs despite a cancel; again:
        all of it, and without grace.

        A run that has ended is left as it is. Raises NotFound.
        """
        async with self._database.transaction() as db:
            if await db.fetchval(SQL.remember_request, request_id, "cancel", run_id) is None:
                return
            wake = await cancel_run(db, await _locked(db, run_id), sentence)
        self._bells.ring(wake)

    async def decide(self, request_id: str, run_id: int, stage: str, decision: Decision) -> None:
        """Records a person's decision about a stage (empty: the one that waits for an approval), and what follows.

        Raises NotFound, Conflict.
        """
        async with self._database.transaction() as db:
            if await db.fetchval(SQL.remember_request, request_id, "decide", run_id) is None:
                return
            wake = await _decide(db, run_id, stage, decision)
        self._bells.ring(wake)

    async def retry(self, request_id: str, run_id: int, job: str) -> None:
        """Runs a job again, with what depends on it; or all that did not pass. Raises NotFound, Conflict.

        A lost deployment is refused for as long as it may still run out of contact.
        """
        async with self._database.transaction() as db:
            if await db.fetchval(SQL.remember_request, request_id, "retry", run_id) is None:
                return
            wake = await _retry(db, run_id, job, self._long_lease_s)
        self._bells.ring(wake)


async def _insert(db: Connection, new: NewRun) -> Wake:
    classes = await classes_of(db, new.jobs)
    project_id = await db.fetchval(SQL.make_project, new.repository, new.project)
    graph = new.graph
    rows = new.first_rows
    run = rows.run
    await db.execute(
        SQL.insert_run,
        *(new.id, project_id, new.pipeline, new.pipeline_file, new.pipeline_text, new.source, new.commit, new.event),
        *(new.trusted, json.dumps(dict(new.parameters)), new.priority, run.state),
        *(run.unfinished, run.active, run.blocked, run.failed, run.canceled, new.bundle, new.context),
        *(group_to_json(new.concurrency), new.asked),
    )
    await insert_stages(db, new.id, {gate.stage: (new.stages[gate.stage], gate) for gate in rows.gates})
    await insert_cells(db, new.id, new.groups)
    await insert_jobs(db, new.id, new.jobs, rows.jobs, classes, first_place=0)
    await insert_edges(db, new.id, graph.needs)
    held = {key: job for key, job in rows.jobs.items() if job.sentence}
    queued = Changes(run, held, {}, rows.queued, ())
    if new.concurrency is not None:
        await join(db, [(new.id, None, new.concurrency)])
        return Wake(groups=True) | await write(db, [queued], {run.id: run})
    return await follow_up(db, rows, await write(db, [queued], {run.id: run}))


async def _locked(db: Connection, run_id: int) -> Run:
    run = (await lock_runs(db, [run_id])).get(run_id)
    if run is None or await db.fetchval(RETENTION.is_forgotten, run_id):
        raise NotFound(f"there is no run {run_id}")
    return run


async def _decide(db: Connection, run_id: int, wanted: str, decision: Decision) -> Wake:
    run = await _locked(db, run_id)
    asked = {row["index"]: row["name"] for row in await db.fetch(SQL.asked_stages, run_id)}
    if run.state in RUN_OVER:
        asked = {}
    try:
        stage = asked_stage(run_id, asked, wanted)
        door = await door_of(db, run_id, stage)
        after = decided(door, decision)
    except CannotDecide as error:
        raise Conflict(str(error)) from error
    wake = await write(db, [Changes(run, {}, {}, (), (), doors={stage: after})], {run_id: run})
    if after.is_asked:
        return wake | Wake(runs=frozenset({run_id}))
    return wake | await settle(db, {run_id: run}, {}, doors={run_id: (stage,)})


def deployments(changed: Mapping[int, Job]) -> list[int]:
    """Those of a retry that will run without asking a person again."""
    will_run = (JobState.QUEUED, JobState.WAITING)
    return [key for key, job in changed.items() if job.at_most_once and job.state in will_run and not job.asks]


def may_still_run(key: str, rest_s: int) -> str:
    """The sentence for a person who would start a deployment beside itself."""
    return f"`{key}` was lost and may still be running where nobody sees it: retry it in {rest_s} s"


async def _retry(db: Connection, run_id: int, wanted: str, long_lease_s: float) -> Wake:
    run = await _locked(db, run_id)
    jobs = [job_of(row) for row in await db.fetch(SQL.jobs_of_run, run_id)]
    stages = await db.fetch(SQL.stages_of_run, run_id)
    needs = {row["id"]: tuple(row["needs"]) for row in await db.fetch(SQL.edges_of_run, run_id)}
    doors = {row["index"]: DoorState(row["door"]) for row in stages if row["door"]}
    try:
        rows = retry(run, jobs, Graph(len(stages), needs, frozenset(doors)), wanted, doors)
    except CannotRetry as error:
        raise Conflict(str(error)) from error
    enters = must_enter(run, has_place=await has_place(db, run))
    if enters:
        rows = hold(rows)
        await join(db, [(run_id, None, group_from_json(await db.fetchval(SQL.group_of_run, run_id)))])
    before = {job.id: job for job in jobs}
    gates = {gate.stage: gate for gate, row in zip(rows.gates, stages, strict=True) if gate != gate_of(row)}
    changed = {key: job for key, job in rows.jobs.items() if job != before[key]}
    lost = await db.fetchrow(SQL.may_still_run, deployments(changed), long_lease_s)
    if lost is not None:
        raise Conflict(may_still_run(lost["key"], lost["rest"]))
    if rows.closed:
        await db.execute(SQL.reset_doors, run_id, sorted(rows.closed))
    if cells := active_cells(rows.jobs.values()):
        await db.execute(SQL.reset_cells, run_id, list(cells), list(cells.values()))
    wake = await write(db, [Changes(rows.run, changed, gates, rows.queued, ())], {run_id: run})
    return wake | Wake(groups=True) if enters else await follow_up(db, rows, wake)
