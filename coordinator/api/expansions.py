"""Matrices that become known while a run goes on: planned anew with their values, and their cells handed to the store.

Every replica looks for them, woken by a bell or by its slow poll; whichever dies, another one does it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from coordinator.api.extensions import asked_of, fragment_of
from coordinator.api.new_runs import Planned, new_groups, new_jobs, new_stages, origin_of
from coordinator.core.rules import Verdict
from coordinator.core.states import Cause
from coordinator.dispatch.bells import EXPANSIONS, LocalBells, heard_within
from coordinator.errors import BadInput, StoreDown, TooMuch
from coordinator.store.expanding import DueMatrix
from coordinator.store.extending import Overtaken
from coordinator.store.new_rows import NewCells
from headrace.pipeline import PipelineError, fragments
from headrace.pipeline.fragments import Expanded

_log = structlog.get_logger(__name__)
_POLL_S = 2.0
_MOST_SENTENCE = 2_000
Aside = Callable[[Callable[[DueMatrix], Expanded], DueMatrix], Awaitable[Expanded]]


class ExpansionStore(Protocol):
    """What is wanted of a store: see `coordinator.store.expanding.PostgresExpansions`."""

    async def due(self) -> Sequence[int]:
        """Ids of jobs that are to be expanded."""
        ...

    async def matrix(self, job_id: int) -> DueMatrix | None:
        """What an expansion is planned by."""
        ...

    async def allocate(self, jobs: int) -> Sequence[int]:
        """Ids for cells."""
        ...

    async def expand(self, run_id: int, new: NewCells) -> None:
        """Gives a job its cells."""
        ...


class Expansions:
    """Gives matrices their cells. `run_url`: where people see runs; `aside`: where planning holds up nobody."""

    def __init__(
        self, store: ExpansionStore, bells: LocalBells, *, run_url: str, aside: Aside = asyncio.to_thread
    ) -> None:
        self._store = store
        self._bells = bells
        self._run_url = run_url
        self._aside = aside

    async def run(self) -> None:
        """Runs until it is cancelled."""
        with self._bells.listening(EXPANSIONS) as due:
            while True:
                with contextlib.suppress(StoreDown):  # an outage: the next round, after its bell or its poll
                    await self.once()
                await heard_within(due, _POLL_S)

    async def once(self) -> int:
        """Works out what is due now; how many there were."""
        found = await self._store.due()
        for job_id in found:
            # Too many different jobs are queued: it stays due, and the poll comes back to it.
            with contextlib.suppress(TooMuch):
                await self._expand(job_id)
        return len(found)

    async def _expand(self, job_id: int) -> None:
        """Plans without a lock, and stores what was planned if nothing came between; else from the beginning.

        Whoever is overtaken was overtaken by one that got through: that ends.
        """
        while (due := await self._store.matrix(job_id)) is not None:
            try:
                await self._store.expand(due.basis.run_id, await self._planned(due))
            except Overtaken:
                continue
            except BadInput as error:
                with contextlib.suppress(Overtaken):
                    await self._store.expand(due.basis.run_id, _failed(due, str(error)))
                    return
            else:
                return

    async def _planned(self, due: DueMatrix) -> NewCells:
        try:
            # Thousands of lines of YAML and a thousand cells take seconds: heartbeats must not wait for them.
            found = await self._aside(self._plan, due)
        except PipelineError as error:
            return _failed(due, str(error.problems[0]))
        except Exception:  # a defect of ours ends one job, and not the coordinator each time that it starts
            _log.exception("a matrix could not be worked out", run=due.basis.run_id, job=due.basis.job)
            sentence = "the coordinator failed while it worked out the matrix: its log says how"
            return _failed(due, sentence, Cause.ERRORED)
        basis, plan = due.basis, found.plan
        planned = Planned(asked_of(basis), plan, basis.run_id, self._url(basis.run_id), basis.trusted)
        ids = await self._store.allocate(len(found.cells))
        keys = {job.key for job in found.cells}
        waiting = [job for job in plan.jobs if job.needs and not keys.isdisjoint(job.needs)]
        empty = Verdict(Cause.SKIPPED_BY_CONDITION, found.why_empty) if found.why_empty else Verdict()
        return NewCells(
            revision=basis.revision,
            job_id=basis.job_id,
            needs=due.needs,
            stages=new_stages(planned),
            jobs=new_jobs(planned, found.cells, ids, depth=basis.depth),
            groups=new_groups(plan, found.cells),
            lists=json.dumps(dict(found.values)),
            all_needs={job.key: job.needs for job in (*found.cells, *waiting) if job.needs is not None},
            verdict=empty,
        )

    def _plan(self, due: DueMatrix) -> Expanded:
        basis = due.basis
        before = [fragment_of(each) for each in basis.fragments]
        lists = {key: each for key, each in basis.lists.items() if key != basis.job}
        known = {"needs": due.needs, "run": {"id": basis.run_id, "url": self._url(basis.run_id)}}
        return fragments.expand_matrix(origin_of(asked_of(basis)), before, lists, basis.job, known)

    def _url(self, run_id: int) -> str:
        return f"{self._run_url}/runs/{run_id}" if self._run_url else ""


def _failed(due: DueMatrix, sentence: str, cause: Cause = Cause.EXPRESSION_FAILED) -> NewCells:
    """No cells, and the sentence that says why."""
    verdict = Verdict(cause, sentence[:_MOST_SENTENCE])
    return NewCells(
        revision=due.basis.revision, job_id=due.basis.job_id, needs=due.needs, stages=(), jobs=(), verdict=verdict
    )
