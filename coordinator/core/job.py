"""The job's state machine, and what an attempt's outcome means for its job."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from coordinator.core.states import JOB_OVER, AttemptState, Cause, IllegalTransition, JobState

# What the machinery failed at is tried again so often, unless the pipeline says otherwise.
LOST_BUDGET = 2
ERRORED_BUDGET = 2


@dataclass(frozen=True, slots=True)
class Job:
    """A job, with the stored counters that decide when it is its turn."""

    id: int
    key: str
    stage: int
    state: JobState = JobState.WAITING
    cause: Cause = Cause.NONE
    sentence: str = ""
    unfinished: int = 0
    """Dependencies that have not ended."""
    failed: int = 0
    """Of those that have ended, how many count as failed."""
    decider: str = ""
    """Key of the first dependency that counts as failed."""
    at_most_once: bool = False
    asks: bool = False
    """A deployment that a retry upstream has reached: it asks a person again before it runs."""
    tries: int = 0
    lost: int = 0
    errored: int = 0

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in JOB_OVER

    @property
    def counts_as_failed(self) -> bool:
        """For what follows it: failed, canceled, or skipped because of a dependency."""
        if self.state is JobState.SKIPPED:
            return self.cause is Cause.SKIPPED_BY_DEPENDENCY
        return self.state in (JobState.FAILED, JobState.CANCELED)


@dataclass(frozen=True, slots=True)
class DependenciesEnded:
    """Some of its dependencies have ended; with the last of them it is decided."""

    count: int
    failed: int
    decider: str = ""


@dataclass(frozen=True, slots=True)
class AttemptReturned:
    """An attempt that never started is over."""

    canceling: bool


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """An agent works on it."""


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt that had started is over."""

    outcome: AttemptState
    cause: Cause
    sentence: str
    canceling: bool
    """Whether somebody had asked to cancel it."""


@dataclass(frozen=True, slots=True)
class Canceled:
    """The run is canceled, and no agent works on the job."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Unschedulable:
    """No agent can take it, and none will."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Noted:
    """Why no agent can take it at present; empty: one can."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A person asks for it again, or for something it depends on. The counters are set anew."""

    unfinished: int
    failed: int
    decider: str
    asks: bool


JobEvent = (
    DependenciesEnded | AttemptReturned | AttemptStarted | AttemptEnded | Canceled | Unschedulable | Noted | Asked
)

W, Q, R, B = JobState.WAITING, JobState.QUEUED, JobState.RUNNING, JobState.BLOCKED
_DECIDED = frozenset({W, Q, B, JobState.SKIPPED})

TABLE: dict[tuple[JobState, type[JobEvent]], frozenset[JobState]] = {
    (W, DependenciesEnded): _DECIDED,
    (W, Canceled): frozenset({JobState.CANCELED}),
    (Q, Canceled): frozenset({JobState.CANCELED}),
    (B, Canceled): frozenset({JobState.CANCELED}),
    (Q, AttemptReturned): frozenset({Q, JobState.CANCELED}),
    (Q, AttemptStarted): frozenset({R}),
    (Q, Unschedulable): frozenset({JobState.FAILED}),
    (Q, Noted): frozenset({Q}),
    (R, AttemptEnded): frozenset({JobState.PASSED, JobState.FAILED, JobState.CANCELED, Q, B}),
    (W, Asked): _DECIDED,  # what it waits for is asked for again
    (B, Asked): _DECIDED,
    (JobState.PASSED, Asked): _DECIDED,
    (JobState.FAILED, Asked): _DECIDED,
    (JobState.CANCELED, Asked): _DECIDED,
    (JobState.SKIPPED, Asked): _DECIDED,
}


def step(job: Job, event: JobEvent) -> Job:
    """The job after the event. Raises IllegalTransition for what the table does not know."""
    targets = TABLE.get((job.state, type(event)))
    if targets is None:
        raise IllegalTransition(job, event)
    match event:
        case DependenciesEnded():
            after = _decided(
                replace(
                    job,
                    unfinished=job.unfinished - event.count,
                    failed=job.failed + event.failed,
                    decider=job.decider or event.decider,
                )
            )
        case AttemptReturned():
            after = _canceled(job, "") if event.canceling else job
        case AttemptStarted():
            after = replace(job, state=R, cause=Cause.NONE, sentence="", tries=job.tries + 1)
        case AttemptEnded():
            after = _after_attempt(job, event)
        case Canceled():
            after = _canceled(job, event.sentence)
        case Unschedulable():
            after = replace(job, state=JobState.FAILED, cause=Cause.UNSCHEDULABLE, sentence=event.sentence)
        case Noted():
            after = replace(job, sentence=event.sentence)
        case Asked():
            again = replace(job, state=W, cause=Cause.NONE, sentence="", lost=0, errored=0, asks=event.asks)
            counters = replace(again, unfinished=event.unfinished, failed=event.failed, decider=event.decider)
            after = _decided(counters)
        case _:
            assert_never(event)
    if after.state not in targets or after.unfinished < 0:
        raise IllegalTransition(job, event)
    return after


def _decided(job: Job) -> Job:
    """A waiting job whose last dependency has ended is queued, asked for, or skipped."""
    if job.unfinished:
        return job
    if job.failed:
        sentence = f"`{job.decider}` did not pass"
        return replace(job, state=JobState.SKIPPED, cause=Cause.SKIPPED_BY_DEPENDENCY, sentence=sentence)
    if job.asks:
        sentence = f"a deployment asks again after a retry: start it with `headrace retry RUN {job.key}`"
        return replace(job, state=B, sentence=sentence, asks=False)
    return replace(job, state=Q)


def _canceled(job: Job, sentence: str) -> Job:
    return replace(job, state=JobState.CANCELED, cause=Cause.CANCELED, sentence=sentence)


def _after_attempt(job: Job, event: AttemptEnded) -> Job:
    """What an attempt's outcome makes of its job. The user's command is never tried again by itself."""
    outcome = event.outcome
    if outcome is AttemptState.CANCELED and not event.canceling:
        # Nobody asked: an agent that is told to leave at once stops its jobs. That is the machinery's doing.
        outcome = AttemptState.ERRORED
    ended = replace(job, cause=event.cause, sentence=event.sentence)
    match outcome:
        case AttemptState.PASSED:
            return replace(ended, state=JobState.PASSED, cause=Cause.NONE, sentence="")
        case AttemptState.FAILED | AttemptState.TIMED_OUT:
            return replace(ended, state=JobState.FAILED)
        case AttemptState.CANCELED:
            return replace(ended, state=JobState.CANCELED, cause=Cause.CANCELED)
        case AttemptState.LOST | AttemptState.ERRORED:
            return _after_machinery(ended, outcome, canceling=event.canceling)
        case _:
            raise IllegalTransition(job, event)


def _after_machinery(job: Job, outcome: AttemptState, *, canceling: bool) -> Job:
    lost = outcome is AttemptState.LOST
    if job.at_most_once:
        # A lost deployment may have happened, or still be happening: only a person can know.
        return replace(job, state=B if lost else JobState.FAILED)
    if canceling:
        return replace(job, state=JobState.CANCELED, cause=Cause.CANCELED)
    spent, budget = (job.lost, LOST_BUDGET) if lost else (job.errored, ERRORED_BUDGET)
    if spent >= budget:
        return replace(job, state=JobState.FAILED)
    # The attempt keeps its cause; the job that is queued again has none.
    again = replace(job, state=Q, cause=Cause.NONE, sentence="")
    if lost:
        return replace(again, lost=job.lost + 1)
    return replace(again, errored=job.errored + 1)
