"""What follows when something happens to the jobs of a run: the heart of the plan's execution.

`follow` is a generator: it yields what it needs to see next (the direct dependents of jobs that have ended, the
jobs behind a gate that has opened, what a condition looks at) and is sent the rows; it returns all that changes.
Whoever drives it holds the run's lock, so that the last two jobs of a stage, ending at once in two places, cannot both
miss each other. It never sees the whole run: the counters in jobs, gates and run are enough.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.core.events import (
    ApprovalAsked,
    AttemptEnded,
    AttemptReturned,
    Canceled,
    Decided,
    DependenciesEnded,
    JobEvent,
    LetIn,
    Skipped,
)
from coordinator.core.job import Job, Place, step
from coordinator.core.passing import passed_on
from coordinator.core.rules import Standing, Verdict, judged
from coordinator.core.run import Run, counted
from coordinator.core.run import judged as judged_run
from coordinator.core.stages import Door, DoorState, Gate, Group, door_verdict
from coordinator.core.states import Cause, JobState


@dataclass(frozen=True, slots=True)
class LoadDependents:
    """Wanted: for each of these jobs, the jobs that name it in their `needs`: rows of (job id, dependent)."""

    jobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadGates:
    """Wanted: all gates of the run."""


@dataclass(frozen=True, slots=True)
class LoadBehind:
    """Wanted: the jobs of this stage that have no `needs` and so wait for the gate before it."""

    stage: int


@dataclass(frozen=True, slots=True)
class LoadFacts:
    """Wanted: what the conditions of these jobs look at: a mapping of job id to values. `ended`: jobs that have ended
    by now, and are not written yet."""

    jobs: tuple[int, ...]
    ended: Mapping[int, Job] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadDoor:
    """Wanted: the `Door` of a stage, with what its condition looks at."""

    stage: int


@dataclass(frozen=True, slots=True)
class LoadStage:
    """Wanted: all jobs of a stage."""

    stage: int


@dataclass(frozen=True, slots=True)
class LoadGroup:
    """Wanted: a `Group` of cells, and its jobs that are not over."""

    name: str


Need = LoadDependents | LoadGates | LoadBehind | LoadFacts | LoadDoor | LoadStage | LoadGroup
# What is sent back follows from the need: rows of (job id, dependent), gates, jobs, values, a door, a group.
Answer = Any


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be written, in one transaction. `jobs`, `gates` and `groups` hold only what differs from before."""

    run: Run
    jobs: Mapping[int, Job]
    gates: Mapping[int, Gate]
    queued: tuple[int, ...]
    """Jobs that have become claimable."""
    unqueued: tuple[int, ...]
    """Jobs that were claimable and no longer are."""
    doors: Mapping[int, Door] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    halted: Mapping[int, str] = field(default_factory=dict)
    """Jobs that agents may work on and that are to be canceled: their ids, and why."""


@dataclass(slots=True)
class _Work:
    """The rows under way: as loaded, and as they are by now."""

    run: Run
    loaded: dict[int, Job]
    jobs: dict[int, Job] = field(default_factory=dict)
    gates: dict[int, Gate] = field(default_factory=dict)
    loaded_gates: dict[int, Gate] = field(default_factory=dict)
    doors: dict[int, Door] = field(default_factory=dict)
    loaded_doors: dict[int, Door] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    loaded_groups: dict[str, Group] = field(default_factory=dict)
    members: dict[str, tuple[int, ...]] = field(default_factory=dict)
    halted: dict[int, str] = field(default_factory=dict)
    ended: list[Job] = field(default_factory=list)
    undecided: dict[int, None] = field(default_factory=dict)
    opened: set[int] = field(default_factory=set)
    requeued: set[int] = field(default_factory=set)
    begun: bool = False

    def see(self, job: Job) -> Job:
        """The job as it is by now; a row that is loaded twice does not undo what was decided since."""
        self.loaded.setdefault(job.id, job)
        return self.jobs.setdefault(job.id, job)

    def tell(self, job: Job, event: JobEvent) -> None:
        """Tells a job of what it waits for, unless it no longer waits (canceled in this very transaction)."""
        if self.see(job).state is JobState.WAITING:
            self.apply(job, event)

    def apply(self, job: Job, event: JobEvent) -> None:
        before = self.see(job)
        after = step(before, event)
        self.jobs[job.id] = after
        self.run = counted(self.run, before, after)
        if after.over and not before.over:
            self.ended.append(after)
        if after.over or after.state is JobState.RUNNING:
            self.begun = True
        if after.undecided:
            self.undecided[job.id] = None
        if after.state is JobState.QUEUED and isinstance(event, AttemptReturned | AttemptEnded):
            self.requeued.add(job.id)


