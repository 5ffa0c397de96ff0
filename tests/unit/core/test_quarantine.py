"""When an agent that fails again and again gets no more jobs."""

from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.quarantine import Reliance, Told, after
from coordinator.core.states import AttemptState, Cause

ERRED = Told(AttemptState.ERRORED, Cause.ERRORED, "the supervisor did not start")
KILLED = Told(AttemptState.ERRORED, Cause.SANDBOX_KILLED, "")
OUT_OF_MEMORY = Told(AttemptState.ERRORED, Cause.HOST_OOM, "")
PASSED = Told(AttemptState.PASSED, Cause.NONE, "")
NO_SOURCE = Told(AttemptState.FAILED, Cause.CHECKOUT_FAILED, "")


def test_an_agent_that_erred_so_often_in_a_row_is_quarantined_with_reason_and_mend():
    """Jobs would go on being burned on it, for it is always free."""
    assert after(Reliance("a"), [ERRED] * 4, 5) == Reliance("a", 4)
    found = after(Reliance("a", 4), [ERRED], 5)
    assert found.quarantine == (
        "5 attempts in a row ended `errored`, the last with: the supervisor did not start; when that is mended, "
        "`headrace drain a --undo` lets it work again"
    )


def test_one_attempt_that_the_machinery_did_not_fail_begins_the_count_anew():
    """What comes now and then is borne."""
    assert after(Reliance("a"), [ERRED, ERRED, PASSED, ERRED, ERRED], 3) == Reliance("a", 2)
    assert after(Reliance("a"), [ERRED, ERRED, NO_SOURCE, ERRED], 3) == Reliance("a", 1)


def test_mistakes_of_a_user_quarantine_nobody():
    """One repository that cannot be checked out must not take an agent from all."""
    assert after(Reliance("a"), [NO_SOURCE] * 20, 3) == Reliance("a")


def test_what_a_job_may_bring_about_neither_counts_nor_clears():
    """A job that eats the machine's memory says nothing of the agent: neither ill nor well."""
    assert after(Reliance("a", 2), [KILLED, OUT_OF_MEMORY] * 5, 3) == Reliance("a", 2)


def test_never_is_a_setting():
    """Somebody with a single agent may prefer it so."""
    assert after(Reliance("a"), [ERRED] * 50, 0).quarantine == ""


@given(st.lists(st.sampled_from([ERRED, KILLED, PASSED, NO_SOURCE]), max_size=30), st.integers(1, 4))
def test_a_quarantine_comes_exactly_with_the_first_row_that_is_long_enough_and_stays(told, most):
    """Nothing but a person ends it: what still runs there may well pass."""
    row = longest = 0
    for each in told:
        row = row + 1 if each is ERRED else row if each is KILLED else 0
        longest = max(longest, row)
    assert bool(after(Reliance("a"), told, most).quarantine) == (longest >= most)
