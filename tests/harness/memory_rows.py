"""The rows of a coordinator's database as plain dictionaries, and the core driven over them.

Everything here happens at once, as one transaction does. What the core refuses is refused before anything is
written.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

from coordinator.core import attempt as machine
from coordinator.core.attempt import Attempt, Gone
from coordinator.core.events import AttemptEnded, AttemptReturned, AttemptStarted, Canceled, JobEvent
from coordinator.core.facts import Ended, given, needs_of, outputs_of
from coordinator.core.fairness import queue_times
from coordinator.core.follow import (
    Changes,
    LoadBehind,
    LoadDependents,
    LoadDoor,
    LoadFacts,
    LoadGates,
    LoadGroup,
    LoadStage,
    Need,
    follow,
)
from coordinator.core.job import Job, Turn
from coordinator.core.matching import Fleet, Reason, Requirement, reason
from coordinator.core.run import Run
from coordinator.core.states import ATTEMPT_LIVE, RUN_OVER, AttemptState, JobState
from coordinator.dispatch.port import EndedReport, Report, StartedReport, Wake
from coordinator.store.logs import LogFinal
from coordinator.store.settle import is_something
from headrace.pipeline.plan import Concurrency
from tests.harness.memory_logs import LogRow, close_logs, lost_log
from tests.harness.memory_tables import (
    AgentRow,
    AttemptRow,
    JobRow,
    LeaseRow,
    MemberRow,
    PoolRow,
    QueueRow,
    RunRow,
    SessionRow,
)

Events = Mapping[int, Sequence[tuple[int, JobEvent]]]


@dataclass
class Rows:
    """All tables. `clock`: seconds. `changed` is called after every commit, for whoever watches from outside."""

    clock: Callable[[], float]
    runs: dict[int, RunRow] = field(default_factory=dict)
    jobs: dict[int, JobRow] = field(default_factory=dict)
    classes: dict[int, Requirement] = field(default_factory=dict)
    pools: dict[str, PoolRow] = field(default_factory=lambda: {"default": PoolRow()})
    shares: dict[tuple[str, str], float] = field(default_factory=dict)
    queue: dict[int, QueueRow] = field(default_factory=dict)
    agents: dict[str, AgentRow] = field(default_factory=dict)
    sessions: dict[str, SessionRow] = field(default_factory=dict)
    attempts: dict[int, AttemptRow] = field(default_factory=dict)
    leases: dict[int, LeaseRow] = field(default_factory=dict)
    logs: dict[tuple[int, str], LogRow] = field(default_factory=dict)
    requests: dict[str, tuple[str, int]] = field(default_factory=dict)
    environments: dict[tuple[str, str], int] = field(default_factory=dict)
    terms: dict[str, tuple[str, int]] = field(default_factory=dict)
    members: list[MemberRow] = field(default_factory=list)
    groups_of_runs: dict[int, Concurrency] = field(default_factory=dict)
    ids: int = 0
    life: int = 0
    """Which server this is; another one after a failover."""

    def taken_back(self, to: Rows) -> None:
        """A failover that lost commits: the tables are those of an earlier moment. Ids are not given out again."""
        kept = {"clock": self.clock, "ids": self.ids, "life": self.life + 1}
        vars(self).update(vars(to) | kept)

    def copied(self) -> Rows:
        """The tables as they are now."""
        return Rows(self.clock, **{key: deepcopy(each) for key, each in vars(self).items() if key != "clock"})

    def new_id(self) -> int:
        self.ids += 1
        return self.ids

    def class_of(self, requirement: Requirement) -> int:
        """The class of jobs that require this."""
        found = next((key for key, each in self.classes.items() if each == requirement), 0) or self.new_id()
        self.classes[found] = requirement
        return found

    def agent(self, agent_id: int) -> AgentRow:
        return next(row for row in self.agents.values() if row.id == agent_id)

    def lease_of_job(self, job_id: int) -> LeaseRow | None:
        return next((lease for lease in self.leases.values() if lease.job_id == job_id), None)

    def session_of(self, agent_id: int) -> str | None:
        return next((key for key, row in self.sessions.items() if row.agent_id == agent_id), None)

    def free_slots(self, session_id: str) -> int:
        """What the agent said it has, less what it holds by the books."""
        if session_id not in self.sessions:
            return 0
        held = sum(lease.session_id == session_id for lease in self.leases.values())
        return self.agent(self.sessions[session_id].agent_id).hello.slots - held

    def reason(self, need: Requirement) -> Reason:
        """Why what requires this is not taken."""
        connected, offers = {row.agent_id for row in self.sessions.values()}, ({}, {}, {}, {})
        for name, row in self.agents.items():
            if row.id in connected:
                how = 3 if row.quarantine or row.refusal else 2 if row.leaving else 1 if row.drained else 0
                offers[how][name] = row.hello.offer
        return reason(need, Fleet(*offers), paused=self.pools[need.pool].paused)

    def reaps(self, term: str) -> bool:
        """Whether this is the reaper's term."""
        return self.terms.get("reaper", ("", 0))[0] == term

    def standing(self) -> dict[str, int]:
        """The counts that must be 0."""
        lost = [each for each in self.leases.values() if not each.at_most_once and each.session_id not in self.sessions]
        waiting = [row for row in self.jobs.values() if row.job.state is JobState.WAITING and not row.job.unfinished]
        leased = {lease.job_id for lease in self.leases.values()}
        unplaced = [
            key
            for key, row in self.jobs.items()
            if row.job.state is JobState.QUEUED and key not in self.queue and key not in leased
        ]
        return {
            "lost_sight": len(lost),
            "waiting_for_nothing": len(waiting),
            "queued_without_place": len(unplaced),
        }

    # What follows

    def settle(self, events: Events, changed_runs: Mapping[int, Run] | None = None) -> Wake:
        """Applies events to jobs, by run, with all that follows."""
        runs = dict(changed_runs or {})
        done = []
        for run_id, pairs in sorted(events.items()):
            run = runs.get(run_id, self.runs[run_id].run)
            done.append(self._drive(run_id, follow(run, [(self.jobs[job].job, event) for job, event in pairs])))
        wake = self.write(done)
        for changes in done:
            wake = wake | self.halt(changes.halted)
        return wake

    def look_at_doors(self, run_id: int, stages: Sequence[int]) -> Wake:
        """What follows from doors that may be looked at."""
        return self.write([self._drive(run_id, follow(self.runs[run_id].run, [], stages))])

    def halt(self, halted: Mapping[int, str]) -> Wake:
        """Ends jobs that were queued, or that agents work on."""
        if not halted:
            return Wake()
        events: dict[int, list[tuple[int, JobEvent]]] = defaultdict(list)
        for job, why in halted.items():
            if job in self.queue:
                events[self.jobs[job].run_id].append((job, Canceled(why)))
            elif (lease := self.lease_of_job(job)) is not None and not lease.cancel:
                self.cancel_lease(lease, why)
        return self.settle(events) | Wake(cancels=True)

    def _drive(self, run_id: int, generator: Any) -> Changes:
        answer: object = None
        while True:
            try:
                need = generator.send(answer)
            except StopIteration as stop:
                changes: Changes = stop.value
                return changes
            answer = self._answer(self.runs[run_id], need)

    def _answer(self, row: RunRow, need: Need) -> object:
        jobs = [self.jobs[key].job for key in row.jobs]
        match need:
            case LoadDependents():
                return [
                    (source, job)
                    for source in need.jobs
                    for job in jobs
                    if source in row.graph.needs.get(job.id, ()) and job.state is JobState.WAITING
                ]
            case LoadGates():
                return list(row.gates.values())
            case LoadBehind():
                return [
                    job
                    for job in jobs
                    if job.stage == need.stage and job.id not in row.graph.needs and job.state is JobState.WAITING
                ]
            case LoadStage():
                return [job for job in jobs if job.stage == need.stage]
            case LoadDoor():
                earlier = [self.jobs[job.id] for job in jobs if job.stage < need.stage]
                seen = outputs_of((each.name, each.outputs) for each in earlier if not each.cell)
                door = row.doors[need.stage]
                return replace(door, values={**door.values, "outputs": seen})
            case LoadFacts():
                return {key: {**json.loads(self.jobs[key].context or "{}"), "needs": self.needs(row, key, need.ended)}
                        for key in need.jobs}  # fmt: skip
            case LoadGroup():
                cells = [job for job in jobs if job.rules.group == need.name and not job.over]
                return row.groups[need.name], cells
            case _:
                assert_never(need)

    def needs(self, row: RunRow, key: int, over: Mapping[int, Job] | None = None) -> dict[str, Any]:
        """`needs` of a job, as expressions see it now."""
        of, found = self.jobs[key], []
        for each in sorted(row.graph.needs.get(key, ()), key=row.jobs.index):
            needed, job = self.jobs[each], (over or {}).get(each, self.jobs[each].job)
            if not job.has_vanished and (needed.name != of.name or not of.cell):
                found.append(Ended(needed.name, job.state, needed.cell, needed.outputs, job.rules.expands))
        return needs_of(found)

    def write(self, changes: Sequence[Changes]) -> Wake:
        """Writes what the core decided."""
        touched = [each for each in changes if is_something(each, self.runs[each.run.id].run)]
        for each in touched:
            row = self.runs[each.run.id]
            row.run = each.run
            row.gates.update(each.gates)
            row.groups.update(each.groups)
            for stage, door in each.doors.items():
                row.doors[stage] = door
                if door.is_asked and door.approval is not None:
                    row.expires.setdefault(stage, self.clock() + door.approval.timeout_ms / 1000)
                else:
                    row.expires.pop(stage, None)
            for key, job in each.jobs.items():
                self.jobs[key].job = job
                self.jobs[key].due_at = self.clock() + job.pause_ms / 1000 if job.pause_ms else None
            for key in each.unqueued:
                self.queue.pop(key, None)
        groups = self._change_groups(touched)
        expansions = any(job.is_expanding for each in touched for job in each.jobs.values())
        queued = sorted(key for each in touched for key in each.queued)
        self._enqueue(queued)
        runs = frozenset(each.run.id for each in touched)
        return Wake(queue=bool(queued), runs=runs, groups=groups, expansions=expansions)

    def join(self, run_id: int, job_id: int | None, group: Concurrency) -> None:
        """Takes a place at the end; whoever is there already keeps its own."""
        row = self.runs[run_id]
        key = (row.repository, row.new.trusted, job_id is not None, group.group)
        if not any(each.run_id == run_id and each.job_id == job_id for each in self.members):
            self.members.append(MemberRow(key, run_id, job_id, group))

    def has_place(self, run_id: int) -> bool:
        """Whether a run does not wait for a place in its group."""
        mine = [each for each in self.members if (each.run_id, each.job_id) == (run_id, None)]
        return all(each.entered for each in mine)

    def _change_groups(self, touched: Sequence[Changes]) -> bool:
        before = list(self.members)
        deployed = any(each.run.group and job.at_most_once for each in touched for job in each.jobs.values())
        gone = {(each.run.id, None) for each in touched if each.run.state in RUN_OVER}
        for each in touched:
            for job in each.jobs.values():
                if not job.in_group:
                    gone.add((each.run.id, job.id))
                elif job.turn is Turn.WAITS and job.state is JobState.WAITING and job.rules.concurrency is not None:
                    self.join(each.run.id, job.id, job.rules.concurrency)
        self.members = [each for each in self.members if (each.run_id, each.job_id) not in gone]
        return deployed or self.members != before

    def _enqueue(self, queued: Sequence[int]) -> None:
        fresh: dict[tuple[str, str], list[JobRow]] = defaultdict(list)
        for key in queued:
            row = self.jobs[key]
            if row.vt is None:
                fresh[self.runs[row.run_id].repository, row.pool].append(row)
        for (repository, pool), rows in sorted(fresh.items()):
            times = queue_times(self.pools[pool].vt, self.shares.get((repository, pool), 0.0), 1.0, len(rows))
            for row, vt in zip(rows, times, strict=True):
                row.vt = vt
            self.shares[repository, pool] = times[-1]
        for key in queued:
            row = self.jobs[key]
            assert row.vt is not None
            place = QueueRow(row.class_id, self.runs[row.run_id].priority, row.vt, self.clock())
            self.queue.setdefault(key, place)
            if row.wants_needs:
                row.given = given(self.needs(self.runs[row.run_id], key))

    # Attempts

    def move(self, moved: Iterable[tuple[Attempt, Attempt]], told: Mapping[int, Report] | None = None) -> Wake:
        """Writes attempts (before, after), in order, and settles what follows from each step."""
        events: dict[int, list[tuple[int, JobEvent]]] = defaultdict(list)
        over = []
        moved = list(moved)
        for before, after in moved:
            row = self.attempts[after.id]
            lease = self.leases.get(after.id)
            survives = self.jobs[after.job_id].job.rules.survives_cancel
            of_run = self.runs[row.run_id].run.canceling and not survives
            canceling = of_run or (lease is not None and bool(lease.cancel))
            report = (told or {}).get(after.id)
            events[row.run_id].append((after.job_id, job_event(after, canceling=canceling, told=report)))
            if isinstance(report, EndedReport) and after.state not in ATTEMPT_LIVE:
                self.jobs[after.job_id].outputs = report.outputs
            if before.state in ATTEMPT_LIVE and after.state not in ATTEMPT_LIVE:
                over.append(after.id)
        wake = self.settle(events)  # what the core refuses is refused before anything is written
        for _, after in moved:
            row = self.attempts[after.id]
            row.attempt = after
            lease = self.leases.get(after.id)
            if after.state is AttemptState.LOST and lease is not None and lease.permit is not None:
                row.out_of_contact_since = self.clock() if lease.orphaned_at is None else lease.orphaned_at
            if after.state is AttemptState.LOST:
                lost_log(self, after.id)
            if isinstance(report := (told or {}).get(after.id), EndedReport) and after.state not in ATTEMPT_LIVE:
                close_logs(self, LogFinal(after.id, dict(report.log_records)))
        for key in over:
            self.leases.pop(key, None)
        return wake

    def gone(self, given_up: Mapping[int, str]) -> Wake:
        """Gives up what still lives of these: lost where it had started, else returned."""
        living = [
            (row.attempt, sentence)
            for key, sentence in sorted(given_up.items())
            if (row := self.attempts[key]).attempt.state in ATTEMPT_LIVE
        ]
        return self.move([(attempt, machine.step(attempt, Gone(sentence))) for attempt, sentence in living])

    def cancel_lease(self, lease: LeaseRow, sentence: str) -> None:
        """Asks the agent to cancel; again: to kill."""
        self.leases[lease.attempt_id] = replace(lease, cancel="kill" if lease.cancel else "cancel", sentence=sentence)


def job_event(after: Attempt, *, canceling: bool, told: Report | None = None) -> JobEvent:
    """What an attempt's step means for its job."""
    if after.state is AttemptState.RUNNING:
        return AttemptStarted()
    if after.state is AttemptState.RETURNED:
        return AttemptReturned(canceling)
    if isinstance(told, EndedReport):
        return AttemptEnded(after.state, after.cause, after.sentence, canceling, told.exit_code, told.log_patterns)
    return AttemptEnded(after.state, after.cause, after.sentence, canceling)


def event_of(each: Report) -> machine.Started | machine.Ended:
    """What a report says, to the attempt's state machine."""
    if isinstance(each, StartedReport):
        return machine.Started(each.token, each.id)
    return machine.Ended(each.token, each.id, each.outcome, each.cause, each.sentence)
