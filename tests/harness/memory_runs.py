"""Runs and terms of the simulation over the rows of `memory_rows`: the other half of `memory_store`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from coordinator.core.door_rules import env_from_json, rules_from_json
from coordinator.core.follow import Changes
from coordinator.core.plan import CannotRetry, active_cells, hold, must_enter, retry
from coordinator.core.plan import Rows as Made
from coordinator.core.stages import CannotDecide, Decision, Door, DoorState, asked_stage, decided
from coordinator.core.states import RUN_OVER
from coordinator.dispatch.port import Bells, Wake
from coordinator.errors import BadInput, Conflict, NotFound, StoreDown
from coordinator.store.new_rows import NewRun, NewStage
from coordinator.store.runs import deployments, may_still_run
from tests.harness.memory_rows import Rows
from tests.harness.memory_tables import JobRow, RunRow
from tests.harness.memory_timers import cancel_run
from tests.harness.memory_transactions import Transactions

T = TypeVar("T")


class MemoryRuns:
    """What people ask of runs, over rows: the same promises as `coordinator.store.runs.PostgresRuns`."""

    def __init__(
        self, rows: Rows, bells: Bells, transactions: Transactions | None = None, *, long_lease_s: float = 600.0
    ) -> None:
        self.rows = rows
        self._long_lease_s = long_lease_s
        self._bells = bells
        self._transactions = transactions or Transactions()

    async def _commit(self, body: Callable[[], tuple[T, Wake]]) -> T:
        result, wake = await self._transactions.run(body)
        self._bells.ring(wake)
        return result

    async def run_of_request(self, request_id: str) -> int | None:
        kind, run_id = self.rows.requests.get(request_id, ("", 0))
        return run_id if kind == "create" else None

    async def allocate(self, jobs: int) -> tuple[int, Sequence[int]]:
        return self.rows.new_id(), [self.rows.new_id() for _ in range(jobs)]

    async def create(self, request_id: str, new: NewRun) -> int:
        rows = self.rows

        def body() -> tuple[int, Wake]:
            if request_id in rows.requests:
                return rows.requests[request_id][1], Wake()
            if missing := sorted({each.requirement.pool for each in new.jobs} - set(rows.pools)):
                raise BadInput(f"pool `{missing[0]}` does not exist")
            rows.requests[request_id] = ("create", new.id)
            return new.id, self._insert(new)

        return await self._commit(body)

    def _insert(self, new: NewRun) -> Wake:
        rows = self.rows
        graph = new.graph
        made = new.first_rows
        for each in new.jobs:
            class_id = rows.class_of(each.requirement)
            rows.jobs[each.id] = JobRow(
                made.jobs[each.id], new.id, class_id, each.requirement.pool, each.environment, each.spec,
                name=each.name, cell=each.cell, context=each.context, wants_needs=each.wants_needs,
            )  # fmt: skip
        gates = {gate.stage: gate for gate in made.gates}
        ids = tuple(job.id for job in new.jobs)
        doors = {i: _door(i, stage, new.context) for i, stage in enumerate(new.stages) if stage.rules}
        groups = {group.name: group for group in new.groups}
        rows.runs[new.id] = RunRow(made.run, new, new.repository, new.priority, ids, gates, graph, doors, groups)
        if new.concurrency is not None:
            rows.join(new.id, None, new.concurrency)
            rows.groups_of_runs[new.id] = new.concurrency
            return Wake(groups=True) | rows.write([Changes(made.run, {}, {}, (), ())])
        return self._follow_up(made, rows.write([Changes(made.run, {}, {}, made.queued, ())]))

    def _follow_up(self, made: Made, wake: Wake) -> Wake:
        if made.events:
            wake = wake | self.rows.settle({made.run.id: made.events})
        return wake | self.rows.look_at_doors(made.run.id, made.doors) if made.doors else wake

    async def cancel(self, request_id: str, run_id: int, sentence: str) -> None:
        rows = self.rows

        def body() -> tuple[None, Wake]:
            if request_id in rows.requests:
                return None, Wake()
            if run_id not in rows.runs:
                raise NotFound(f"there is no run {run_id}")
            rows.requests[request_id] = ("cancel", run_id)
            return None, cancel_run(rows, run_id, sentence)

        await self._commit(body)

    async def decide(self, request_id: str, run_id: int, wanted: str, decision: Decision) -> None:
        rows = self.rows

        def body() -> tuple[None, Wake]:
            if request_id in rows.requests:
                return None, Wake()
            row = rows.runs[run_id]
            asked = {stage: door.name for stage, door in row.doors.items() if door.is_asked}
            if row.run.state in RUN_OVER:
                asked = {}
            try:
                after = decided(row.doors[asked_stage(run_id, asked, wanted)], decision)
            except CannotDecide as error:
                raise Conflict(str(error)) from error
            rows.requests[request_id] = ("decide", run_id)
            row.doors[after.stage] = after
            return None, Wake() if after.is_asked else rows.look_at_doors(run_id, (after.stage,))

        await self._commit(body)

    async def retry(self, request_id: str, run_id: int, job: str) -> None:
        rows = self.rows

        def body() -> tuple[None, Wake]:
            if request_id in rows.requests:
                return None, Wake()
            if run_id not in rows.runs:
                raise NotFound(f"there is no run {run_id}")
            row = rows.runs[run_id]
            before = {key: rows.jobs[key].job for key in row.jobs}
            try:
                doors = {stage: door.state for stage, door in row.doors.items()}
                made = retry(row.run, list(before.values()), row.graph, job, doors)
            except CannotRetry as error:
                raise Conflict(str(error)) from error
            enters = must_enter(row.run, has_place=rows.has_place(run_id))
            if enters:
                made = hold(made)
            changed = {key: each for key, each in made.jobs.items() if each != before[key]}
            wanted = deployments(changed)
            for each in rows.attempts.values():
                since = each.out_of_contact_since
                if each.attempt.job_id in wanted and since is not None and rows.clock() < since + self._long_lease_s:
                    rest = math.ceil(since + self._long_lease_s - rows.clock())
                    raise Conflict(may_still_run(before[each.attempt.job_id].key, rest))
            rows.requests[request_id] = ("retry", run_id)
            gates = {gate.stage: gate for gate in made.gates if gate != row.gates[gate.stage]}
            for stage in made.closed:
                row.doors[stage] = replace(row.doors[stage], state=DoorState.CLOSED, decisions=(), sentence="")
            for name, active in active_cells(made.jobs.values()).items():
                row.groups[name] = replace(row.groups[name], active=active)
            wake = rows.write([Changes(made.run, changed, gates, made.queued, ())])
            if enters:
                rows.join(run_id, None, rows.groups_of_runs[run_id])
                return None, wake | Wake(groups=True)
            return None, self._follow_up(made, wake)

        await self._commit(body)


def _door(index: int, stage: NewStage, context: str) -> Door:
    condition, approval = rules_from_json(stage.rules)
    values = {**json.loads(context), "env": env_from_json(stage.rules)}
    return Door(index, stage.name, condition=condition, approval=approval, values=values)


class MemoryTerm:
    """The right of one replica to be the reaper, as `coordinator.store.singletons.Singleton` gives it."""

    def __init__(
        self,
        rows: Rows,
        name: str,
        clock: Callable[[], float],
        *,
        lease_s: float,
        make_id: Callable[[], str],
        transactions: Transactions | None = None,
    ) -> None:
        self._rows = rows
        self._name = name
        self._clock = clock
        self._lease_s = lease_s
        self._make_id = make_id
        self._transactions = transactions or Transactions()
        self._held: str | None = None
        self._seen: tuple[str, int] | None = None
        self._since = 0.0

    async def hold(self) -> str | None:
        """Takes the term or keeps it."""

        def body() -> str | None:
            found = self._rows.terms.get(self._name)
            if found is not None and found[0] != self._held and not self._stands_still(found):
                return None
            term = found[0] if found is not None and found[0] == self._held else self._make_id()
            self._rows.terms[self._name] = (term, found[1] + 1 if found else 0)
            return term

        try:
            self._held = await self._transactions.run(body)
        except StoreDown:
            self._seen = None
            raise
        return self._held

    def _stands_still(self, found: tuple[str, int]) -> bool:
        if found != self._seen:
            self._seen, self._since = found, self._clock()
            return False
        return self._clock() - self._since >= self._lease_s
