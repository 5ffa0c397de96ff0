"""Runs that grow, over the rows of `memory_rows`: the same promises as `coordinator.store.extending`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from coordinator.core.door_rules import rules_from_json
from coordinator.core.expansion import expand
from coordinator.core.extend import Extended, Standing
from coordinator.core.follow import Changes
from coordinator.core.plan import Graph
from coordinator.core.stages import Door
from coordinator.core.states import ATTEMPT_LIVE
from coordinator.dispatch.port import Bells, Wake
from coordinator.store.expanding import DueMatrix
from coordinator.store.extending import Basis, Kept, Overtaken, extended, stale
from coordinator.store.new_rows import Growth, NewCells, NewFragment, NewJob, NewStage, values_of_cell
from tests.harness.memory_rows import Rows
from tests.harness.memory_tables import AttemptRow, JobRow, RunRow
from tests.harness.memory_transactions import Transactions


class MemoryExtensions:
    """The transactions by which runs grow, by what steps add and by matrices that become known."""

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
            return self._basis(run, job)

        return await self._transactions.run(body)

    def _basis(self, run: RunRow, job: JobRow) -> Basis:
        new = run.new
        lists = {self.rows.jobs[key].job.key: json.loads(told) for key, (_, told) in run.lists.items()}
        return Basis(
            run.run.id, job.job.id, job.job.key, job.depth, new.asked, new.pipeline_text, new.trusted,
            tuple(run.fragments), lists, self._revision(run),
        )  # fmt: skip

    def _revision(self, run: RunRow) -> int:
        return len(run.fragments) + sum(times for times, _ in run.lists.values())

    async def allocate(self, jobs: int) -> Sequence[int]:
        """Ids for jobs."""
        return [self.rows.new_id() for _ in range(jobs)]

    async def extend(self, run_id: int, attempt_id: int, token: bytes, new: NewFragment) -> None:
        """Adds a fragment to its run, whole."""

        def body() -> Wake:
            parent = self._live(attempt_id, token).attempt.job_id
            row = self.rows.runs[run_id]
            if self._revision(row) != new.revision:
                raise Overtaken
            jobs = [self.rows.jobs[key].job for key in row.jobs]
            ids = {job.key: job.id for job in jobs}
            gates = [row.gates[index] for index in sorted(row.gates)]
            made = extended(Standing(row.run, jobs, row.graph, gates, row.doors), parent, new, ids)
            self._write(row, made, new, new.jobs, new.edges(ids))
            by = self.rows.jobs[parent]
            row.fragments.append(Kept(parent, by.name, by.pool, new.step, new.sha256, new.text, len(new.jobs)))
            wake = self.rows.write([Changes(made.run, made.jobs, {}, (), ())])
            return wake | self.rows.settle({run_id: made.events}) if made.events else wake

        self._bells.ring(await self._transactions.run(body))

    async def due(self) -> Sequence[int]:
        """Jobs that are to be expanded."""
        return [key for key, row in self.rows.jobs.items() if row.job.is_expanding]

    async def matrix(self, job_id: int) -> DueMatrix | None:
        """What an expansion is planned by."""

        def body() -> DueMatrix | None:
            job = self.rows.jobs[job_id]
            run = self.rows.runs[job.run_id]
            if not job.job.is_expanding:
                return None
            return DueMatrix(self._basis(run, job), self.rows.needs(run, job_id))

        return await self._transactions.run(body)

    async def expand(self, run_id: int, new: NewCells) -> None:
        """Gives a job its cells."""

        def body() -> Wake:
            row, by = self.rows.runs[run_id], self.rows.jobs[new.job_id]
            if not by.job.is_expanding:
                return Wake()
            if (self.rows.needs(row, new.job_id), self._revision(row)) != (new.needs, new.revision):
                raise Overtaken
            jobs = [self.rows.jobs[key].job for key in row.jobs]
            gates = [row.gates[index] for index in sorted(row.gates)]
            cells = new.cells({job.key: job.id for job in jobs})
            there = {
                key: values_of_cell(each.cell)
                for key, each in self.rows.jobs.items()
                if each.run_id == run_id and each.name == by.name and each.cell
            }
            made = expand(Standing(row.run, jobs, row.graph, gates, row.doors), new.job_id, there, cells)
            if not made.failed:
                row.lists[new.job_id] = (row.lists.get(new.job_id, (0, ""))[0] + 1, new.lists)
            added = [job for job in new.jobs if job.id in made.added]
            edges = {job.id: cells.needs[job.id] for job in added} | dict(made.more)
            self._write(row, made.extended, new, added, edges)
            wake = self.rows.write([Changes(made.extended.run, made.extended.jobs, {}, (), ())])
            return wake | self.rows.settle({run_id: made.extended.events})

        self._bells.ring(await self._transactions.run(body))

    def _write(
        self,
        row: RunRow,
        made: Extended,
        new: Growth,
        jobs: Sequence[NewJob],
        edges: Mapping[int, tuple[int, ...]],
    ) -> None:
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
        for job in jobs:
            self.rows.jobs[job.id] = JobRow(
                made.jobs[job.id], made.run.id, self.rows.class_of(job.requirement), job.requirement.pool,
                job.environment, job.spec, name=job.name, cell=job.cell, context=job.context,
                wants_needs=job.wants_needs, depth=job.depth,
            )  # fmt: skip
        row.jobs = (*row.jobs, *(job.id for job in jobs))
        row.groups = {group.name: group for group in new.groups} | row.groups
        needs = dict(row.graph.needs)
        for key, more in edges.items():
            needs[key] = (*needs.get(key, ()), *more)
        row.graph = Graph(len(row.gates), needs, frozenset(row.doors))


def _door(index: int, stage: NewStage, context: str) -> Door:
    condition, approval = rules_from_json(stage.rules)
    return Door(index, stage.name, condition=condition, approval=approval, values=json.loads(context))
