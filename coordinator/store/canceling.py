"""A run is canceled: what has not begun ends at once, agents are asked to end the rest."""

from __future__ import annotations

from dataclasses import replace

from coordinator.core.events import Canceled
from coordinator.core.plan import ended_by_cancel
from coordinator.core.run import Run
from coordinator.core.states import RUN_OVER, JobState
from coordinator.dispatch.port import Wake
from coordinator.store.answers import job_of
from coordinator.store.database import Connection
from coordinator.store.groups import has_place
from coordinator.store.settle import settle
from coordinator.store.sql import statements

SQL = statements("runs")
SETTLE = statements("settle")


async def cancel_run(db: Connection, run: Run, sentence: str) -> Wake:
    """Cancels a run whose row is locked."""
    if run.state in RUN_OVER:
        return Wake()
    jobs = [job_of(row) for row in await db.fetch(SQL.jobs_of_run, run.id)]
    doomed = ended_by_cancel(run, jobs, has_place=await has_place(db, run))
    queued = [job.id for job in jobs if job.state is JobState.QUEUED and job.id in doomed]
    # Waits for claims under way; after that, a queued job is either held here or leased for all to see.
    held = {row["job_id"] for row in await db.fetch(SETTLE.hold_queued, queued)}
    idle = [job for job in jobs if job.id in doomed and (job.is_idle or job.id in held)]
    await db.execute(SQL.cancel_leases, sorted(doomed), sentence)
    asked = replace(run, canceling=True, sentence=sentence)
    events = {run.id: [(job.id, Canceled(sentence)) for job in idle]}
    return await settle(db, {run.id: run}, events, runs={run.id: asked}) | Wake(cancels=True)
