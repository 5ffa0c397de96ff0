"""The run's state, from counters of its jobs: the core never looks at a whole run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from coordinator.core.job import Job
from coordinator.core.states import RUN_OVER, IllegalTransition, JobState, RunState


@dataclass(frozen=True, slots=True)
class Run:
    """A run and how many of its jobs are where. `active`: queued or running."""

    id: int
    state: RunState = RunState.PENDING
    canceling: bool = False
    sentence: str = ""
    unfinished: int = 0
    active: int = 0
    blocked: int = 0
    failed: int = 0
    """Jobs that failed by themselves, but for those that may."""
    warned: int = 0
    """Jobs that failed under `allow_failure`."""
    canceled: int = 0
    group: str = ""
    """The group of runs that it enters; empty: none."""


TABLE: dict[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset({RunState.RUNNING, RunState.BLOCKED} | RUN_OVER),
    RunState.RUNNING: frozenset({RunState.BLOCKED} | RUN_OVER),
    RunState.BLOCKED: frozenset({RunState.RUNNING} | RUN_OVER),
    RunState.PASSED: frozenset({RunState.RUNNING}),
    RunState.FAILED: frozenset({RunState.RUNNING}),
    RunState.CANCELED: frozenset({RunState.RUNNING}),
}


def counted(run: Run, before: Job | None, after: Job) -> Run:
    """The run's counters after one of its jobs has changed; `before` None: the job is new."""

    def difference(states: frozenset[JobState]) -> int:
        return (after.state in states) - (before is not None and before.state in states)

    had_failed = before is not None and before.has_failed
    return replace(
        run,
        unfinished=run.unfinished + (not after.over) - (before is not None and not before.over),
        active=run.active + difference(frozenset({JobState.QUEUED, JobState.RUNNING})),
        blocked=run.blocked + difference(frozenset({JobState.BLOCKED})),
        canceled=run.canceled + _counts_as_canceled(after) - (before is not None and _counts_as_canceled(before)),
        failed=run.failed + after.has_failed - had_failed,
        warned=run.warned + _warns(after) - (before is not None and _warns(before)),
    )


def _counts_as_canceled(job: Job) -> bool:
    return job.state is JobState.CANCELED and not job.has_vanished


def _warns(job: Job) -> bool:
    return job.state is JobState.FAILED and not job.has_failed


def _outcome(run: Run) -> RunState:
    """Canceled where somebody canceled it; cells that a failure canceled leave it failed."""
    if run.canceling and run.canceled:
        return RunState.CANCELED
    if run.failed:
        return RunState.FAILED
    return RunState.CANCELED if run.canceled else RunState.PASSED


def judged(run: Run, *, begun: bool) -> Run:
    """The run's state by its counters. `begun`: one of its jobs has started, or ended, by now.

    Raises IllegalTransition for a way that the table does not know.
    """
    if run.unfinished == 0:
        state = _outcome(run)
    elif run.blocked and not run.active:
        state = RunState.BLOCKED
    else:
        state = RunState.RUNNING if begun or run.state is not RunState.PENDING else RunState.PENDING
    if state is not run.state and state not in TABLE[run.state]:
        raise IllegalTransition(run, state)
    return replace(run, state=state)
