"""Drives the core over rows of PostgreSQL: what follows is decided and written in one transaction.

All runs of a batch go forward together: each round of the core's questions is one statement, however many runs
there are, and so is each kind of write. The caller holds the runs' locks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import asyncpg

from coordinator.core.events import JobEvent
from coordinator.core.fairness import queue_times
from coordinator.core.follow import Changes, Gate, LoadBehind, LoadDependents, LoadGates, Need, follow
from coordinator.core.job import Job
from coordinator.core.run import Run
from coordinator.core.states import Cause, JobState, RunState
from coordinator.dispatch.port import Wake
from coordinator.store.database import Connection
from coordinator.store.sql import statements

SQL = statements("settle")

Events = Mapping[int, Sequence[tuple[int, JobEvent]]]
"""By run: (job id, event), in order."""


def job_of(row: asyncpg.Record) -> Job:
    """A job row as the core knows it."""
    return Job(
        id=row["id"],
        key=row["key"],
        stage=row["stage"],
        state=JobState(row["state"]),
        cause=Cause(row["cause"]),
        sentence=row["sentence"],
        unfinished=row["unfinished"],
        failed=row["failed"],
        decider=row["decider"],
        at_most_once=row["at_most_once"],
        asks=row["asks"],
        tries=row["tries"],
        lost=row["lost"],
        errored=row["errored"],
    )


async def lock_runs(db: Connection, runs: Iterable[int]) -> dict[int, Run]:
    """Locks the runs in id order and returns them as they are."""
    return {
        row["id"]: Run(
            id=row["id"],
            state=RunState(row["state"]),
            canceling=row["canceling"],
            sentence=row["sentence"],
            unfinished=row["unfinished"],
            active=row["active"],
            blocked=row["blocked"],
            failed=row["failed"],
            canceled=row["canceled"],
        )
        for row in await db.fetch(SQL.lock_runs, sorted(set(runs)))
    }


async def settle(
    db: Connection, before: Mapping[int, Run], events: Events, *, runs: Mapping[int, Run] | None = None
) -> Wake:
    """Applies the events to locked runs, with all that follows. Returns whom to wake after the commit.

    `runs`: the runs as the caller has changed them already (a cancel asked for), where it has.
    """
    runs = before if runs is None else runs
    wanted = [job for pairs in events.values() for job, _ in pairs]
    jobs = {row["id"]: job_of(row) for row in await db.fetch(SQL.jobs, wanted)}
    under_way = {
        run_id: follow(runs[run_id], [(jobs[job], event) for job, event in pairs]) for run_id, pairs in events.items()
    }
    changes = await _drive(db, under_way)
    return await write(db, changes, before)


async def _drive(db: Connection, under_way: dict[int, Generator[Need, Any, Changes]]) -> list[Changes]:
    answers: dict[int, Any] = dict.fromkeys(under_way)
    done = []
    while under_way:
        needs: dict[int, Need] = {}
        for run_id, generator in list(under_way.items()):
            try:
                needs[run_id] = generator.send(answers[run_id])
            except StopIteration as stop:
                done.append(stop.value)
                del under_way[run_id]
        answers = await _answer(db, needs)
    return done


async def _answer(db: Connection, needs: Mapping[int, Need]) -> dict[int, Any]:
    """Answers one round of questions: at most one statement for each kind."""
    answers: dict[int, Any] = {run_id: [] for run_id in needs}
    sources = [job for need in needs.values() if isinstance(need, LoadDependents) for job in need.jobs]
    gated = [run_id for run_id, need in needs.items() if isinstance(need, LoadGates)]
    behind = [(run_id, need.stage) for run_id, need in needs.items() if isinstance(need, LoadBehind)]
    if sources:
        for row in await db.fetch(SQL.dependents, sources):
            answers[row["run_id"]].append((row["source"], job_of(row)))
    if gated:
        for row in await db.fetch(SQL.gates, gated):
            answers[row["run_id"]].append(Gate(row["index"], row["unfinished"], row["failed"], row["decider"]))
    if behind:
        for row in await db.fetch(SQL.behind, [run for run, _ in behind], [stage for _, stage in behind]):
            answers[row["run_id"]].append(job_of(row))
    return answers


async def write(db: Connection, changes: Sequence[Changes], before: Mapping[int, Run]) -> Wake:
    """Writes what the core decided. The runs are locked; `before`: as they were."""
    touched = [each for each in changes if each.jobs or each.queued or each.gates or each.run != before[each.run.id]]
    if not touched:
        return Wake()
    rows = await db.fetch(
        SQL.write_runs,
        *_columns(
            [
                (r.id, r.state, r.canceling, r.sentence, r.unfinished, r.active, r.blocked, r.failed, r.canceled)
                for r in (each.run for each in touched)
            ],
            9,
        ),
    )
    sequences = {row["id"]: row["sequence"] for row in rows}
    gates = [
        (each.run.id, gate.stage, gate.unfinished, gate.failed, gate.decider)
        for each in touched
        for gate in each.gates.values()
    ]
    if gates:
        await db.execute(SQL.write_gates, *_columns(gates, 5))
    if unqueued := [job for each in touched for job in each.unqueued]:
        await db.execute(SQL.unqueue, unqueued)
    # The shares are what all runs of a project have in common: their locks come last, and are held shortly.
    places, raised = await _places(db, sorted(job for each in touched for job in each.queued))
    await _write_jobs(db, touched, sequences, places)
    if places:
        await db.execute(SQL.enqueue, *_columns(list(places.values()), 5), *_columns(raised, 3))
    return Wake(queue=bool(places), runs=frozenset(sequences))


async def _write_jobs(
    db: Connection,
    touched: Sequence[Changes],
    sequences: Mapping[int, int],
    places: Mapping[int, tuple[int, int, int, float, str]],
) -> None:
    rows = []
    for each in touched:
        for j in each.jobs.values():
            vt = places[j.id][3] if j.id in places else None
            counters = (j.unfinished, j.failed, j.decider, j.asks, j.tries, j.lost, j.errored)
            rows.append((j.id, j.state, j.cause, j.sentence, *counters, sequences[each.run.id], vt))
    if rows:
        await db.execute(SQL.write_jobs, *_columns(rows, 13))


async def _places(
    db: Connection, jobs: Sequence[int]
) -> tuple[dict[int, tuple[int, int, int, float, str]], list[tuple[int, str, float]]]:
    """For each job to be queued its row of the queue: (job, class, priority, virtual time, pool).

    And the shares to be raised, which are locked now: (project, pool, virtual time).
    """
    if not jobs:
        return {}, []
    rows = await db.fetch(SQL.queueing, jobs)
    fresh: dict[tuple[int, str], list[asyncpg.Record]] = defaultdict(list)
    times: dict[int, float] = {}
    raised: list[tuple[int, str, float]] = []
    for row in rows:
        if row["vt"] is None:
            fresh[row["project_id"], row["pool"]].append(row)
        else:
            times[row["id"]] = row["vt"]
    if fresh:
        pairs = _columns(sorted(fresh), 2)
        if not all(row["shared"] for row in rows):
            await db.execute(SQL.make_shares, *pairs)
        for share in await db.fetch(SQL.lock_shares, *pairs):
            waiting = fresh[share["project_id"], share["pool"]]
            given = queue_times(share["pool_vt"], share["vt"], waiting[0]["weight"], len(waiting))
            times.update(zip((row["id"] for row in waiting), given, strict=True))
            raised.append((share["project_id"], share["pool"], given[-1]))
    return {row["id"]: (row["id"], row["cls"], row["priority"], times[row["id"]], row["pool"]) for row in rows}, raised


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Rows as columns, for unnest: one array a parameter."""
    return [[row[column] for row in rows] for column in range(width)]
