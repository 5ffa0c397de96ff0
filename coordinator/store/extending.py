"""Runs that grow: what a step adds is stored with all that follows, in one transaction under the run's lock."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from coordinator.core.door_rules import rules_from_json
from coordinator.core.extend import Addition, CannotExtend, Extended, Standing, extend
from coordinator.core.follow import Changes
from coordinator.core.plan import Graph, Rows
from coordinator.core.run import Run
from coordinator.core.stages import Door, DoorState
from coordinator.dispatch.port import Bells, Wake
from coordinator.errors import Conflict, StaleToken
from coordinator.store.answers import gate_of, job_of
from coordinator.store.database import Connection, Database
from coordinator.store.inserting import classes_of, follow_up, insert_cells, insert_edges, insert_jobs, insert_stages
from coordinator.store.new_rows import Growth, NewFragment, NewJob
from coordinator.store.settle import lock_runs, write
from coordinator.store.sql import statements
from headrace.pipeline.late_matrix import Lists

SQL = statements("extending")
RUNS = statements("runs")


@dataclass(frozen=True, slots=True)
class Kept:
    """A fragment that was added. `job`: the name of its job in the file; `added`: how many jobs."""

    job_id: int
    job: str
    pool: str
    step: int
    sha256: bytes
    text: bytes
    added: int


@dataclass(frozen=True, slots=True)
class Basis:
    """What an extension is planned by. `asked`: a serialised `CreateRunRequest` but for `text`, the pipeline's."""

    run_id: int
    job_id: int
    job: str
    depth: int
    asked: bytes
    text: bytes
    trusted: bool
    fragments: tuple[Kept, ...]
    lists: Lists
    """What matrices from expressions have come to."""
    revision: int
    """How often the run has grown, and its matrices have changed."""


class Overtaken(Exception):
    """Something was added while this was planned: plan it anew."""


class PostgresExtensions:
    """The transactions by which runs grow."""

    def __init__(self, database: Database, bells: Bells) -> None:
        self._database = database
        self._bells = bells

    async def basis(self, attempt_id: int, token: bytes) -> Basis:
        """What the run of a live attempt is made of by now. Raises StaleToken."""
        async with self._database.snapshot() as db:
            row = await db.fetchrow(SQL.basis, attempt_id, token)
            if row is None:
                raise stale(attempt_id)
            return await basis_of(db, row)

    async def allocate(self, jobs: int) -> Sequence[int]:
        """Ids for jobs. Those that are not used in the end are gaps, nothing more."""
        async with self._database.connection() as db:
            row = await db.fetchrow(RUNS.allocate, jobs)
        ids: Sequence[int] = row["job_ids"]
        return ids

    async def extend(self, run_id: int, attempt_id: int, token: bytes, new: NewFragment) -> None:
        """Adds a fragment to its run, whole.

        Raises StaleToken, Overtaken, Conflict for what the run does not admit, and as `create` of a run does.
        """
        async with self._database.transaction() as db:
            run = (await lock_runs(db, [run_id])).get(run_id)
            parent = await db.fetchval(SQL.still_lives, attempt_id, token)
            if run is None or parent is None:
                raise stale(attempt_id)
            if await db.fetchval(SQL.revision, run_id) != new.revision:
                raise Overtaken
            wake = await _extend(db, run, parent, new)
        self._bells.ring(wake)


def stale(attempt_id: int) -> StaleToken:
    """The error for an attempt that is over."""
    return StaleToken(f"attempt {attempt_id} is over, or was given to somebody else")


def extended(now: Standing, parent: int, new: NewFragment, ids: Mapping[str, int]) -> Extended:
    """What the core makes of a fragment. `ids`: of the jobs that are there, by key. Raises Conflict."""
    assert len(new.stages) == now.graph.stages + len(new.new_stages), "planned anew, the run has other stages"
    addition = Addition([job.row for job in new.jobs], new.edges(ids), new.new_stages, new.guarded)
    try:
        return extend(now, parent, addition)
    except CannotExtend as error:
        raise Conflict(str(error)) from error


async def basis_of(db: Connection, row: asyncpg.Record) -> Basis:
    """What a run is made of by now, from a row about one of its jobs."""
    kept = await db.fetch(SQL.fragments, row["run_id"])
    lists = await db.fetch(SQL.lists, row["run_id"])
    return Basis(
        run_id=row["run_id"],
        job_id=row["job_id"],
        job=row["key"],
        depth=row["depth"],
        asked=row["asked"],
        text=row["pipeline_text"],
        trusted=row["trusted"],
        fragments=tuple(
            Kept(each["job_id"], each["name"], each["pool"], each["step"], each["sha256"], each["text"], each["added"])
            for each in kept
        ),
        lists={each["key"]: json.loads(each["lists"]) for each in lists},
        revision=await db.fetchval(SQL.revision, row["run_id"]),
    )


async def standing_of(db: Connection, run: Run) -> Standing:
    """A whole run whose row is locked."""
    jobs = [job_of(row) for row in await db.fetch(RUNS.jobs_of_run, run.id)]
    needs = {row["id"]: tuple(row["needs"]) for row in await db.fetch(RUNS.edges_of_run, run.id)}
    gates, doors = [], {}
    for row in await db.fetch(RUNS.stages_of_run, run.id):
        index = row["index"]
        gates.append(gate_of(row))
        if row["door"]:
            condition, approval = rules_from_json(row["rules"])
            doors[index] = Door(index, row["name"], DoorState(row["door"]), condition, approval)
    return Standing(run, jobs, Graph(len(gates), needs, frozenset(doors)), gates, doors)


async def _extend(db: Connection, run: Run, parent: int, new: NewFragment) -> Wake:
    now = await standing_of(db, run)
    ids = {job.key: job.id for job in now.jobs}
    made = extended(now, parent, new, ids)
    await db.execute(
        SQL.insert_fragment, run.id, new.number, parent, new.step, new.sha256, new.text, len(new.jobs)
    )  # fmt: skip
    return await grow(db, run, made, new, jobs=new.jobs, edges=new.edges(ids))


async def grow(
    db: Connection,
    run: Run,
    made: Extended,
    new: Growth,
    *,
    jobs: Sequence[NewJob],
    edges: Mapping[int, tuple[int, ...]],
) -> Wake:
    """Writes what a run gets in addition: `jobs` are those of it that are new; and what follows."""
    classes = await classes_of(db, jobs)
    if new.new_stages:
        moved = (list(made.moved), list(made.moved.values()))
        sequence = await db.fetchval(SQL.bump_run, run.id)
        await db.execute(SQL.lift_stages, run.id, *moved)
        await db.execute(SQL.lower_stages, run.id)
        await db.execute(SQL.move_jobs, run.id, *moved, sequence)
    await insert_stages(db, run.id, {i: (new.stages[i], made.gates[i]) for i in sorted(new.new_stages)})
    if made.doors:
        await db.execute(SQL.make_doors, run.id, list(made.doors), [new.stages[i].rules for i in made.doors])
    await insert_cells(db, run.id, new.groups)
    place = await db.fetchval(SQL.next_place, run.id)
    await insert_jobs(db, run.id, jobs, made.jobs, classes, first_place=place)
    await insert_edges(db, run.id, edges)
    gates = {stage: gate for stage, gate in made.gates.items() if stage not in new.new_stages}
    # Written as changed, so that they have the sequence by which watchers see them.
    wake = await write(db, [Changes(made.run, made.jobs, gates, (), ())], {run.id: run})
    return await follow_up(db, Rows(made.run, made.jobs, (), (), events=made.events), wake)
