"""Matrices that have become known: their cells are stored with all that follows, in one transaction under a run's lock.

Several replicas may work one out at once: the first that gets through has done it, and the others see that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.core.expansion import expand
from coordinator.core.run import Run
from coordinator.dispatch.port import Bells, Wake
from coordinator.store.answers import needs_of_jobs
from coordinator.store.database import Connection, Database
from coordinator.store.extending import Basis, Overtaken, basis_of, grow, standing_of
from coordinator.store.new_rows import NewCells, values_of_cell
from coordinator.store.settle import lock_runs
from coordinator.store.sql import statements

SQL = statements("expanding")
EXTENDING = statements("extending")
RUNS = statements("runs")


@dataclass(frozen=True, slots=True)
class DueMatrix:
    """A job that is to be expanded: what its run is made of by now, and `needs` as its expressions see them."""

    basis: Basis
    needs: Mapping[str, Any]


class PostgresExpansions:
    """The transactions by which matrices get their cells."""

    def __init__(self, database: Database, bells: Bells) -> None:
        self._database = database
        self._bells = bells

    async def due(self) -> Sequence[int]:
        """Ids of jobs that are to be expanded."""
        async with self._database.connection() as db:
            return [row["job_id"] for row in await db.fetch(SQL.due)]

    async def matrix(self, job_id: int) -> DueMatrix | None:
        """What an expansion is planned by; None: it is not due any more."""
        async with self._database.snapshot() as db:
            row = await db.fetchrow(SQL.basis, job_id)
            if row is None:
                return None
            needs = await needs_of_jobs(db, [job_id])
            return DueMatrix(await basis_of(db, row), needs.get(job_id, {}))

    async def allocate(self, jobs: int) -> Sequence[int]:
        """Ids for cells. Those that are not used in the end are gaps, nothing more."""
        async with self._database.connection() as db:
            row = await db.fetchrow(RUNS.allocate, jobs)
        ids: Sequence[int] = row["job_ids"]
        return ids

    async def expand(self, run_id: int, new: NewCells) -> None:
        """Gives a job its cells, if nobody has done it meanwhile.

        Raises Overtaken where it was planned by what has changed since, and as `create` of a run does.
        """
        async with self._database.transaction() as db:
            runs = await lock_runs(db, [run_id])
            if run_id not in runs or await db.fetchval(SQL.still_due, new.job_id) is None:
                return
            needs = await needs_of_jobs(db, [new.job_id])
            now = needs.get(new.job_id, {}), await db.fetchval(EXTENDING.revision, run_id)
            if now != (new.needs, new.revision):
                raise Overtaken
            wake = await _write(db, runs[run_id], new)
        self._bells.ring(wake)


async def _write(db: Connection, run: Run, new: NewCells) -> Wake:
    standing = await standing_of(db, run)
    there = {job.key: job.id for job in standing.jobs}
    cells = new.cells(there)
    rows = {row["id"]: values_of_cell(row["cell"]) for row in await db.fetch(SQL.cells, new.job_id)}
    made = expand(standing, new.job_id, rows, cells)
    if not made.failed:
        await db.execute(SQL.keep_lists, new.job_id, run.id, new.lists)
    added = [job for job in new.jobs if job.id in made.added]
    edges = {job.id: cells.needs[job.id] for job in added} | dict(made.more)
    wake = await grow(db, run, made.extended, new, jobs=added, edges=edges)
    if made.more:
        keys = {key: name for name, key in there.items()}
        needs = [json.dumps(new.all_needs[keys[key]]) for key in made.more]
        await db.execute(SQL.need_more, list(made.more), needs)
    return wake
