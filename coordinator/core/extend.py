"""From a run under way to the rows that one of its steps adds to it.

The whole run is looked at, once, as when a person asks for a retry; afterwards counters go on as before. The job that
adds has not ended, so no gate from its own stage on is open, and no later stage has had its turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from coordinator.core.events import DependenciesEnded, JobEvent, Skipped
from coordinator.core.job import Job
from coordinator.core.passing import seen_of
from coordinator.core.plan import Graph
from coordinator.core.rules import Verdict
from coordinator.core.run import Run, counted
from coordinator.core.stages import Door, DoorState, Gate
from coordinator.core.states import Cause, JobState


class CannotExtend(Exception):
    """One sentence for whoever wrote the fragment."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A run as it is. `gates` in order; `doors`: of guarded stages, by their numbers."""

    run: Run
    jobs: Sequence[Job]
    graph: Graph
    gates: Sequence[Gate]
    doors: Mapping[int, Door]


@dataclass(frozen=True, slots=True)
class Addition:
    """What is added, with stages numbered as they will be. `needs`: of added jobs, as in a `Graph`."""

    jobs: Sequence[Job]
    needs: Mapping[int, tuple[int, ...]]
    stages: frozenset[int] = frozenset()
    """Those that are new."""
    guarded: frozenset[int] = frozenset()
    """Those of all stages that have a door, or are to have one now."""
    more: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Further needs of jobs that are there."""


@dataclass(frozen=True, slots=True)
class Extended:
    """What is to be stored. `jobs`: the added ones, all of them waiting, and those that wait for more now."""

    run: Run
    jobs: Mapping[int, Job]
    gates: Mapping[int, Gate]
    """New ones, and those whose counters change, by their new numbers."""
    moved: Mapping[int, int]
    """By old number, the new one of stages that have another now."""
    doors: frozenset[int]
    """Stages that were there and have a door from now on, by their new numbers."""
    events: tuple[tuple[int, JobEvent], ...]
    """What is to be followed up at once: jobs that do not run, or that nothing holds."""


@dataclass(frozen=True, slots=True)
class _Whole:
    """The run as it will be, by new numbers."""

    jobs: Mapping[int, Job]
    needs: Mapping[int, tuple[int, ...]]
    gates: Mapping[int, Gate]
    shut: frozenset[int]
    """Guarded stages whose jobs wait for the door."""


def extend(now: Standing, parent: int, addition: Addition) -> Extended:
    """The rows of a run to which a step of the job `parent` adds something. Raises CannotExtend with one sentence."""
    numbers = _numbers(now.graph.stages, addition.stages)
    present = next(job.stage for job in now.jobs if job.id == parent)
    _refuse(now.run, {numbers[stage]: door for stage, door in now.doors.items()}, numbers[present], addition)
    return grown(now, addition)


def grown(now: Standing, addition: Addition) -> Extended:
    """The rows of a run with what is added to it, whoever adds it."""
    numbers = _numbers(now.graph.stages, addition.stages)
    doors = {numbers[stage]: door for stage, door in now.doors.items()}
    there = {job.id: replace(job, stage=numbers[job.stage]) for job in now.jobs}
    jobs = there | {job.id: job for job in addition.jobs}
    before = {numbers[gate.stage]: replace(gate, stage=numbers[gate.stage]) for gate in now.gates}
    guarded = addition.guarded | frozenset(doors)
    after = _gates(before, addition, guarded)
    shut = frozenset(stage for stage in guarded if stage not in doors or doors[stage].state is not DoorState.OPEN)
    needs = {**now.graph.needs, **addition.needs}
    needs |= {key: (*needs.get(key, ()), *more) for key, more in addition.more.items()}
    whole = _Whole(jobs, needs, after, shut)
    rows = {job.id: _with_counters(job, whole) for job in addition.jobs}
    run = now.run
    for row in rows.values():
        run = counted(run, there.get(row.id), row)
    waiting = {
        key: _waiting_for_more(jobs[key], [jobs[need] for need in more])
        for key, more in _waited_for(now.graph, addition, frozenset(there)).items()
        if key not in rows and jobs[key].state is JobState.WAITING
    }
    return Extended(
        run,
        rows | waiting,
        gates={stage: gate for stage, gate in after.items() if gate != before.get(stage)},
        moved={old: new for old, new in numbers.items() if old != new},
        doors=addition.guarded - frozenset(doors) - addition.stages,
        events=tuple((key, _first_event(row)) for key, row in rows.items() if row.rules.skip or not row.unfinished),
    )


def _waited_for(graph: Graph, addition: Addition, there: frozenset[int]) -> dict[int, tuple[int, ...]]:
    """By job that is there, what it waits for besides: further needs, and what it needs that was over and is back."""
    back = {job.id for job in addition.jobs if job.id in there}
    found = {key: tuple(need for need in needs if need in back) for key, needs in graph.needs.items()} if back else {}
    return found | {key: (*found.get(key, ()), *more) for key, more in addition.more.items()}


def _numbers(stages: int, new: frozenset[int]) -> dict[int, int]:
    """By the number of a stage before, the one that it has when the new ones stand between them."""
    kept = (number for number in range(stages + len(new)) if number not in new)
    return dict(zip(range(stages), kept, strict=True))


def _refuse(run: Run, doors: Mapping[int, Door], present: int, addition: Addition) -> None:
    if run.canceling:
        raise CannotExtend("the run is being canceled: nothing is added to it any more")
    for stage in sorted({job.stage for job in addition.jobs} - addition.stages):
        door = doors.get(stage)
        if door is None or (door.state is DoorState.CLOSED and stage != present):
            continue
        if door.approval is not None:
            message = f"the approval of the stage `{door.name}` was asked for its jobs as they are"
            raise CannotExtend(f"{message}: add a stage instead")
        if stage != present or door.state is not DoorState.OPEN:
            raise CannotExtend(f"the `if` of the stage `{door.name}` was judged already: add a stage instead")


def _gates(before: Mapping[int, Gate], addition: Addition, guarded: frozenset[int]) -> dict[int, Gate]:
    """Those of all stages. A new one lies behind a gate that is closed: each still waits for the one before."""
    added: dict[int, int] = {}
    for job in addition.jobs:
        added[job.stage] = added.get(job.stage, 0) + 1
    found: dict[int, Gate] = {}
    for stage in sorted({*before, *addition.stages}):
        gate = before.get(stage) or Gate(stage, int(stage > 0 and found[stage - 1].unfinished > 0))
        found[stage] = replace(gate, unfinished=gate.unfinished + added.get(stage, 0), guarded=stage in guarded)
    return found


def _with_counters(job: Job, whole: _Whole) -> Job:
    """An added job with what it waits for, some of which may be over by now."""
    door = int(job.stage in whole.shut)
    if (needs := whole.needs.get(job.id)) is not None:
        found = [whole.jobs[key] for key in needs]
        failed, decider, upstream = seen_of(job, found)
        unfinished = sum(not each.over for each in found) + door
        return replace(job, unfinished=unfinished, failed=failed, decider=decider, upstream_failed=upstream)
    gate = whole.gates.get(job.stage - 1)
    if door or gate is None:
        return replace(job, unfinished=door)
    if gate.unfinished:
        return replace(job, unfinished=1)
    if whole.gates[job.stage].guarded:
        return job  # its door has judged what comes before
    return replace(job, failed=gate.failed, decider=gate.decider, upstream_failed=gate.upstream_failed)


def _waiting_for_more(job: Job, more: Sequence[Job]) -> Job:
    failed, decider, upstream = seen_of(job, more)
    return replace(
        job,
        unfinished=job.unfinished + sum(not each.over for each in more),
        failed=job.failed + failed,
        decider=job.decider or decider,
        upstream_failed=job.upstream_failed or upstream,
    )


def _first_event(job: Job) -> JobEvent:
    if job.rules.skip:
        return Skipped(Verdict(Cause.SKIPPED_BY_CONDITION, job.rules.skip))
    return DependenciesEnded(0, 0)
