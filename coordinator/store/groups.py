"""Membership of runs and jobs in groups: they join at the end, and leave when they are over."""

from __future__ import annotations

import json
from collections.abc import Sequence

from coordinator.core.run import Run
from coordinator.store.database import Connection
from coordinator.store.sql import statements
from headrace.pipeline.plan import Concurrency, WhenFull

SQL = statements("groups")
SETTLE = statements("settle")


def group_to_json(group: Concurrency | None) -> str:
    """A group as a run keeps it; empty: none."""
    return "" if group is None else json.dumps([group.group, group.limit, group.when_full])


def group_from_json(text: str) -> Concurrency:
    """What `group_to_json` wrote."""
    name, limit, when_full = json.loads(text)
    return Concurrency(name, limit, WhenFull(when_full))


async def join(db: Connection, members: Sequence[tuple[int, int | None, Concurrency]]) -> None:
    """Runs, or jobs of theirs (run, job or None, group), take places behind those that are there, in this order.

    Whether they may enter is looked at by whoever admits.
    """
    if members:
        runs, jobs, groups = zip(*members, strict=True)
        names, sizes, full = zip(*((each.group, each.limit, each.when_full) for each in groups), strict=True)
        await db.execute(SQL.make_groups, runs, jobs, names)
        await db.execute(SQL.join, runs, jobs, names, sizes, full)


async def has_place(db: Connection, run: Run) -> bool:
    """Whether a run whose row is locked does not wait for a place in its group."""
    return not (run.group and await db.fetchval(SQL.run_waits, run.id))


async def leave(db: Connection, runs: Sequence[int], jobs: Sequence[int]) -> bool:
    """Gives places back. Whether there were any."""
    return bool(await db.fetch(SETTLE.leave_group, list(runs), list(jobs)))
