"""New rows of runs that are made, and of those that grow: stages, jobs, their edges and requirement classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from coordinator.core.job import Job
from coordinator.core.plan import Rows
from coordinator.core.rules import rules_to_json
from coordinator.core.stages import Gate, Group
from coordinator.dispatch.port import Wake
from coordinator.errors import BadInput, TooMuch, Violation
from coordinator.store.database import Connection
from coordinator.store.new_rows import NewJob, NewStage
from coordinator.store.settle import settle
from coordinator.store.sql import statements

SQL = statements("runs")

# Every claim probes each class that has something queued.
MOST_CLASSES = 1000
# A job goes to its agent in one message.
MOST_SPEC = 4 << 20


async def insert_stages(db: Connection, run_id: int, stages: Mapping[int, tuple[NewStage, Gate]]) -> None:
    """Stages by their numbers, with their gates, and closed doors where they have one."""
    rows = [
        (index, stage.name, stage.environment, gate.unfinished, gate.failed, gate.decider,
         "closed" if stage.rules else None, stage.rules, stage.url)
        for index, (stage, gate) in stages.items()
    ]  # fmt: skip
    if rows:
        await db.execute(SQL.insert_stages, run_id, *map(list, zip(*rows, strict=True)))


async def insert_cells(db: Connection, run_id: int, groups: Sequence[Group]) -> None:
    """Matrices with a bound, or that end at the first failure."""
    if groups:
        rows = [(each.name, each.max_parallel, each.fail_fast) for each in groups]
        await db.execute(SQL.insert_cells, run_id, *map(list, zip(*rows, strict=True)))


async def insert_jobs(
    db: Connection,
    run_id: int,
    jobs: Sequence[NewJob],
    rows: Mapping[int, Job],
    classes: Sequence[int],
    *,
    first_place: int,
) -> None:
    """Jobs with their first counters (`rows`, by id) and their classes, in order."""
    await db.execute(
        SQL.insert_jobs,
        *(run_id, [job.id for job in jobs], [job.stage for job in jobs]),
        list(range(first_place, first_place + len(jobs))),
        *([job.key for job in jobs], [None if job.needs is None else json.dumps(job.needs) for job in jobs]),
        *([job.spec for job in jobs], classes, [job.requirement.pool for job in jobs]),
        *([bool(job.environment) for job in jobs], [job.environment for job in jobs]),
        *([rows[job.id].state for job in jobs], [rows[job.id].unfinished for job in jobs]),
        *([rows[job.id].failed for job in jobs], [rows[job.id].decider for job in jobs]),
        *([rows[job.id].upstream_failed for job in jobs], [job.depth for job in jobs]),
        *([job.name for job in jobs], [job.cell for job in jobs]),
        *([rules_to_json(job.rules) for job in jobs], [job.context for job in jobs]),
        [job.wants_needs for job in jobs],
    )


async def insert_edges(db: Connection, run_id: int, needs: Mapping[int, Sequence[int]]) -> None:
    """By job, those that it needs."""
    edges = [(need, job) for job, found in needs.items() for need in found]
    if edges:
        await db.execute(SQL.insert_dependencies, run_id, [need for need, _ in edges], [job for _, job in edges])


async def follow_up(db: Connection, rows: Rows, wake: Wake) -> Wake:
    """Judges what nothing holds, and looks at doors that may be looked at."""
    if not rows.events and not rows.doors:
        return wake
    run_id = rows.run.id
    events = {run_id: rows.events} if rows.events else {}
    doors = {run_id: rows.doors} if rows.doors else {}
    return wake | await settle(db, {run_id: rows.run}, events, doors=doors)


async def classes_of(db: Connection, jobs: Sequence[NewJob]) -> list[int]:
    """The class of each job's requirement, made where it is new.

    Raises BadInput for a pool that does not exist or a job that fits no message, TooMuch beyond 1,000 queued classes.
    """
    for job in jobs:
        if len(job.spec) > MOST_SPEC:
            sentence = f"job `{job.key}` takes {len(job.spec):,} bytes to describe: at most {MOST_SPEC:,} fit"
            raise BadInput(sentence, (Violation("jobs", sentence),))
    requirements = [job.requirement for job in jobs]
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
