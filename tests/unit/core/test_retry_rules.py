"""What an attempt came to, held against the words of `retry: {on: …}`."""

from __future__ import annotations

import pytest

from coordinator.core.rules import Ending, rule_for
from coordinator.core.states import AttemptState, Cause
from headrace.pipeline.plan import Retry, RetryOn, RetryRule

FAILED = AttemptState.FAILED
WORDS = tuple(RetryRule(each) for each in RetryOn if each not in {RetryOn.EXIT, RetryOn.LOG})
EXIT = RetryRule(RetryOn.EXIT, 1, 255)

ENDINGS = {
    "a step": (Ending(FAILED, Cause.STEP_FAILED, 1), {"failed", "exit:1-255"}),
    "a job out of time": (Ending(AttemptState.TIMED_OUT, Cause.JOB_TIMED_OUT), {"timed_out"}),
    "memory": (Ending(FAILED, Cause.OOM, 137), {"oom", "exit:1-255"}),
    "a service that was not ready": (Ending(FAILED, Cause.SERVICE_FAILED), {"service_failed"}),
    "a step beside a service that ended": (
        Ending(FAILED, Cause.SERVICE_FAILED, 1),
        {"failed", "service_failed", "exit:1-255"},
    ),
    "the machinery": (Ending(AttemptState.ERRORED, Cause.ERRORED), {"errored"}),
    "an agent that fell silent": (Ending(AttemptState.LOST, Cause.LOST), {"lost"}),
}


@pytest.mark.parametrize("what", ENDINGS)
def test_each_word_speaks_of_what_it_says(what: str) -> None:
    """A rule that matches more than its word has people's commands run again that must not."""
    ending, expected = ENDINGS[what]
    assert {str(each) for each in (*WORDS, EXIT) if rule_for(Retry(1, (each,)), ending)} == expected


@pytest.mark.parametrize("what", ENDINGS)
def test_a_retry_without_words_is_about_what_the_job_did_and_its_services(what: str) -> None:
    """What the machinery fails at has a budget of its own."""
    ending, _ = ENDINGS[what]
    assert bool(rule_for(Retry(1), ending)) == (ending.cause not in {Cause.ERRORED, Cause.LOST})
