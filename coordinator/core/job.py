"""The job's state machine, and what an attempt's outcome means for its job."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from coordinator.core.events import (
    ApprovalAsked,
    Asked,
    AttemptEnded,
    AttemptReturned,
    AttemptStarted,
    Canceled,
    Decided,
    DelayOver,
    DependenciesEnded,
    Entered,
    Expanded,
    JobEvent,
    LetIn,
    Noted,
    Skipped,
    Unschedulable,
    Vanished,
)
from coordinator.core.rules import NO_RULES, Ending, Rules, Verdict, delay_ms, names, rule_for
from coordinator.core.states import JOB_OVER, NEVER_BEGUN, AttemptState, Cause, IllegalTransition, JobState
from headrace.pipeline.plan import RetryOn

# What the machinery failed at is tried again so often, unless the pipeline says otherwise.
LOST_BUDGET = 2
ERRORED_BUDGET = 2


class Place(StrEnum):
    """Where a cell stands among those that run at a time."""

    NONE = ""
    HELD = "held"
    """Ready, and waiting for another cell to end."""
    TAKEN = "taken"


class Turn(StrEnum):
    """Where a job stands with its group, or with that of its run."""

    NONE = ""
    RUN_WAITS = "run waits"
    """Nothing else holds it, and its run has no place in its group yet."""
    WAITS = "waits"
    """It waits for a place itself."""
    ENTERED = "entered"


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
    awaits: bool = False
    """A person is asked whether its stage may run."""
    upstream_failed: bool = False
    """A dependency, or one of theirs, has failed."""
    rules: Rules = NO_RULES
    admitted: bool = False
    """Its condition was judged, and it runs: a later try does not judge it again."""
    place: Place = Place.NONE
    """Among the cells of its group."""
    turn: Turn = Turn.NONE
    tries: int = 0
    lost: int = 0
    errored: int = 0
    retried: int = 0
    """Tries that a rule of its own asked for, since a person last asked for it."""
    pause_ms: int = 0
    """How long its next try waits, counted from when this is written."""

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state in JOB_OVER

    @property
    def counts_as_failed(self) -> bool:
        """For what follows it: failed, canceled, or skipped because of a dependency."""
        if self.state is JobState.SKIPPED:
            return self.cause is Cause.SKIPPED_BY_DEPENDENCY
        return self.has_failed or (self.state is JobState.CANCELED and not self.has_vanished)

    @property
    def has_failed(self) -> bool:
        """Whether it failed by itself, and that counts."""
        return self.state is JobState.FAILED and not self.rules.allow_failure

    @property
    def has_vanished(self) -> bool:
        """Whether it is a cell that its matrix has no more. It counts for nothing."""
        return self.cause is Cause.CELL_VANISHED

    @property
    def may_run_again(self) -> bool:
        """Whether a retry of what it depends on reaches it."""
        return not self.rules.skip and not self.has_vanished

    @property
    def is_expanding(self) -> bool:
        """Whether the cells that it stands for are to be made now."""
        return self.rules.expands and self.admitted and self.state is JobState.WAITING

    @property
    def fails_below(self) -> bool:
        """Whether `failure()` is true for what follows it."""
        return self.upstream_failed or self.has_failed

    @property
    def in_group(self) -> bool:
        """Whether it has a place in its group of jobs, or waits for one."""
        return self.turn in (Turn.WAITS, Turn.ENTERED) and not self.over

    @property
    def is_idle(self) -> bool:
        """Whether nobody works on it, nor may by now."""
        return self.state in (JobState.WAITING, JobState.BLOCKED)

    @property
    def ends_with_its_run(self) -> bool:
        """Whether the first cancel of its run ends it, given that it is not over: not what runs despite it, but for
        what waits for a person."""
        return self.awaits or self.state is JobState.BLOCKED or not self.rules.survives_cancel

    @property
    def waits_for_its_door(self) -> bool:
        """Whether it waits for its stage's door, or would, if something else did not hold it as well."""
        return self.rules.guarded and (self.awaits or self.state is JobState.WAITING) and not self.over

    @property
    def undecided(self) -> bool:
        """Whether nothing holds it any more, and its condition and its group have still to be looked at."""
        return self.state is JobState.WAITING and self.unfinished == 0


W, Q, R, B = JobState.WAITING, JobState.QUEUED, JobState.RUNNING, JobState.BLOCKED
_DECIDED = frozenset({W, Q, B, JobState.SKIPPED})
_JUDGED = frozenset({W, Q, B, JobState.SKIPPED, JobState.FAILED, JobState.CANCELED})

