"""Every (state, event) pair of the attempt, job and run machines: allowed as the table says, else refused loudly."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core import attempt as attempts
from coordinator.core import job as jobs
from coordinator.core import run as runs
from coordinator.core.attempt import Attempt, Ended, Gone, Started
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
    LetIn,
    Noted,
    Skipped,
    Unschedulable,
    Vanished,
)
from coordinator.core.job import ERRORED_BUDGET, LOST_BUDGET, Job
from coordinator.core.rules import Rules, Verdict
from coordinator.core.run import Run
from coordinator.core.states import (
    ATTEMPT_LIVE,
    ATTEMPT_OUTCOMES,
    RUN_OVER,
    AttemptState,
    Cause,
    IllegalTransition,
    JobState,
    RunState,
    StaleToken,
)
from coordinator.dispatch.port import GivenUp, Held, StartedReport

TOKEN, OTHER = b"a" * 16, b"b" * 16

ATTEMPT_EVENTS = [
    Started(TOKEN, "r1"),
    Gone("silent"),
    *(Ended(TOKEN, "r2", outcome) for outcome in sorted(ATTEMPT_OUTCOMES)),
]


@pytest.mark.parametrize("state", AttemptState)
@pytest.mark.parametrize("event", ATTEMPT_EVENTS, ids=repr)
def test_an_attempt_goes_where_its_table_says_and_nowhere_else(state, event):
    """What is not in the table never happens: a late report about an attempt that is over is refused as stale."""
    attempt = Attempt(1, 2, TOKEN, state)
    targets = attempts.TABLE.get((state, type(event)))
    if targets is None and attempts.is_repeat(attempt, event):
        assert attempts.step(attempt, event) is attempt
    elif targets is None:
        expected = IllegalTransition if state in ATTEMPT_LIVE else StaleToken
        with pytest.raises(expected):
            attempts.step(attempt, event)
    else:
        assert attempts.step(attempt, event).state in targets


@pytest.mark.parametrize("state", AttemptState)
@pytest.mark.parametrize("event", [Started(OTHER, "r1"), Ended(OTHER, "r2", AttemptState.PASSED)], ids=repr)
def test_the_token_of_another_claim_changes_nothing(state, event):
    """Two agents may believe that they own a job; only the newest claim is believed."""
    with pytest.raises(StaleToken):
        attempts.step(Attempt(1, 2, TOKEN, state), event)


def test_a_report_that_is_handed_in_again_is_answered_alike_and_changes_nothing():
    """An agent hands a report in until it is answered, also after its own restart."""
    running = attempts.step(Attempt(1, 2, TOKEN), Started(TOKEN, "r1"))
    assert attempts.step(running, Started(TOKEN, "r1")) is running
    ended = attempts.step(running, Ended(TOKEN, "r2", AttemptState.FAILED, Cause.STEP_FAILED))
    assert attempts.step(ended, Ended(TOKEN, "r2", AttemptState.FAILED, Cause.STEP_FAILED)) is ended
    with pytest.raises(StaleToken):
        attempts.step(ended, Ended(TOKEN, "r3", AttemptState.PASSED))


def test_a_leased_attempt_that_is_given_up_was_no_try_and_a_running_one_is_lost():
    """`returned` is not shown and not counted; `lost` is."""
    assert attempts.step(Attempt(1, 2, TOKEN), Gone("late")).state is AttemptState.RETURNED
    lost = attempts.step(Attempt(1, 2, TOKEN, AttemptState.RUNNING), Gone("silent"))
    assert (lost.state, lost.cause) == (AttemptState.LOST, Cause.LOST)


JOB_EVENTS = [
    DependenciesEnded(0, 0),
    AttemptReturned(canceling=False),
    AttemptReturned(canceling=True),
    AttemptStarted(),
    *(
        AttemptEnded(outcome, Cause.ERRORED, "why", canceling)
        for outcome in (*sorted(ATTEMPT_OUTCOMES), AttemptState.LOST)
        for canceling in (False, True)
    ),
    Canceled("because"),
    Unschedulable("nobody"),
    Noted("soon"),
    Decided(Verdict()),
    Decided(Verdict(), held="full"),
    Decided(Verdict(Cause.SKIPPED_BY_CONDITION, "no")),
    Decided(Verdict(Cause.EXPRESSION_FAILED, "no")),
    Decided(Verdict(Cause.CANCELED, "no")),
    Skipped(Verdict(Cause.SKIPPED_BY_CONDITION, "no")),
    Skipped(Verdict(Cause.CANCELED, "no")),
    ApprovalAsked("may it?"),
    LetIn(),
    DelayOver(),
    Entered(),
    Asked(0, 0, "", asks=False),
    Asked(1, 0, "", asks=False),
    Asked(0, 1, "x", asks=False),
    Asked(0, 0, "", asks=True),
    Expanded(Verdict()),
    Expanded(Verdict(Cause.SKIPPED_BY_CONDITION, "empty")),
    Expanded(Verdict(Cause.EXPRESSION_FAILED, "no list")),
    Vanished("no more"),
]


def test_the_events_below_are_all_events_of_a_job():
    """A new event has to be walked through every state."""
    assert {type(event) for event in JOB_EVENTS} == set(get_args(jobs.JobEvent))
    assert {type(event) for event in ATTEMPT_EVENTS} == set(get_args(attempts.AttemptEvent))


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("event", JOB_EVENTS, ids=repr)
@pytest.mark.parametrize("at_most_once", [False, True], ids=["at least once", "at most once"])
def test_a_job_goes_where_its_table_says_and_nowhere_else(state, event, at_most_once):
    """One table, no default, no hop through a third state."""
    holds = isinstance(event, LetIn)  # the door is one of those that it waits for
    job = Job(1, "unit", 0, state, at_most_once=at_most_once, unfinished=int(holds))
    if isinstance(event, Expanded):  # only what stands for cells, and is due
        job = replace(job, rules=Rules(expands=True), admitted=True)
    targets = jobs.TABLE.get((state, type(event)))
    if targets is None:
        with pytest.raises(IllegalTransition, match="unit"):
            jobs.step(job, event)
    else:
        assert jobs.step(job, event).state in targets


def ended(outcome, *, canceling=False, **job):
    return jobs.step(Job(1, "unit", 0, JobState.RUNNING, **job), AttemptEnded(outcome, Cause.NONE, "", canceling))


def test_what_the_machinery_loses_is_tried_again_within_a_budget_of_its_own():
    """Lost and errored have two tries each; the user's command has none unless the pipeline says so."""
    job = Job(1, "unit", 0, JobState.RUNNING)
    for _ in range(LOST_BUDGET):
        job = jobs.step(job, AttemptEnded(AttemptState.LOST, Cause.LOST, "", canceling=False))
        assert job.state is JobState.QUEUED
        job = jobs.step(job, AttemptStarted())
    for _ in range(ERRORED_BUDGET):
        job = jobs.step(job, AttemptEnded(AttemptState.ERRORED, Cause.ERRORED, "", canceling=False))
        assert job.state is JobState.QUEUED
        job = jobs.step(job, AttemptStarted())
    job = jobs.step(job, AttemptEnded(AttemptState.LOST, Cause.LOST, "gone", canceling=False))
    assert (job.state, job.cause, job.tries) == (JobState.FAILED, Cause.LOST, LOST_BUDGET + ERRORED_BUDGET)
    assert ended(AttemptState.FAILED).state is JobState.FAILED
    assert ended(AttemptState.TIMED_OUT).state is JobState.FAILED


