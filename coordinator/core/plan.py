"""From a plan's graph to the first rows of a run, and from a run's rows to those of its retry.

Both look at the whole run, once, because a person asked for it; everything in between goes by counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from coordinator.core.events import Asked, DependenciesEnded, Entered, JobEvent, Skipped
from coordinator.core.job import Job, Place, Turn, step
from coordinator.core.passing import seen_of
from coordinator.core.rules import Verdict
from coordinator.core.run import Run, counted, judged
from coordinator.core.stages import DoorState, Gate
from coordinator.core.states import RUN_OVER, Cause, JobState, RunState


class CannotRetry(Exception):
    """One sentence for the person who asked."""


@dataclass(frozen=True, slots=True)
class Graph:
    """The edges of a run. `needs` maps a job id to the ids it waits for; a job not in it waits for the gate of
    the stage before its own, or for nothing in the first stage."""

    stages: int
    needs: Mapping[int, tuple[int, ...]]
    guarded: frozenset[int] = frozenset()
    """Stages with a door: their jobs wait for it, and for their needs besides."""

    def waits_for_gate(self, job: Job) -> bool:
        """Whether it waits for all jobs of all earlier stages, be it through the door of its stage."""
        return job.stage > 0 and (job.id not in self.needs or job.stage in self.guarded)


@dataclass(frozen=True, slots=True)
class Rows:
    """A whole run as it is to be stored. `queued`: jobs that are claimable now."""

    run: Run
    jobs: Mapping[int, Job]
    gates: tuple[Gate, ...]
    queued: tuple[int, ...]
    events: tuple[tuple[int, JobEvent], ...] = ()
    """What is to be followed up at once: jobs that do not run, or that nothing holds and that have to be judged."""
    doors: tuple[int, ...] = ()
    """Stages whose door is to be looked at, at once."""
    closed: frozenset[int] = frozenset()
    """Stages whose door is closed again."""


def begin(run_id: int, jobs: Sequence[Job], graph: Graph) -> Rows:
    """The first rows of a run: counters set, and what waits for nothing queued. All jobs are waiting."""
    gates = gates_of(jobs, graph)
    rows = {}
    run = Run(run_id)
    for job in jobs:
        unfinished = _first_count(job, gates, graph)
        ready = unfinished == 0 and not job.rules.are_judged and not job.rules.skip
        row = replace(job, unfinished=unfinished, state=JobState.QUEUED if ready else JobState.WAITING)
        rows[job.id] = row
        run = counted(run, None, row)
    return Rows(
        run,
        rows,
        gates,
        queued=tuple(sorted(key for key, job in rows.items() if job.state is JobState.QUEUED)),
        events=tuple(_to_follow(rows.values())),
        doors=tuple(stage for stage in sorted(graph.guarded) if not stage or not gates[stage - 1].unfinished),
    )


def hold(rows: Rows) -> Rows:
    """The rows of a run that has no place in its group yet: whatever could begin waits for it, also before a door."""
    waiting = {*rows.queued, *(key for key, _ in rows.events)}
    jobs = {key: _held(job, rows.run.group) if key in waiting else job for key, job in rows.jobs.items()}
    for key, job in jobs.items():
        if job.stage in rows.doors and job.waits_for_its_door:
            jobs[key] = replace(job, sentence=_waits_with_its_run(rows.run.group))
    run = rows.run
    for key in waiting:
        run = counted(run, rows.jobs[key], jobs[key])
    return replace(rows, run=run, jobs=jobs, queued=(), events=(), doors=())


def _waits_with_its_run(group: str) -> str:
    """What is said of a job whose run has no place in its group yet."""
    return f"its run waits for a place in the group `{group}`"


def _held(job: Job, group: str) -> Job:
    """A job that nothing else holds, in a run that has no place in its group yet."""
    return replace(
        job,
        state=JobState.WAITING,
        unfinished=job.unfinished + 1,
        turn=Turn.RUN_WAITS,
        cause=Cause.NONE,
        sentence=_waits_with_its_run(group),
    )


def enter(jobs: Iterable[Job], gates: Sequence[Gate], doors: Mapping[int, DoorState]) -> Rows:
    """What begins now that the run has its place: events and doors; the rows themselves are as they are."""
    waiting = [job for job in jobs if job.turn is Turn.RUN_WAITS and job.state is JobState.WAITING]
    events: list[tuple[int, JobEvent]] = [
        (job.id, Skipped(Verdict(Cause.SKIPPED_BY_CONDITION, job.rules.skip)) if job.rules.skip else Entered())
        for job in waiting
    ]
    open_doors = tuple(
        stage
        for stage, state in sorted(doors.items())
        if state is DoorState.CLOSED and (not stage or not gates[stage - 1].unfinished)
    )
    return Rows(Run(0), {}, tuple(gates), (), tuple(events), open_doors)


def _first_count(job: Job, gates: Sequence[Gate], graph: Graph) -> int:
    """How much a new job waits for: its needs, or the gate before its stage, and the door of its stage."""
    door = int(job.stage in graph.guarded)
    needs = graph.needs.get(job.id)
    if needs is not None:
        return len(needs) + door
    # A stage may be empty (a run of one job and its needs): then its gate is open from the start.
    return door or int(graph.waits_for_gate(job) and gates[job.stage - 1].unfinished > 0)


def _to_follow(jobs: Iterable[Job]) -> Iterator[tuple[int, JobEvent]]:
    for job in jobs:
        if job.state is JobState.WAITING and job.rules.skip:
            yield job.id, Skipped(Verdict(Cause.SKIPPED_BY_CONDITION, job.rules.skip))
        elif job.undecided:
            yield job.id, DependenciesEnded(0, 0)


def retry(
    run: Run, jobs: Sequence[Job], graph: Graph, wanted: str, doors: Mapping[int, DoorState] | None = None
) -> Rows:
    """The rows after a person asked for one job (`wanted`, its key) or for all that did not pass (empty).

    What depends on it runs again, up to, not through, the next approval or deployment, which asks again. What it did
    not touch stays. `doors`: how those of guarded stages stand. Raises CannotRetry with one sentence.
    """
    chosen = _chosen(run, jobs, wanted)
    again = _downstream(chosen, jobs, graph)
    rows = {job.id: job for job in jobs}
    # Those asked for again count as waiting while the counters of the others are made.
    standing = {job.id: replace(job, state=JobState.WAITING) if job.id in again else job for job in jobs}
    gates = gates_of(list(standing.values()), graph)
    closed = _closed(again, rows, gates, graph, doors or {})
    for job in sorted(jobs, key=lambda each: each.stage):
        if job.id not in again:
            continue
        event = _asked(job, standing, gates, graph, wanted=wanted, chosen=chosen)
        if job.id in chosen and job.cause is Cause.SKIPPED_BY_DEPENDENCY and not event.unfinished:
            raise CannotRetry(_held_back(job))
        door = int(job.stage in closed)
        gate = 0 if door and job.id not in graph.needs else event.unfinished
        rows[job.id] = step(job, replace(event, unfinished=gate + door))
    run = replace(run, canceling=False, sentence="")
    for job in jobs:
        run = counted(run, job, rows[job.id])
    # A job that a failure elsewhere still holds back is skipped anew: what follows it was counted as waiting.
    settled = {key: job for key, job in rows.items() if key in again and job.over}
    if settled:
        raise CannotRetry(_held_back(next(iter(settled.values()))))
    queued = tuple(sorted(key for key in again if rows[key].state is JobState.QUEUED))
    if run.state in RUN_OVER or run.state is RunState.BLOCKED:
        run = replace(run, state=RunState.RUNNING)
    return Rows(
        judged(run, begun=True),
        rows,
        gates,
        queued,
        events=tuple(_to_follow(rows[key] for key in again)),
        doors=tuple(stage for stage in sorted(closed) if not stage or not gates[stage - 1].unfinished),
        closed=closed,
    )


def _closed(
    again: frozenset[int],
    jobs: Mapping[int, Job],
    gates: Sequence[Gate],
    graph: Graph,
    doors: Mapping[int, DoorState],
) -> frozenset[int]:
    """Guarded stages that ask again: what comes before them runs again, or their jobs were not let in before."""
    stages = {jobs[key].stage for key in again} & graph.guarded
    before = {stage for stage in stages if stage and gates[stage - 1].unfinished}
    return frozenset(before | {stage for stage in stages if doors.get(stage) is not DoorState.OPEN})


def ended_by_cancel(run: Run, jobs: Iterable[Job], *, has_place: bool) -> frozenset[int]:
    """Jobs that a cancel ends, whoever works on them. Asked for again, it ends also what runs although the run is
    canceled; and so it does where the run has no place in its group yet, for nothing is to be cleaned up."""
    everything = run.canceling or not has_place
    return frozenset(job.id for job in jobs if not job.over and (everything or job.ends_with_its_run))


def must_enter(run: Run, *, has_place: bool) -> bool:
    """Whether what a retry asks for has to wait until the run is in its group: it has left that, or is not in yet."""
    return bool(run.group) and (run.state in RUN_OVER or not has_place)


def active_cells(jobs: Iterable[Job]) -> dict[str, int]:
    """By group, the cells that have begun, or may, and have not ended."""
    found: dict[str, int] = {}
    for job in jobs:
        if job.rules.group:
            found[job.rules.group] = found.get(job.rules.group, 0) + (job.place is Place.TAKEN and not job.over)
    return found


def _held_back(job: Job) -> str:
    return f"`{job.key}` cannot run: {job.sentence}; retry `{job.decider}`, or the whole run, instead"


def _chosen(run: Run, jobs: Sequence[Job], wanted: str) -> frozenset[int]:
    # Nobody knows the cells of these: what stands for them comes before them.
    unknown = {job.key: job.id for job in jobs if job.rules.expands and job.state is not JobState.PASSED}
    if wanted:
        found = [job for job in jobs if job.key == wanted]
        if not found:
            names = ", ".join(f"`{job.key}`" for job in jobs[:20])
            raise CannotRetry(f"run {run.id} has no job `{wanted}`: it has {names}")
        if found[0].awaits and not found[0].over:
            raise CannotRetry(f"`{wanted}` of run {run.id} waits for an approval: nothing of it has run yet")
        if not (found[0].over or found[0].state is JobState.BLOCKED):
            raise CannotRetry(f"`{wanted}` of run {run.id} has not ended: it is {found[0].state}")
        if found[0].has_vanished:
            raise CannotRetry(f"`{wanted}` is a cell of `{found[0].rules.expander}` no more: {found[0].sentence}")
        if (expander := found[0].rules.expander) in unknown:
            raise CannotRetry(
                f"`{wanted}` cannot run before `{expander}` is expanded again: retry `{expander}` instead"
            )
        if found[0].rules.skip:
            raise CannotRetry(f"`{wanted}` does not run for this event: {found[0].rules.skip}")
        return frozenset(job.id for job in found)
    if run.state not in RUN_OVER and run.state is not RunState.BLOCKED:
        raise CannotRetry(f"run {run.id} has not ended: name the job to retry, or wait")
    failed = frozenset(
        job.id for job in jobs if job.counts_as_failed or (job.state is JobState.BLOCKED and not job.awaits)
    )
    failed |= {unknown[job.rules.expander] for job in jobs if job.id in failed and job.rules.expander in unknown}
    if not failed and run.blocked:
        raise CannotRetry(f"run {run.id} waits for an approval, and nothing of it has failed")
    if not failed:
        raise CannotRetry(f"every job of run {run.id} passed: name the job to retry")
    return failed


def _downstream(chosen: frozenset[int], jobs: Sequence[Job], graph: Graph) -> frozenset[int]:
    """The chosen jobs and everything that waits for one of them, directly or not.

    Raises CannotRetry when one of those is under way: its input would change below it.
    """
    followers: dict[int, list[int]] = {}
    for dependent, needs in graph.needs.items():
        for need in needs:
            followers.setdefault(need, []).append(dependent)
    by_id = {job.id: job for job in jobs}
    again = set(chosen)
    frontier = list(chosen)
    behind_gates = sorted((job.stage, job.id) for job in jobs if graph.waits_for_gate(job))
    lowest = min(by_id[key].stage for key in chosen)
    while frontier:
        found = frontier.pop()
        lowest = min(lowest, by_id[found].stage)
        after = [key for stage, key in behind_gates if stage > lowest]
        for dependent in (*followers.get(found, ()), *after):
            if dependent not in again and by_id[dependent].may_run_again:
                again.add(dependent)
                frontier.append(dependent)
    for key in sorted(again - chosen):
        if (job := by_id[key]).state in (JobState.QUEUED, JobState.RUNNING):
            raise CannotRetry(f"`{job.key}` depends on it and is {job.state}: wait for it, or cancel the run")
    return frozenset(again)


def _asked(
    job: Job,
    standing: Mapping[int, Job],
    gates: Sequence[Gate],
    graph: Graph,
    *,
    wanted: str,
    chosen: frozenset[int],
) -> Asked:
    event = _standing_of(job, standing, gates, graph)
    # A deployment that has run, or was about to ask, asks again; one that never came to its turn just waits. Who asks
    # for the whole run has named what begins at once, and not what is behind it.
    named = wanted in {job.key, job.rules.expander or job.key} or (job.id in chosen and not event.unfinished)
    return replace(event, asks=not named and (job.asks if job.state is JobState.WAITING else job.at_most_once))


def _standing_of(job: Job, standing: Mapping[int, Job], gates: Sequence[Gate], graph: Graph) -> Asked:
    needs = graph.needs.get(job.id)
    if needs is not None:
        found = [standing[key] for key in needs]
        return Asked(sum(not each.over for each in found), *seen_of(job, found), asks=False)
    if job.stage == 0:
        return Asked(0, 0, "", asks=False)
    gate = gates[job.stage - 1]
    if gate.unfinished:
        return Asked(1, 0, "", asks=False)
    return Asked(0, gate.failed, gate.decider, asks=False, upstream_failed=gate.upstream_failed)


def gates_of(jobs: Sequence[Job], graph: Graph) -> tuple[Gate, ...]:
    """The gates of a run by a look at all its jobs."""
    gates: list[Gate] = []
    for stage in range(graph.stages):
        own = [job for job in jobs if job.stage == stage]
        before = gates[-1] if gates else None
        closed = before is not None and before.unfinished > 0
        failed = [job for job in own if job.over and job.counts_as_failed]
        passed_on = before if before is not None and not closed else None
        gates.append(
            Gate(
                stage,
                unfinished=sum(not job.over for job in own) + int(closed),
                failed=len(failed) + (passed_on.failed if passed_on else 0),
                decider=(passed_on.decider if passed_on else "") or (failed[0].key if failed else ""),
                upstream_failed=any(job.over and job.has_failed for job in own)
                or (passed_on is not None and passed_on.upstream_failed),
                guarded=stage in graph.guarded,
            )
        )
    return tuple(gates)
