"""What follows when something happens to the jobs of a run: the heart of the plan's execution.

`follow` is a generator: it yields what it needs to see next (the direct dependents of jobs that have ended, the
jobs behind a gate that has opened) and is sent the rows; it returns all that changes. Whoever drives it holds
the run's lock, so that the last two jobs of a stage, ending at once in two places, cannot both miss each other.
It never sees the whole run: the counters in jobs, gates and run are enough.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.core.job import AttemptEnded, AttemptReturned, DependenciesEnded, Job, JobEvent, step
from coordinator.core.run import Run, counted, judged
from coordinator.core.states import JobState


@dataclass(frozen=True, slots=True)
class Gate:
    """The end of a stage and of all stages before it. `unfinished`: its jobs, and the gate before it."""

    stage: int
    unfinished: int
    failed: int = 0
    decider: str = ""


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


Need = LoadDependents | LoadGates | LoadBehind
# What is sent back follows from the need: rows of (job id, dependent), gates, or jobs.
Answer = Any


@dataclass(frozen=True, slots=True)
class Changes:
    """What is to be written, in one transaction. `jobs` and `gates` hold only what differs from before."""

    run: Run
    jobs: Mapping[int, Job]
    gates: Mapping[int, Gate]
    queued: tuple[int, ...]
    """Jobs that have become claimable."""
    unqueued: tuple[int, ...]
    """Jobs that were claimable and no longer are."""


@dataclass(slots=True)
class _Work:
    """The rows under way: as loaded, and as they are by now."""

    run: Run
    loaded: dict[int, Job]
    jobs: dict[int, Job] = field(default_factory=dict)
    gates: dict[int, Gate] = field(default_factory=dict)
    loaded_gates: dict[int, Gate] = field(default_factory=dict)
    ended: list[Job] = field(default_factory=list)
    opened: set[int] = field(default_factory=set)
    requeued: set[int] = field(default_factory=set)
    begun: bool = False

    def see(self, job: Job) -> Job:
        """The job as it is by now; a row that is loaded twice does not undo what was decided since."""
        self.loaded.setdefault(job.id, job)
        return self.jobs.setdefault(job.id, job)

    def tell(self, job: Job, event: DependenciesEnded) -> None:
        """Tells a job of its dependencies, unless it no longer waits (canceled in this very transaction)."""
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
        if after.state is JobState.QUEUED and isinstance(event, AttemptReturned | AttemptEnded):
            self.requeued.add(job.id)


def follow(run: Run, events: Iterable[tuple[Job, JobEvent]]) -> Generator[Need, Answer, Changes]:
    """Applies the events and all that follows from them, in order. Raises IllegalTransition for a defect."""
    work = _Work(run, {})
    for job, event in events:
        work.apply(job, event)
    while work.ended:
        ended, work.ended = work.ended, []
        yield from _tell_dependents(work, ended)
        yield from _tell_gates(work, ended)
    return _changes(work)


def _tell_dependents(work: _Work, ended: Sequence[Job]) -> Generator[Need, Answer, None]:
    rows: Sequence[tuple[int, Job]] = yield LoadDependents(tuple(job.id for job in ended))
    by_id = {job.id: job for job in ended}
    for source_id, dependent in rows:
        source = by_id[source_id]
        failed = int(source.counts_as_failed)
        event = DependenciesEnded(count=1, failed=failed, decider=source.key if failed else "")
        work.tell(dependent, event)


def _tell_gates(work: _Work, ended: Sequence[Job]) -> Generator[Need, Answer, None]:
    if not work.gates:
        gates: Sequence[Gate] = yield LoadGates()
        work.gates = {gate.stage: gate for gate in gates}
        work.loaded_gates = dict(work.gates)
    touched = set()
    for job in ended:
        gate = work.gates[job.stage]
        failed = int(job.counts_as_failed)
        work.gates[job.stage] = replace(
            gate,
            unfinished=gate.unfinished - 1,
            failed=gate.failed + failed,
            decider=gate.decider or (job.key if failed else ""),
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
        )
        behind: Sequence[Job] = yield LoadBehind(stage + 1)
        for job in behind:
            work.tell(job, DependenciesEnded(count=1, failed=gate.failed, decider=gate.decider))
        # A job that was skipped just now still holds its own gate: the next round tells it.
        stage += 1


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
    gates = {stage: gate for stage, gate in work.gates.items() if gate != work.loaded_gates[stage]}
    return Changes(
        run=judged(work.run, begun=work.begun),
        jobs=changed,
        gates=gates,
        queued=tuple(sorted(queued)),
        unqueued=tuple(sorted(unqueued)),
    )