def test_a_lost_deployment_is_for_a_person_and_never_started_again_by_itself():
    """It may have happened, or still be happening: starting it twice could be the outage."""
    assert ended(AttemptState.LOST, at_most_once=True).state is JobState.BLOCKED
    assert ended(AttemptState.ERRORED, at_most_once=True).state is JobState.FAILED


def test_a_job_that_nobody_canceled_is_not_canceled_by_its_agent():
    """An agent that is told to leave at once stops its jobs: the machinery's doing, so they are tried again."""
    assert ended(AttemptState.CANCELED).state is JobState.QUEUED
    assert ended(AttemptState.CANCELED, canceling=True).state is JobState.CANCELED


def test_a_cancel_ends_what_would_be_tried_again():
    """A run that is being canceled starts nothing any more."""
    assert ended(AttemptState.LOST, canceling=True).state is JobState.CANCELED
    queued = Job(1, "unit", 0, JobState.QUEUED)
    assert jobs.step(queued, AttemptReturned(canceling=True)).state is JobState.CANCELED


def test_a_job_is_skipped_with_the_name_of_the_dependency_that_decided():
    """Whoever reads the run must not have to search."""
    waiting = Job(1, "unit", 1, unfinished=2)
    waiting = jobs.step(waiting, DependenciesEnded(1, failed=1, decider="wheel"))
    assert waiting.state is JobState.WAITING
    skipped = jobs.step(waiting, DependenciesEnded(1, failed=1, decider="docs"))
    assert (skipped.state, skipped.cause) == (JobState.SKIPPED, Cause.SKIPPED_BY_DEPENDENCY)
    assert "`wheel`" in skipped.sentence


COUNTERS = st.builds(
    Run,
    id=st.just(1),
    state=st.sampled_from(RunState),
    unfinished=st.integers(0, 3),
    active=st.integers(0, 3),
    blocked=st.integers(0, 3),
    failed=st.integers(0, 3),
    canceled=st.integers(0, 3),
)


@given(COUNTERS, st.booleans())
def test_a_run_is_over_exactly_when_no_job_is_unfinished(run, begun):
    """The state is a function of the counters; a way that the table does not know is refused."""
    try:
        after = runs.judged(run, begun=begun)
    except IllegalTransition:
        assert run.state in RUN_OVER
        return
    assert (after.state in RUN_OVER) == (run.unfinished == 0)
    assert after.state is run.state or after.state in runs.TABLE[run.state]
    if after.state is RunState.PASSED:
        assert not run.failed
        assert not run.canceled


def test_no_sentence_for_an_agent_and_no_story_for_a_log_holds_a_token():
    """Whoever has the token of an attempt can speak for its agent, and agents log what they are answered."""
    token = b"sixteen secret b"
    running = Attempt(1, 2, token, AttemptState.RUNNING)
    with pytest.raises(StaleToken) as refused:
        attempts.told(running, Started(token, "another report"))
    assert "secret" not in f"{refused.value}{refused.value.__cause__}"
    assert "attempt 1 is running" in str(refused.value)
    assert "secret" not in repr([StartedReport("r", 1, token), Held(1, token), GivenUp(1, "s", token, "late")])
