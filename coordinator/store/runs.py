"""Runs in PostgreSQL: made, canceled, retried. What people ask for, each with a request id."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from coordinator.core.follow import Changes
from coordinator.core.job import Job, Turn
from coordinator.core.matching import Requirement
from coordinator.core.plan import CannotRetry, Graph, Rows, active_cells, begin, hold, retry
from coordinator.core.rules import NO_RULES, Rules, rules_to_json
from coordinator.core.run import Run
from coordinator.core.stages import CannotDecide, Decision, DoorState, Group, asked_stage, decided
from coordinator.core.states import RUN_OVER, JobState
from coordinator.dispatch.port import Bells, Wake
from coordinator.errors import BadInput, Conflict, NotFound, TooMuch, Violation
from coordinator.store.answers import door_of, gate_of, job_of
from coordinator.store.canceling import cancel_run
from coordinator.store.database import Connection, Database
from coordinator.store.groups import group_from_json, group_to_json, join
from coordinator.store.settle import lock_runs, settle, write
from coordinator.store.sql import statements
from headrace.pipeline.plan import Concurrency

SQL = statements("runs")
SETTLE = statements("settle")

# Every claim probes each class that has something queued.
MOST_CLASSES = 1000
# A job goes to its agent in one message.
MOST_SPEC = 4 << 20


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be stored. `needs`: keys, or None for all jobs of all earlier stages."""

    id: int
    key: str
    stage: int
    needs: tuple[str, ...] | None
    spec: bytes
    requirement: Requirement
    environment: str
    name: str = ""
    """In the file."""
    cell: str = ""
    """JSON: the cell and its shard; empty: it is no copy."""
    rules: Rules = NO_RULES
    context: str = ""
    """JSON: what its condition sees of the event; empty where it has none."""
    wants_needs: bool = False
    """Its agent evaluates `needs`."""


@dataclass(frozen=True, slots=True)
class NewStage:
    """A stage to be stored. `rules`: what its door goes by, as JSON; empty: it has none."""

    name: str
    environment: str = ""
    rules: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be stored, with ids that `allocate` gave."""

    id: int
    repository: str
    project: str
    pipeline: str
    pipeline_file: str
    pipeline_text: bytes
    source: bytes
    commit: str
    event: str
    trusted: bool
    parameters: Mapping[str, str]
    priority: int
    stages: tuple[NewStage, ...]
    """In order."""
    jobs: tuple[NewJob, ...]
    groups: tuple[Group, ...] = ()
    concurrency: Concurrency | None = None
    """The group of runs that it enters before its first job."""
    context: str = "{}"
    """JSON: what its stages' expressions see of the event."""

    @property
    def graph(self) -> Graph:
        """Its edges."""
        ids = {job.key: job.id for job in self.jobs}
        needs = {job.id: tuple(ids[key] for key in job.needs) for job in self.jobs if job.needs is not None}
        guarded = frozenset(index for index, stage in enumerate(self.stages) if stage.rules)
        return Graph(len(self.stages), needs, guarded)

    @property
    def first_rows(self) -> Rows:
        """How it begins: what waits for nothing queued, or held where the run has to enter a group first."""
        jobs = [
            Job(job.id, job.key, job.stage, at_most_once=bool(job.environment), rules=job.rules) for job in self.jobs
        ]
        rows = begin(self.id, jobs, self.graph)
        if self.concurrency is None:
            return rows
        return hold(replace(rows, run=replace(rows.run, group=self.concurrency.group)))

    bundle: bytes | None = None
    """SHA-256 of the git bundle that the source names."""


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
    for job in new.jobs:
        if len(job.spec) > MOST_SPEC:
            sentence = f"job `{job.key}` takes {len(job.spec):,} bytes to describe: at most {MOST_SPEC:,} fit"
            raise BadInput(sentence, (Violation("jobs", sentence),))
    classes = await _classes(db, [job.requirement for job in new.jobs])
    project_id = await db.fetchval(SQL.make_project, new.repository, new.project)
    graph = new.graph
    rows = new.first_rows
    run = rows.run
    await db.execute(
        SQL.insert_run,
        *(new.id, project_id, new.pipeline, new.pipeline_file, new.pipeline_text, new.source, new.commit, new.event),
        *(new.trusted, json.dumps(dict(new.parameters)), new.priority, run.state),
        *(run.unfinished, run.active, run.blocked, run.failed, run.canceled, new.bundle, new.context),
        group_to_json(new.concurrency),
    )
    await db.execute(
        SQL.insert_stages,
        *(new.id, [gate.stage for gate in rows.gates]),
        *([stage.name for stage in new.stages], [stage.environment for stage in new.stages]),
        *([gate.unfinished for gate in rows.gates], [gate.failed for gate in rows.gates]),
        [gate.decider for gate in rows.gates],
        *(["closed" if stage.rules else None for stage in new.stages], [stage.rules for stage in new.stages]),
        [stage.url for stage in new.stages],
    )
    if new.groups:
        groups = [(each.name, each.max_parallel, each.fail_fast) for each in new.groups]
        await db.execute(SQL.insert_cells, new.id, *map(list, zip(*groups, strict=True)))
    await db.execute(
        SQL.insert_jobs,
        *(new.id, [job.id for job in new.jobs], [job.stage for job in new.jobs], list(range(len(new.jobs)))),
        *([job.key for job in new.jobs], [None if job.needs is None else json.dumps(job.needs) for job in new.jobs]),
        *([job.spec for job in new.jobs], classes, [job.requirement.pool for job in new.jobs]),
        *([bool(job.environment) for job in new.jobs], [job.environment for job in new.jobs]),
        *([rows.jobs[job.id].state for job in new.jobs], [rows.jobs[job.id].unfinished for job in new.jobs]),
        *([job.name for job in new.jobs], [job.cell for job in new.jobs]),
        *([rules_to_json(job.rules) for job in new.jobs], [job.context for job in new.jobs]),
        [job.wants_needs for job in new.jobs],
    )
    edges = [(need, job) for job, found in graph.needs.items() for need in found]
    if edges:
        await db.execute(SQL.insert_dependencies, new.id, [need for need, _ in edges], [job for _, job in edges])
    held = {key: job for key, job in rows.jobs.items() if job.turn is not Turn.NONE}
    queued = Changes(run, held, {}, rows.queued, ())
    if new.concurrency is not None:
        await join(db, new.id, None, new.concurrency)
        return Wake(groups=True) | await write(db, [queued], {run.id: run})
    return await _follow_up(db, rows, await write(db, [queued], {run.id: run}))