def follow(
    run: Run, events: Iterable[tuple[Job, JobEvent]], doors: Iterable[int] = ()
) -> Generator[Need, Answer, Changes]:
    """Applies the events and all that follows from them, in order. Raises IllegalTransition for a defect.

    `doors`: stages that may be looked at now, because nothing before them is open, or because a person has decided.
    """
    work = _Work(run, {})
    for job, event in events:
        work.apply(job, event)
    for stage in doors:
        yield from _look_at_door(work, stage)
    while work.ended or work.undecided:
        if work.undecided:
            yield from _decide(work)
        ended, work.ended = work.ended, []
        if ended:
            yield from _tell_dependents(work, ended)
            yield from _tell_gates(work, ended)
            yield from _tell_groups(work, ended)
            yield from _close_doors(work, ended)
    return _changes(work)


def _tell_dependents(work: _Work, ended: Sequence[Job]) -> Generator[Need, Answer, None]:
    rows: Sequence[tuple[int, Job]] = yield LoadDependents(tuple(job.id for job in ended))
    by_id = {job.id: job for job in ended}
    for source_id, dependent in rows:
        source = by_id[source_id]
        if dependent.rules.expander == source.key and source.state is not JobState.PASSED:
            work.tell(dependent, Skipped(_as_its_expander(source)))
            continue
        failed, decider, upstream_failed = passed_on(source, dependent)
        work.tell(dependent, DependenciesEnded(1, failed, decider, upstream_failed=upstream_failed))


def _as_its_expander(source: Job) -> Verdict:
    """What a cell is told whose matrix nobody knows any more: whatever its own `if` says, it does not run."""
    if source.state is JobState.FAILED:  # one that was allowed to holds up nobody: nor do its cells
        cause = Cause.SKIPPED_BY_DEPENDENCY if source.counts_as_failed else Cause.SKIPPED_BY_CONDITION
        return Verdict(cause, f"`{source.key}` did not pass", source.key)
    return Verdict(source.cause, source.sentence, source.decider)


# Conditions


def _decide(work: _Work) -> Generator[Need, Answer, None]:
    """Judges those that nothing holds any more, and gives them a place among their cells."""
    ids = [key for key in work.undecided if work.jobs[key].undecided]
    work.undecided.clear()
    asking = tuple(key for key in ids if work.jobs[key].rules.condition is not None and not work.jobs[key].admitted)
    values: Mapping[int, Mapping[str, Any]] = {}
    if asking:
        values = yield LoadFacts(asking, {key: job for key, job in work.jobs.items() if job.over})
    for key in ids:
        job = work.jobs[key]
        verdict = Verdict()
        if not job.admitted:
            standing = Standing(
                job.failed, job.decider, job.upstream_failed, work.run.canceling, let_in=job.rules.trust_the_door
            )
            verdict = judged(job.rules.condition, standing, values.get(key, {}))
        held = ""
        if verdict.cause is Cause.NONE and job.rules.group:
            held = yield from _take_place(work, job)
        work.apply(job, Decided(verdict, held))


# Gates and doors


def _load_gates(work: _Work) -> Generator[Need, Answer, None]:
    if not work.gates:
        gates: Sequence[Gate] = yield LoadGates()
        work.gates = {gate.stage: gate for gate in gates}
        work.loaded_gates = dict(work.gates)


def _tell_gates(work: _Work, ended: Sequence[Job]) -> Generator[Need, Answer, None]:
    yield from _load_gates(work)
    touched = set()
    for job in ended:
        gate = work.gates[job.stage]
        failed = int(job.counts_as_failed)
        work.gates[job.stage] = replace(
            gate,
            unfinished=gate.unfinished - 1,
            failed=gate.failed + failed,
            decider=gate.decider or (job.key if failed else ""),
            upstream_failed=gate.upstream_failed or job.has_failed,
        )
        touched.add(job.stage)
    for stage in sorted(touched):
        yield from _open_gates(work, stage)


def _open_gates(work: _Work, stage: int) -> Generator[Need, Answer, None]:
    """Opens the gate if nothing holds it any more, and those behind it that were only waiting for it."""
    while (gate := work.gates.get(stage)) is not None and gate.unfinished == 0 and stage not in work.opened:
        work.opened.add(stage)
        if (following := work.gates.get(stage + 1)) is None:
            return
        work.gates[stage + 1] = replace(
            following,
            unfinished=following.unfinished - 1,
            failed=following.failed + gate.failed,
            decider=following.decider or gate.decider,
            upstream_failed=following.upstream_failed or gate.upstream_failed,
        )
        if following.guarded:
            yield from _look_at_door(work, stage + 1)
        else:
            behind: Sequence[Job] = yield LoadBehind(stage + 1)
            event = DependenciesEnded(1, gate.failed, gate.decider, upstream_failed=gate.upstream_failed)
            for job in behind:
                work.tell(job, event)
        # A job that was skipped just now still holds its own gate: the next round tells it.
        stage += 1


def _door(work: _Work, stage: int) -> Generator[Need, Answer, Door]:
    if stage not in work.doors:
        work.doors[stage] = work.loaded_doors[stage] = yield LoadDoor(stage)
    return work.doors[stage]


