"""What is shown of runs and of the fleet, and what people decide about agents and pools.

Each answer is a handful of statements, whatever its size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from coordinator.core.rules import rules_from_json
from coordinator.dispatch.port import Bells, Wake
from coordinator.errors import NotFound
from coordinator.store.database import Database
from coordinator.store.sql import statements

RUNS = statements("runs")
FLEET = statements("fleet")

Row = Mapping[str, Any]
"""A row by column name: see sql/runs.sql and sql/fleet.sql for the columns."""


@dataclass(frozen=True, slots=True)
class RunView:
    """A run with those of its jobs (and their attempts, by job id) that were asked for."""

    run: Row
    stages: Sequence[Row] = ()
    jobs: Sequence[Row] = ()
    attempts: Mapping[int, Sequence[Row]] | None = None
    expanded: frozenset[int] = frozenset()
    """Those of its jobs that cells stand for."""


class Views:
    """Reads for people, and their word about agents and pools."""

    def __init__(self, database: Database, bells: Bells) -> None:
        self._database = database
        self._bells = bells

    async def run(self, run_id: int, repository: str = "") -> RunView:
        """A whole run; with `run_id` 0 the newest of `repository`. Raises NotFound."""
        if not run_id:
            async with self._database.connection() as db:
                run_id = await db.fetchval(RUNS.newest_run, repository) or 0
            if not run_id:
                raise NotFound(f"no run of {repository or 'this repository'} yet: start one with `headrace run`")
        return await self.run_since(run_id, 0)

    async def run_since(self, run_id: int, after: int) -> RunView:
        """A run with the jobs that have changed behind sequence `after`, oldest change first. Raises NotFound.

        All of one moment: a job newer than the run it comes with would be numbered past a change of the run itself.
        """
        async with self._database.snapshot() as db:
            run = await db.fetchrow(RUNS.run, run_id)
            if run is None:
                raise NotFound(f"there is no run {run_id}")
            stages = await db.fetch(RUNS.stages_of_run, run_id)
            jobs = await db.fetch(RUNS.jobs_changed, run_id, after)
            attempts: dict[int, list[asyncpg.Record]] = {}
            for row in await db.fetch(RUNS.attempts_shown, [job["id"] for job in jobs]):
                attempts.setdefault(row["job_id"], []).append(row)
            # One that has ended otherwise than by being expanded says why there are no cells, or no others.
            standing = [job["id"] for job in jobs if job["state"] in ("waiting", "passed") and _expands(job)]
            expanded = await db.fetch(RUNS.with_cells, standing) if standing else []
        hidden = frozenset(row["id"] for row in expanded)
        return RunView(_with_json(run, "parameters"), stages, jobs, attempts, hidden)

    async def runs(self, repository: str, before: int, limit: int) -> Sequence[RunView]:
        """Runs without their jobs, newest first."""
        async with self._database.connection() as db:
            rows = await db.fetch(RUNS.list_runs, repository, before, limit)
        return [RunView(_with_json(row, "parameters")) for row in rows]

    async def agents(self) -> Sequence[Row]:
        """All agents that were ever here, by name."""
        async with self._database.connection() as db:
            rows = await db.fetch(FLEET.agents)
        return [_with_json(row, "labels", "sandboxes") for row in rows]

    async def pools(self) -> Sequence[Row]:
        """All pools, by name."""
        async with self._database.connection() as db:
            rows: Sequence[Row] = await db.fetch(FLEET.pools)
        return rows

    async def drain(self, request_id: str, name: str, *, drained: bool) -> None:
        """A person drains an agent, or lets it work again; the same request again does nothing. Raises NotFound."""
        async with self._database.transaction() as db:
            if await db.fetchval(RUNS.remember_request, request_id, "drain", None) is None:
                return
            if await db.fetchval(FLEET.drain, name, drained) is None:
                names = ", ".join(f"`{row['name']}`" for row in await db.fetch(FLEET.near_agents))
                raise NotFound(f"there is no agent `{name}`" + (f": there are {names}" if names else ""))
        self._bells.ring(Wake(agents=True, cancels=True))

    async def pause(self, request_id: str, name: str, *, paused: bool) -> None:
        """A pool starts nothing until it is resumed; the same request again does nothing. Raises NotFound."""
        async with self._database.transaction() as db:
            if await db.fetchval(RUNS.remember_request, request_id, "pause", None) is None:
                return
            if await db.fetchval(FLEET.pause, name, paused) is None:
                names = ", ".join(f"`{row['name']}`" for row in await db.fetch(RUNS.all_pools))
                raise NotFound(f"there is no pool `{name}`: there are {names}")
        self._bells.ring(Wake(agents=True, queue=True))

    async def standing(self) -> Mapping[str, int]:
        """The counts that must be 0, by the name of their metric."""
        async with self._database.connection() as db:
            return {
                name: await db.fetchval(getattr(FLEET, name))
                for name in ("lost_sight", "waiting_for_nothing", "queued_without_place")
            }


def _expands(job: Row) -> bool:
    return rules_from_json(job["rules"]).expands


def _with_json(row: asyncpg.Record, *columns: str) -> Row:
    found = dict(row)
    for column in columns:
        found[column] = json.loads(found[column])
    return found