async def _follow_up(db: Connection, rows: Rows, wake: Wake) -> Wake:
    """Judges what nothing holds, and looks at doors that may be looked at."""
    if not rows.events and not rows.doors:
        return wake
    run_id = rows.run.id
    events = {run_id: rows.events} if rows.events else {}
    doors = {run_id: rows.doors} if rows.doors else {}
    return wake | await settle(db, {run_id: rows.run}, events, doors=doors)


async def _classes(db: Connection, requirements: Sequence[Requirement]) -> list[int]:
    """The class of each requirement, made where it is new."""
    wanted = sorted({each.pool for each in requirements})
    known = {row["name"] for row in await db.fetch(SQL.pools, wanted)}
    if missing := [pool for pool in wanted if pool not in known]:
        there = ", ".join(f"`{row['name']}`" for row in await db.fetch(SQL.all_pools))
        sentence = f"pool `{missing[0]}` does not exist: a pool exists from its first agent; there are {there}"
        raise BadInput(sentence, (Violation("pool", sentence),))
    if await db.fetchval(SQL.count_queued_classes) >= MOST_CLASSES:
        raise TooMuch(f"jobs of {MOST_CLASSES} different requirements are queued: wait until some have run", 30)
    columns = (
        [each.pool for each in requirements],
        [json.dumps(dict(each.labels), sort_keys=True) for each in requirements],
        [each.sandbox for each in requirements],
        [each.network for each in requirements],
        [each.trusted for each in requirements],
        [each.cpu for each in requirements],
        [each.memory for each in requirements],
        [each.hard_limits for each in requirements],
    )
    known = await db.fetch(SQL.classes, *columns)
    if len(known) < len(requirements):
        await db.execute(SQL.make_classes, *columns)
        known = await db.fetch(SQL.classes, *columns)
    return [row["id"] for row in known]


async def _locked(db: Connection, run_id: int) -> Run:
    run = (await lock_runs(db, [run_id])).get(run_id)
    if run is None:
        raise NotFound(f"there is no run {run_id}")
    return run


async def _decide(db: Connection, run_id: int, wanted: str, decision: Decision) -> Wake:
    run = await _locked(db, run_id)
    asked = {row["index"]: row["name"] for row in await db.fetch(SQL.asked_stages, run_id)}
    if run.state in RUN_OVER or run.canceling:  # what was asked before a cancel is asked no more
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
    enters = bool(run.group) and run.state in RUN_OVER
    if enters:
        rows = hold(rows)
        await join(db, run_id, None, group_from_json(await db.fetchval(SQL.group_of_run, run_id)))
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
    return wake | Wake(groups=True) if enters else await _follow_up(db, rows, wake)
