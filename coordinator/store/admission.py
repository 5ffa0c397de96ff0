"""Looks at a group: who enters, who is canceled for somebody newer. One transaction for each look.

The runs are locked before the group, in id order, as everywhere; what the members are is read behind both locks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import asyncpg

from coordinator.core.concurrency import Member, admit
from coordinator.core.events import Entered, JobEvent
from coordinator.core.plan import enter
from coordinator.core.run import Run
from coordinator.core.stages import DoorState, Gate
from coordinator.dispatch.port import Wake
from coordinator.store.answers import job_of
from coordinator.store.canceling import cancel_run
from coordinator.store.database import Connection
from coordinator.store.settle import halt, lock_runs, settle
from coordinator.store.sql import statements
from headrace.pipeline.plan import WhenFull

SQL = statements("groups")
RUNS = statements("runs")


async def admit_group(db: Connection, group_id: int) -> Wake:
    """Lets in whoever may enter, and ends whoever has to go."""
    found = {row["run_id"] for row in await db.fetch(SQL.runs_in_group, group_id)}
    runs = await lock_runs(db, found)
    await db.execute(SQL.lock_group, group_id)
    rows = {row["place"]: row for row in await db.fetch(SQL.members, group_id) if row["run_id"] in runs}
    admission = admit([_member(row) for row in rows.values()])
    if admission.enter:
        await db.execute(SQL.entered, list(admission.enter))
    if admission.cancel:
        await db.execute(SQL.leaving, [place for place, _ in admission.cancel])
    wake = await _let_in(db, runs, [rows[place] for place in admission.enter])
    for place, sentence in admission.cancel:
        row = rows[place]
        runs = await lock_runs(db, [row["run_id"]])  # as it is by now: they are ours already
        if row["job_id"] is None:
            wake = wake | await cancel_run(db, runs[row["run_id"]], sentence)
        else:
            wake = wake | await halt(db, {row["job_id"]: sentence}, runs)
    return wake


def _member(row: asyncpg.Record) -> Member:
    return Member(
        id=row["place"],
        name=row["name"],
        limit=row["size"],
        when_full=WhenFull(row["when_full"]),
        entered=row["entered"],
        deploys=row["deploys"],
        leaving=row["leaving"],
    )


async def _let_in(db: Connection, runs: Mapping[int, Run], members: Sequence[asyncpg.Record]) -> Wake:
    events: dict[int, list[tuple[int, JobEvent]]] = defaultdict(list)
    doors: dict[int, Sequence[int]] = {}
    for member in members:
        run_id = member["run_id"]
        if member["job_id"] is not None:
            events[run_id].append((member["job_id"], Entered()))
            continue
        stages = await db.fetch(RUNS.stages_of_run, run_id)
        gates = [Gate(row["index"], row["unfinished"]) for row in stages]
        standing = {row["index"]: DoorState(row["door"]) for row in stages if row["door"]}
        jobs = [job_of(row) for row in await db.fetch(RUNS.jobs_of_run, run_id)]
        begins = enter(jobs, gates, standing)
        events[run_id] += begins.events
        doors[run_id] = begins.doors
    return await settle(db, runs, events, doors=doors) if events or doors else Wake()
