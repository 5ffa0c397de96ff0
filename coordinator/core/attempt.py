"""The attempt's state machine: leased → running → an outcome; or leased → returned; or lost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import assert_never

from coordinator.core.states import (
    ATTEMPT_LIVE,
    ATTEMPT_OUTCOMES,
    AttemptState,
    Cause,
    IllegalTransition,
    StaleToken,
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claim of a job. The tokens are 16 random bytes, compared for equality and never counted."""

    id: int
    job_id: int
    token: bytes = field(repr=False)
    state: AttemptState = AttemptState.LEASED
    started_report: str = ""
    ended_report: str = ""
    cause: Cause = Cause.NONE
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The agent begins to work on it: from here it counts as a try."""

    token: bytes = field(repr=False)
    report: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The agent tells the outcome."""

    token: bytes = field(repr=False)
    report: str
    outcome: AttemptState
    cause: Cause = Cause.NONE
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Gone:
    """The coordinator has given it up: not acknowledged, refused, missing, or its lease has ended."""

    sentence: str


AttemptEvent = Started | Ended | Gone

TABLE: dict[tuple[AttemptState, type[AttemptEvent]], frozenset[AttemptState]] = {
    (AttemptState.LEASED, Started): frozenset({AttemptState.RUNNING}),
    (AttemptState.LEASED, Gone): frozenset({AttemptState.RETURNED}),
    (AttemptState.RUNNING, Ended): ATTEMPT_OUTCOMES,
    (AttemptState.RUNNING, Gone): frozenset({AttemptState.LOST}),
}


def is_repeat(attempt: Attempt, event: AttemptEvent) -> bool:
    """Whether this very report has been accepted before: it is answered alike and changes nothing."""
    match event:
        case Started():
            return event.token == attempt.token and bool(event.report) and event.report == attempt.started_report
        case Ended():
            return event.token == attempt.token and bool(event.report) and event.report == attempt.ended_report
        case Gone():
            return attempt.state not in ATTEMPT_LIVE
        case _:
            assert_never(event)


def step(attempt: Attempt, event: AttemptEvent) -> Attempt:
    """The attempt after the event.

    Raises StaleToken for the token of another claim or a late report about an attempt that is over (neither is
    a defect), IllegalTransition for what can never be.
    """
    if not isinstance(event, Gone) and event.token != attempt.token:
        raise StaleToken(f"attempt {attempt.id} was given to somebody else")
    if is_repeat(attempt, event):
        return attempt
    targets = TABLE.get((attempt.state, type(event)))
    if targets is None:
        if attempt.state not in ATTEMPT_LIVE:
            raise StaleToken(f"attempt {attempt.id} is over: {attempt.state}")
        raise IllegalTransition(attempt, event)
    match event:
        case Started():
            after = replace(attempt, state=AttemptState.RUNNING, started_report=event.report)
        case Ended():
            after = replace(
                attempt,
                state=event.outcome,
                ended_report=event.report,
                cause=event.cause,
                sentence=event.sentence,
            )
        case Gone():
            (target,) = targets
            cause = Cause.LOST if target is AttemptState.LOST else Cause.NONE
            after = replace(attempt, state=target, cause=cause, sentence=event.sentence)
        case _:
            assert_never(event)
    if after.state not in targets:
        raise IllegalTransition(attempt, event)
    return after


def told(attempt: Attempt, event: Started | Ended) -> tuple[Attempt, ...]:
    """The attempt after each step of what an agent tells; empty: it has been told before. Raises StaleToken.

    An outcome of one that never said it started is believed: its agent did the work, and that report was lost.
    What can never be is refused as a stale report is, in a sentence that an agent may log.
    """
    try:
        if isinstance(event, Ended) and attempt.state is AttemptState.LEASED:
            started = step(attempt, Started(event.token, ""))
            return started, step(started, event)
        after = step(attempt, event)
    except IllegalTransition as error:
        raise StaleToken(f"attempt {attempt.id} is {attempt.state}: what is told of it cannot be") from error
    return () if after is attempt else (after,)
