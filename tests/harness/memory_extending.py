"""Runs that grow, over the rows of `memory_rows`: the same promises as `coordinator.store.extending`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from coordinator.core.door_rules import rules_from_json
from coordinator.core.extend import Extended, Standing
from coordinator.core.follow import Changes
from coordinator.core.plan import Graph
from coordinator.core.stages import Door
from coordinator.core.states import ATTEMPT_LIVE
from coordinator.dispatch.port import Bells, Wake
from coordinator.store.extending import Basis, Kept, Overtaken, extended, stale
from coordinator.store.new_rows import NewFragment, NewStage
from tests.harness.memory_rows import Rows
from tests.harness.memory_tables import AttemptRow, JobRow, RunRow
from tests.harness.memory_transactions import Transactions


class MemoryExtensions:
    """The transactions by which runs grow."""

    def __init__(self, rows: Rows, bells: Bells, transactions: Transactions | None = None) -> None:
        self.rows = rows
        self._bells = bells
        self._transactions = transactions or Transactions()

    def _live(self, attempt_id: int, token: bytes) -> AttemptRow:
        row = self.rows.attempts.get(attempt_id)
        if row is None or row.attempt.token != token or row.attempt.state not in ATTEMPT_LIVE:
            raise stale(attempt_id)
        return row

    async def basis(self, attempt_id: int, token: bytes) -> Basis:
        """What the run of a live attempt is made of by now."""

        def body() -> Basis:
            found = self._live(attempt_id, token)
            run, job = self.rows.runs[found.run_id], self.rows.jobs[found.attempt.job_id]
            new = run.new
            return Basis(
                found.run_id, job.job.id, job.job.key, job.depth, new.asked, new.pipeline_text, new.trusted,
                tuple(run.fragments),
            )  # fmt: skip

        return await self._transactions.run(body)

    async def allocate(self, jobs: int) -> Sequence[int]:
        """Ids for jobs."""
        return [self.rows.new_id() for _ in range(jobs)]

    async def extend(self, run_id: int, attempt_id: int, token: bytes, new: NewFragment) -> None:
        """Adds a fragment to its run, whole."""

        def body() -> Wake:
            parent = self._live(attempt_id, token).attempt.job_id
            row = self.rows.runs[run_id]
            if len(row.fragments) != new.number - 1:
                raise Overtaken
            jobs = [self.rows.jobs[key].job for key in row.jobs]
            ids = {job.key: job.id for job in jobs}
            gates = [row.gates[index] for index in sorted(row.gates)]
            made = extended(Standing(row.run, jobs, row.graph, gates, row.doors), parent, new, ids)
            self._write(row, made, new, new.edges(ids))
            by = self.rows.jobs[parent]
            row.fragments.append(Kept(parent, by.name, by.pool, new.step, new.sha256, new.text, len(new.jobs)))
            wake = self.rows.write([Changes(made.run, made.jobs, {}, (), ())])
            return wake | self.rows.settle({run_id: made.events}) if made.events else wake

        self._bells.ring(await self._transactions.run(body))

    def _write(self, row: RunRow, made: Extended, new: NewFragment, edges: dict[int, tuple[int, ...]]) -> None:
        def moved(stage: int) -> int:
            return made.moved.get(stage, stage)

        for key in row.jobs:
            each = self.rows.jobs[key]
            each.job = replace(each.job, stage=moved(each.job.stage))
        row.gates = {moved(i): replace(gate, stage=moved(i)) for i, gate in row.gates.items()} | dict(made.gates)
        row.doors = {moved(i): replace(door, stage=moved(i)) for i, door in row.doors.items()}
        row.expires = {moved(i): when for i, when in row.expires.items()}
        for index in made.doors | (new.new_stages & new.guarded):
            row.doors[index] = _door(index, new.stages[index], row.new.context)
        for job in new.jobs:
            self.rows.jobs[job.id] = JobRow(
                made.jobs[job.id], made.run.id, self.rows.class_of(job.requirement), job.requirement.pool,
                job.environment, job.spec, name=job.name, cell=job.cell, context=job.context,
                wants_needs=job.wants_needs, depth=job.depth,
            )  # fmt: skip
        row.jobs = (*row.jobs, *(job.id for job in new.jobs))
        row.groups |= {group.name: group for group in new.groups}
        row.graph = Graph(len(row.gates), {**row.graph.needs, **edges}, frozenset(row.doors))


def _door(index: int, stage: NewStage, context: str) -> Door:
    condition, approval = rules_from_json(stage.rules)
    return Door(index, stage.name, condition=condition, approval=approval, values=json.loads(context))
