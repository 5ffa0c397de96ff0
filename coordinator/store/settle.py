"""Drives the core over rows of PostgreSQL: what follows is decided and written in one transaction.

All runs of a batch go forward together: each round of the core's questions is one statement, however many runs
there are, and so is each kind of write. The caller holds the runs' locks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import asyncpg

from coordinator.core.door_rules import decisions_to_json
from coordinator.core.events import Canceled, JobEvent
from coordinator.core.facts import given
from coordinator.core.fairness import queue_times
from coordinator.core.follow import Changes, Need, follow
from coordinator.core.job import Turn
from coordinator.core.run import Run
from coordinator.core.states import RUN_OVER, JobState, RunState
from coordinator.dispatch.port import Wake
from coordinator.store.answers import answer, job_of, needs_of_jobs
from coordinator.store.database import Connection
from coordinator.store.groups import group_from_json, join, leave
from coordinator.store.sql import statements

SQL = statements("settle")

Events = Mapping[int, Sequence[tuple[int, JobEvent]]]
"""By run: (job id, event), in order."""


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
            warned=row["warned"],
            canceled=row["canceled"],
            group=group_from_json(row["concurrency"]).group if row["concurrency"] else "",
        )
        for row in await db.fetch(SQL.lock_runs, sorted(set(runs)))
    }


async def settle(
    db: Connection,
    before: Mapping[int, Run],
    events: Events,
    *,
    runs: Mapping[int, Run] | None = None,
    doors: Mapping[int, Sequence[int]] | None = None,
) -> Wake:
    """Applies the events to locked runs, with all that follows. Returns whom to wake after the commit.

    `runs`: the runs as the caller has changed them already (a cancel asked for), where it has. `doors`: by run, stages
    whose door is to be looked at.
    """
    runs = before if runs is None else runs
    doors = doors or {}
    wanted = [job for pairs in events.values() for job, _ in pairs]
    jobs = {row["id"]: job_of(row) for row in await db.fetch(SQL.jobs, wanted)}
    under_way = {
        run_id: follow(
            runs[run_id], [(jobs[job], event) for job, event in events.get(run_id, ())], doors.get(run_id, ())
        )
        for run_id in {**events, **doors}
    }
    changes = await _drive(db, under_way)
    wake = await write(db, changes, before)
    halted = {job: why for each in changes for job, why in each.halted.items()}
    return wake | await halt(db, halted, {each.run.id: each.run for each in changes}) if halted else wake


async def halt(db: Connection, halted: Mapping[int, str], runs: Mapping[int, Run]) -> Wake:
    """Ends jobs: those that wait or are queued at once, the others by their agents. Waits for claims under way."""
    held = {row["job_id"] for row in await db.fetch(SQL.hold_queued, sorted(halted))}
    await db.execute(SQL.cancel_leases_of, list(halted), list(halted.values()))
    rows = await db.fetch(SQL.jobs, sorted(halted))
    owners = {row["id"]: row["run_id"] for row in rows if row["id"] in held or job_of(row).is_idle}
    events: dict[int, list[tuple[int, JobEvent]]] = defaultdict(list)
    for job, run_id in owners.items():
        events[run_id].append((job, Canceled(halted[job])))
    wake = Wake(cancels=True)
    return wake | await settle(db, runs, events) if events else wake


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
        answers = await answer(db, needs)
    return done


async def write(db: Connection, changes: Sequence[Changes], before: Mapping[int, Run]) -> Wake:
    """Writes what the core decided. The runs are locked; `before`: as they were."""
    touched = [each for each in changes if is_something(each, before[each.run.id])]
    if not touched:
        return Wake()
    counters = [
        (r.id, r.state, r.canceling, r.sentence, r.unfinished, r.active, r.blocked, r.failed, r.warned, r.canceled)
        for r in (each.run for each in touched)
    ]
    rows = await db.fetch(SQL.write_runs, *_columns(counters, 10))
    sequences = {row["id"]: row["sequence"] for row in rows}
    gates = [
        (each.run.id, gate.stage, gate.unfinished, gate.failed, gate.decider, gate.upstream_failed)
        for each in touched
        for gate in each.gates.values()
    ]
    if gates:
        await db.execute(SQL.write_gates, *_columns(gates, 6))
    await _write_stages(db, touched)
    if unqueued := [job for each in touched for job in each.unqueued]:
        await db.execute(SQL.unqueue, unqueued)
    # The shares are what all runs of a project have in common: their locks come last, and are held shortly.
    places, raised = await _places(db, sorted(job for each in touched for job in each.queued))
    await _write_jobs(db, touched, sequences, places)
    if places:
        await _give_needs(db, list(places))
        await db.execute(SQL.enqueue, *_columns(list(places.values()), 5), *_columns(raised, 3))
    groups = await _change_groups(db, touched)
    expansions = await _mark_expansions(db, touched)
    return Wake(queue=bool(places), runs=frozenset(sequences), groups=groups, expansions=expansions)


async def _mark_expansions(db: Connection, touched: Sequence[Changes]) -> bool:
    """Jobs that stand for cells become due when their turn has come, and are not when it is over."""
    found = [(job, each.run.id) for each in touched for job in each.jobs.values() if job.rules.expands]
    due = [(job.id, run_id) for job, run_id in found if job.is_expanding]
    if due:
        await db.execute(SQL.expand, *_columns(due, 2))
    if over := [job.id for job, _ in found if not job.is_expanding]:
        await db.execute(SQL.expand_no_more, over)
    return bool(due)


async def _change_groups(db: Connection, touched: Sequence[Changes]) -> bool:
    """Lets jobs join the groups that they wait for, and leave what is over or asked for again. Whether somebody has
    to look at the groups: they changed, or a deployment that was let finish may be over."""
    joins = [
        (each.run.id, job.id, job.rules.concurrency)
        for each in touched
        for job in each.jobs.values()
        if job.turn is Turn.WAITS and job.state is JobState.WAITING and job.rules.concurrency is not None
    ]
    await join(db, joins)
    runs = [each.run.id for each in touched if each.run.group and each.run.state in RUN_OVER]
    changed = [(each.run, job) for each in touched for job in each.jobs.values()]
    jobs = [job.id for _, job in changed if job.rules.concurrency is not None and not job.in_group]
    left = bool(runs or jobs) and await leave(db, runs, jobs)
    deployed = any(run.group and job.at_most_once for run, job in changed)
    return left or bool(joins) or deployed


def is_something(changes: Changes, before: Run) -> bool:
    """Whether there is anything to write."""
    rows = (changes.jobs, changes.queued, changes.gates, changes.doors, changes.groups)
    return any(rows) or changes.run != before


async def _write_stages(db: Connection, touched: Sequence[Changes]) -> None:
    doors = [
        (
            *(each.run.id, door.stage, door.state, decisions_to_json(door.decisions), door.sentence),
            door.approval.timeout_ms if door.approval else 0,
        )
        for each in touched
        for door in each.doors.values()
    ]
    if doors:
        await db.execute(SQL.write_doors, *_columns(doors, 6))
    groups = [(each.run.id, group.name, group.active) for each in touched for group in each.groups.values()]
    if groups:
        await db.execute(SQL.write_groups, *_columns(groups, 3))


async def _give_needs(db: Connection, queued: Sequence[int]) -> None:
    """Keeps `needs` as they are now with the jobs whose agents evaluate them."""
    wanting = [row["id"] for row in await db.fetch(SQL.want_needs, queued)]
    if wanting:
        needs = await needs_of_jobs(db, wanting)
        told = [given(needs.get(job, {})) for job in wanting]
        await db.execute(SQL.give_needs, wanting, told)


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
            judged = (j.upstream_failed, j.admitted, j.place, j.awaits, j.retried, j.turn, j.pause_ms)
            rows.append((j.id, j.state, j.cause, j.sentence, *counters, *judged, sequences[each.run.id], vt))
    if rows:
        await db.execute(SQL.write_jobs, *_columns(rows, 20))


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