def _look_at_door(work: _Work, stage: int) -> Generator[Need, Answer, None]:
    """Judges a stage's `if`, then asks for its approval, then lets its jobs in."""
    yield from _load_gates(work)
    door = yield from _door(work, stage)
    jobs: Sequence[Job] = yield LoadStage(stage)
    if not any(work.see(job).waits_for_its_door for job in jobs):
        return  # nobody stands before it: nobody is to be asked
    before = work.gates.get(stage - 1)
    verdict, after = door_verdict(door, before, canceling=work.run.canceling)
    work.doors[stage] = after
    let_in = LetIn(approved=door.state is DoorState.APPROVED)
    if before is not None:
        let_in = replace(let_in, failed=before.failed, decider=before.decider, upstream_failed=before.upstream_failed)
    for job in jobs:
        now = work.see(job)
        if not now.waits_for_its_door:
            continue
        if verdict.cause is not Cause.NONE:
            if now.state is JobState.BLOCKED:
                work.apply(job, Canceled(verdict.sentence))
            else:
                work.tell(job, Skipped(verdict))
        elif after.is_asked:
            work.tell(job, ApprovalAsked(after.sentence))
        else:
            work.apply(job, let_in)


def _close_doors(work: _Work, ended: Sequence[Job]) -> Generator[Need, Answer, None]:
    """A question that nobody waits for any more is taken back."""
    for stage in sorted({job.stage for job in ended if job.awaits}):
        door = yield from _door(work, stage)
        jobs: Sequence[Job] = yield LoadStage(stage)
        if door.is_asked and not any(work.see(job).awaits and not work.see(job).over for job in jobs):
            work.doors[stage] = replace(door, state=DoorState.CLOSED, decisions=(), sentence="")


# Cells


def _group(work: _Work, name: str) -> Generator[Need, Answer, Group]:
    if name not in work.groups:
        group, jobs = yield LoadGroup(name)
        work.groups[name] = work.loaded_groups[name] = group
        work.members[name] = tuple(job.id for job in jobs)
        for job in jobs:
            work.see(job)
    return work.groups[name]


def _take_place(work: _Work, job: Job) -> Generator[Need, Answer, str]:
    """A place among the cells that run; a sentence when all are taken."""
    if job.place is Place.TAKEN:
        return ""
    group = yield from _group(work, job.rules.group)
    if group.max_parallel and group.active >= group.max_parallel:
        return f"at most {group.max_parallel} cells of `{group.name}` run at a time"
    work.groups[group.name] = replace(group, active=group.active + 1)
    return ""


def _tell_groups(work: _Work, ended: Sequence[Job]) -> Generator[Need, Answer, None]:
    """Gives the places of cells that have ended to others, or ends those at the first failure."""
    for job in ended:
        if not job.rules.group:
            continue
        group = yield from _group(work, job.rules.group)
        if job.place is Place.TAKEN:
            group = replace(group, active=group.active - 1)
            work.groups[group.name] = group
        if group.fail_fast and job.has_failed:
            _end_cells(work, group, job)
        cells = [work.jobs[key] for key in work.members[group.name]]
        held = [each for each in cells if each.place is Place.HELD and each.state is JobState.WAITING]
        called = sum(each.undecided for each in held)  # by another cell that has ended just now
        still = [each for each in held if not each.undecided]
        for each in still[: max(0, group.max_parallel - group.active - called)]:
            work.apply(each, DependenciesEnded(1, 0))


def _end_cells(work: _Work, group: Group, failed: Job) -> None:
    sentence = f"`{failed.key}` failed, and `fail_fast` ends the other cells"
    for key in work.members[group.name]:
        job = work.jobs[key]
        if job.state in (JobState.WAITING, JobState.BLOCKED):
            work.apply(job, Canceled(sentence))
        elif not job.over:
            work.halted[key] = sentence


def _changes(work: _Work) -> Changes:
    changed = {key: job for key, job in work.jobs.items() if job != work.loaded[key]}
    queued = {
        key
        for key, job in work.jobs.items()
        if job.state is JobState.QUEUED and (work.loaded[key].state is not JobState.QUEUED or key in work.requeued)
    }
    unqueued = {
        key
        for key, job in changed.items()
        if work.loaded[key].state is JobState.QUEUED and job.state is not JobState.QUEUED
    }
    return Changes(
        run=judged_run(work.run, begun=work.begun),
        jobs=changed,
        gates={stage: gate for stage, gate in work.gates.items() if gate != work.loaded_gates[stage]},
        queued=tuple(sorted(queued)),
        unqueued=tuple(sorted(unqueued)),
        doors={stage: door for stage, door in work.doors.items() if door != work.loaded_doors[stage]},
        groups={name: group for name, group in work.groups.items() if group != work.loaded_groups[name]},
        halted=work.halted,
    )
