"""What time alone does to a run: pauses before another try end, and so do approvals that nobody gave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import asyncpg

from coordinator.core.events import DelayOver
from coordinator.core.follow import Changes
from coordinator.core.stages import DoorState
from coordinator.dispatch.port import Wake
from coordinator.store.answers import door_of
from coordinator.store.database import Connection
from coordinator.store.settle import lock_runs, settle, write
from coordinator.store.sql import statements

SQL = statements("settle")


def by_run(rows: Iterable[asyncpg.Record]) -> dict[int, list[int]]:
    """Job ids by run."""
    found: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        found[row["run_id"]].append(row["id"])
    return found


async def release(db: Connection, run_id: int, jobs: Sequence[int]) -> Wake:
    """Queues those of a run's jobs whose pause is over by now, and that still wait for it."""
    runs = await lock_runs(db, [run_id])
    still = [row["id"] for row in await db.fetch(SQL.still_due, jobs)]
    if not still:
        return Wake()
    return await settle(db, runs, {run_id: [(job, DelayOver()) for job in still]})


async def expire_door(db: Connection, run_id: int, stage: int) -> Wake:
    """Cancels a stage whose approval nobody gave in time, unless somebody has by now."""
    runs = await lock_runs(db, [run_id])
    door = await door_of(db, run_id, stage)
    if run_id not in runs or door.state is not DoorState.ASKED or door.approval is None:
        return Wake()
    hours = door.approval.timeout_ms / 3_600_000
    after = replace(door, state=DoorState.EXPIRED, sentence=f"nobody approved it within {hours:g} h")
    wake = await write(db, [Changes(runs[run_id], {}, {}, (), (), doors={stage: after})], runs)
    return wake | await settle(db, runs, {}, doors={run_id: (stage,)})