TABLE: dict[tuple[JobState, type[JobEvent]], frozenset[JobState]] = {
    (W, DependenciesEnded): _DECIDED,
    (W, LetIn): _DECIDED,
    (B, LetIn): _DECIDED,  # its stage is approved
    (W, Decided): _JUDGED,
    (W, Skipped): frozenset({JobState.SKIPPED, JobState.FAILED, JobState.CANCELED}),
    (W, ApprovalAsked): frozenset({W, B}),
    (W, DelayOver): frozenset({Q}),
    (W, Entered): _DECIDED,
    (W, Expanded): frozenset({JobState.PASSED, JobState.SKIPPED, JobState.FAILED}),
    (W, Vanished): frozenset({JobState.CANCELED}),
    (JobState.SKIPPED, Vanished): frozenset({JobState.CANCELED}),  # one that does not run for this event
    (W, Canceled): frozenset({JobState.CANCELED}),
    (Q, Canceled): frozenset({JobState.CANCELED}),
    (B, Canceled): frozenset({JobState.CANCELED}),
    (Q, AttemptReturned): frozenset({Q, JobState.CANCELED}),
    (Q, AttemptStarted): frozenset({R}),
    (Q, Unschedulable): frozenset({JobState.FAILED}),
    (Q, Noted): frozenset({Q}),
    (R, AttemptEnded): frozenset({JobState.PASSED, JobState.FAILED, JobState.CANCELED, Q, B, W}),
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
        case AttemptReturned():
            after = _canceled(job, "") if event.canceling else job
        case AttemptStarted():
            after = replace(job, state=R, cause=Cause.NONE, sentence="", pause_ms=0, tries=job.tries + 1)
        case AttemptEnded():
            after = _after_attempt(job, event)
        case Canceled():
            after = _canceled(job, event.sentence)
        case Unschedulable():
            after = replace(job, state=JobState.FAILED, cause=Cause.UNSCHEDULABLE, sentence=event.sentence)
        case Noted():
            after = replace(job, sentence=event.sentence)
        case Expanded():
            after = _expanded(job, event.verdict)
        case Vanished():
            after = replace(
                job, state=JobState.CANCELED, cause=Cause.CELL_VANISHED, sentence=event.sentence, awaits=False
            )
        case _:
            after = _before_it_runs(job, event)
    if after.state not in targets or after.unfinished < 0:
        raise IllegalTransition(job, event)
    return after


def _before_it_runs(
    job: Job, event: DependenciesEnded | LetIn | Decided | Skipped | ApprovalAsked | DelayOver | Entered | Asked
) -> Job:
    match event:
        case DependenciesEnded():
            return _after_dependencies(job, event)
        case LetIn():
            return _let_in(job, event)
        case Decided():
            return _judged(job, event)
        case Skipped():
            return _not_run(job, event.verdict)
        case ApprovalAsked():
            return replace(job, state=B if job.unfinished == 1 else W, awaits=True, sentence=event.sentence)
        case DelayOver():
            return replace(job, state=Q, unfinished=0, pause_ms=0)
        case Entered():
            return _entered(job)
        case Asked():
            return _asked_again(job, event)
        case _:
            assert_never(event)


def _after_dependencies(job: Job, event: DependenciesEnded) -> Job:
    counted = replace(
        job,
        unfinished=job.unfinished - event.count,
        failed=job.failed + event.failed,
        decider=job.decider or event.decider,
        upstream_failed=job.upstream_failed or event.upstream_failed,
    )
    if counted.awaits and counted.unfinished == 1:
        return replace(counted, state=B)  # all that it waits for is the approval
    return _decided(counted)


def _let_in(job: Job, event: LetIn) -> Job:
    asks = job.asks and not event.approved  # whoever approved its stage need not be asked again
    inside = replace(job, state=W, unfinished=job.unfinished - 1, awaits=False, sentence="", asks=asks)
    if job.rules.trust_the_door:
        inside = replace(inside, failed=event.failed, decider=event.decider, upstream_failed=event.upstream_failed)
    return _decided(inside)


def _asked_again(job: Job, event: Asked) -> Job:
    again = replace(
        job,
        state=W,
        cause=Cause.NONE,
        sentence="",
        lost=0,
        errored=0,
        retried=0,
        admitted=False,
        place=Place.NONE,
        turn=Turn.NONE,
        asks=event.asks,
        unfinished=event.unfinished,
        failed=event.failed,
        decider=event.decider,
        upstream_failed=event.upstream_failed,
        awaits=False,
        pause_ms=0,
    )
    return _decided(again)


def _decided(job: Job) -> Job:
    """A waiting job whose last dependency has ended is queued, asked for, or skipped. One with rules is judged by
    whoever has what they look at."""
    if job.unfinished or job.rules.are_judged:
        return job
    if job.failed and not job.rules.trust_the_door:
        sentence = f"`{job.decider}` did not pass"
        return replace(job, state=JobState.SKIPPED, cause=Cause.SKIPPED_BY_DEPENDENCY, sentence=sentence)
    return _ready(job)


def _judged(job: Job, event: Decided) -> Job:
    if event.verdict.cause is not Cause.NONE:
        return _not_run(job, event.verdict)
    if job.rules.expands:
        return replace(job, unfinished=1, admitted=True, sentence="its matrix is being worked out")
    if event.held:
        return replace(job, unfinished=1, admitted=True, place=Place.HELD, sentence=event.held)
    place = Place.TAKEN if job.rules.group else Place.NONE
    taken = replace(job, admitted=True, place=place, sentence="")
    group = job.rules.concurrency
    if group is not None and job.turn is Turn.NONE:
        return replace(taken, unfinished=1, turn=Turn.WAITS, sentence=f"waits for a place in the group `{group.group}`")
    return _ready(taken)


def _entered(job: Job) -> Job:
    if job.turn is Turn.RUN_WAITS:
        return _decided(replace(job, unfinished=job.unfinished - 1, turn=Turn.NONE, sentence=""))
    return _ready(replace(job, unfinished=0, turn=Turn.ENTERED, sentence=""))


def _not_run(job: Job, verdict: Verdict) -> Job:
    state = JobState.CANCELED if verdict.cause is Cause.CANCELED else JobState.SKIPPED
    state = JobState.FAILED if verdict.cause in NEVER_BEGUN else state
    decider = verdict.decider or job.decider
    return replace(job, state=state, cause=verdict.cause, sentence=verdict.sentence, decider=decider, awaits=False)


def _expanded(job: Job, verdict: Verdict) -> Job:
    if not job.is_expanding:
        raise IllegalTransition(job, Expanded(verdict))
    if verdict.cause is not Cause.NONE:
        return _not_run(job, verdict)
    return replace(job, state=JobState.PASSED, unfinished=0, sentence="", asks=False)


def _ready(job: Job) -> Job:
    if job.asks:
        sentence = f"a deployment asks again after a retry: start it with `headrace retry RUN {job.key}`"
        return replace(job, state=B, sentence=sentence, asks=False)
    return replace(job, state=Q)


def _canceled(job: Job, sentence: str) -> Job:
    return replace(job, state=JobState.CANCELED, cause=Cause.CANCELED, sentence=sentence, pause_ms=0)


def _after_attempt(job: Job, event: AttemptEnded) -> Job:
    """What an attempt's outcome makes of its job. The user's command is never tried again unless a rule says so."""
    outcome = event.outcome
    if outcome is AttemptState.CANCELED and not event.canceling:
        # Nobody asked: an agent that is told to leave at once stops its jobs. That is the machinery's doing.
        outcome = AttemptState.ERRORED
    ended = replace(job, cause=event.cause, sentence=event.sentence)
    if not event.canceling and (again := _by_rule(ended, event, outcome)) is not None:
        return again
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


def _by_rule(job: Job, event: AttemptEnded, outcome: AttemptState) -> Job | None:
    """The job queued for another try, or waiting for it, as a rule of its own says; None: none does.

    A deployment that was lost may have happened: no rule starts it again.
    """
    retry = job.rules.retry
    rule = rule_for(retry, Ending(outcome, event.cause, event.exit_code, event.matched))
    if retry is None or not rule or job.retried >= retry.max or (job.at_most_once and outcome is AttemptState.LOST):
        return None
    pause = delay_ms(retry, job.retried)
    why = event.sentence or outcome.value
    sentence = f"tried again by `{rule}`, {job.retried + 1} of {retry.max}: {why}"
    again = replace(job, cause=Cause.NONE, sentence=sentence, retried=job.retried + 1)
    return replace(again, state=W, unfinished=1, pause_ms=pause) if pause else replace(again, state=Q)


def _after_machinery(job: Job, outcome: AttemptState, *, canceling: bool) -> Job:
    lost = outcome is AttemptState.LOST
    if job.at_most_once:
        # A lost deployment may have happened, or still be happening: only a person can know.
        return replace(job, state=B if lost else JobState.FAILED)
    if canceling:
        return replace(job, state=JobState.CANCELED, cause=Cause.CANCELED)
    spent, budget = (job.lost, LOST_BUDGET) if lost else (job.errored, ERRORED_BUDGET)
    if spent >= budget or names(job.rules.retry, RetryOn.LOST if lost else RetryOn.ERRORED):
        return replace(job, state=JobState.FAILED)
    # The attempt keeps its cause; the job that is queued again has none.
    again = replace(job, state=Q, cause=Cause.NONE, sentence="")
    if lost:
        return replace(again, lost=job.lost + 1)
    return replace(again, errored=job.errored + 1)
