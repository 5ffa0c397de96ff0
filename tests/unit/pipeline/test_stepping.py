"""Which step of a job runs: the rules, by example and by property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.pipeline.stepping import (
    MOST_DELAY_MS,
    Ended,
    Facts,
    Retry,
    Rules,
    Run,
    Skip,
    StepOutcome,
    decide,
    delay_before_next_try,
    seen,
    statuses,
)
from headrace.pipeline.values import EvaluationFailed, Expression

PASSED, FAILED, SKIPPED, CANCELED = StepOutcome
CONDITIONS = (
    None, "success()", "failure()", "always()", "canceled()", "true", "false", "branch == 'main'",
    "failure() || canceled()", "always() && success()", "!success()", "steps.s0.outcome == 'failed'",
)  # fmt: skip


def step(number: int = 1, condition: str | None = None, **fields: object) -> Rules:
    found = None if condition is None else Expression(condition, "headrace.yml:7:9")
    return Rules(number, f"s{number}", found, **fields)  # type: ignore[arg-type]


def facts(*outcomes: StepOutcome, canceled: bool = False, out_of_time: bool = False) -> Facts:
    earlier = [Ended(step(n), outcome) for n, outcome in enumerate(outcomes)]
    return Facts(earlier, canceled=canceled, out_of_time=out_of_time)


def decided(rules: Rules, so_far: Facts, **values: object) -> Run | Skip:
    return decide(rules, so_far, {"branch": "main", "steps": seen(so_far.earlier), **values})


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Rules], list[Ended], Facts]:
    """A job played to its end by the rules: what each step did, and what was known before the last decision."""
    rules = [
        step(n, draw(st.sampled_from(CONDITIONS if n else CONDITIONS[:-1])), allow_failure=draw(st.booleans()))
        for n in range(draw(st.integers(1, 7)))
    ]
    stop_at, canceled = draw(st.integers(0, 9)), draw(st.booleans())
    earlier: list[Ended] = []
    so_far = Facts()
    for each in rules:
        halted = each.number >= stop_at
        so_far = Facts(tuple(earlier), canceled=halted and canceled, out_of_time=halted and not canceled)
        if isinstance(decided(each, so_far), Skip):
            earlier.append(Ended(each, SKIPPED))
        else:
            outcome = draw(st.sampled_from([PASSED, FAILED]))
            earlier.append(Ended(each, outcome, allowed=outcome is FAILED and each.allow_failure))
    return rules, earlier, so_far


@given(histories())
def test_after_a_failure_only_a_condition_that_asks_for_it_runs_a_step(
    played: tuple[list[Rules], list[Ended], Facts],
) -> None:
    """A deployment behind a failed test is what CI exists to prevent."""
    rules, earlier, _ = played
    for at, each in enumerate(earlier):
        broken = any(before.outcome is FAILED and not before.allowed for before in earlier[:at])
        asks = rules[at].condition is not None and "()" in rules[at].condition.text
        if broken and not asks:
            assert each.outcome is SKIPPED


@given(histories(), st.sampled_from(CONDITIONS[:-1]), st.booleans())
def test_after_a_halt_only_what_says_always_or_canceled_runs(
    played: tuple[list[Rules], list[Ended], Facts],
    condition: str | None,
    canceled: bool,  # noqa: FBT001 - drawn
) -> None:
    """Else a cancel would go on deploying for as long as nothing fails."""
    so_far = Facts(played[1], canceled=canceled, out_of_time=not canceled)
    if isinstance(decided(step(99, condition), so_far), Run):
        assert condition
        assert "always()" in condition or "canceled()" in condition


@given(histories())
def test_always_runs_always_and_one_of_success_failure_and_canceled_holds(
    played: tuple[list[Rules], list[Ended], Facts],
) -> None:
    """A step that cleans up counts on it; and whoever writes one step for each ending gets one of them."""
    so_far = played[2]
    assert isinstance(decided(step(99, "always()"), so_far), Run)
    status = statuses(so_far)
    assert status["success"] is not (status["failure"] or status["canceled"])


@given(histories())
def test_a_skip_says_the_expression_or_why_the_job_stops(played: tuple[list[Rules], list[Ended], Facts]) -> None:
    """Whoever wonders why a step did not run reads it there, and need not guess."""
    rules, _, so_far = played
    found = decided(rules[-1], so_far)
    if isinstance(found, Skip):
        text = rules[-1].condition.text if rules[-1].condition else ""
        assert text in found.reason
        assert so_far.halted or " is false" in found.reason
        assert "\n" not in found.reason


@given(st.integers(0, 5), st.integers(0, 10**9), st.floats(0, 1e300), st.integers(1, 10))
def test_no_step_is_tried_more_often_than_it_says_or_waits_longer_than_a_day(
    most: int, delay: int, backoff: float, tries: int
) -> None:
    """Whatever the figures: an agent's slot is held meanwhile."""
    rules = step(retry=Retry(most, delay, backoff))
    found = delay_before_next_try(rules, FAILED, tries, facts())
    assert (found is None) == (tries > most)
    assert found is None or 0 <= found <= MOST_DELAY_MS


def test_each_delay_is_the_one_before_times_the_backoff() -> None:
    """What the language says; without a backoff they are all the same."""
    growing, steady = step(retry=Retry(3, 1000, 2)), step(retry=Retry(3, 1000, 0))
    assert [delay_before_next_try(growing, FAILED, n, facts()) for n in (1, 2, 3, 4)] == [1000, 2000, 4000, None]
    assert [delay_before_next_try(steady, FAILED, n, facts()) for n in (1, 2, 3)] == [1000, 1000, 1000]


@pytest.mark.parametrize("outcome", [PASSED, SKIPPED, CANCELED])
def test_only_a_failure_is_tried_again(outcome: StepOutcome) -> None:
    """What passed is done, and what was canceled is not wanted."""
    assert delay_before_next_try(step(retry=Retry(3)), outcome, 1, facts()) is None


def test_a_job_that_is_to_stop_tries_nothing_again() -> None:
    """Each try would eat of the time in which the steps that clean up have to be done."""
    rules = step(retry=Retry(3))
    assert delay_before_next_try(rules, FAILED, 1, facts(canceled=True)) is None
    assert delay_before_next_try(rules, FAILED, 1, facts(out_of_time=True)) is None


def test_a_failure_that_was_allowed_counts_as_success_and_is_seen_as_failed() -> None:
    """A linter that may fail stops nothing, and a later step can still ask how it went."""
    so_far = Facts([Ended(step(0), FAILED, allowed=True)])
    assert decided(step(), so_far) == Run()
    assert decided(step(1, "steps.s0.outcome == 'failed'"), so_far) == Run()


def test_outputs_of_earlier_steps_are_seen_under_their_ids() -> None:
    """A later step asks for what an earlier one found out."""
    so_far = Facts([Ended(step(0), PASSED, outputs={"version": "1.2"}), Ended(Rules(1), PASSED)])
    assert seen(so_far.earlier) == {"s0": {"outcome": "passed", "outputs": {"version": "1.2"}}}
    assert decided(step(2, "steps.s0.outputs.version == '1.2'"), so_far) == Run()


@pytest.mark.parametrize(
    ("condition", "so_far", "reason"),
    [
        (None, facts(FAILED), "`success()` is false because step `s0` failed"),
        ("branch == 'x'", facts(PASSED),
         "`success() && (branch == 'x')` is false: success() is true, branch is \"main\""),
        ("branch == 'x' || failure()", facts(),
         "`branch == 'x' || failure()` is false: failure() is false, branch is \"main\""),
        ("false", facts(), "`success() && (false)` is false: success() is true"),
        ("steps.s0.outcome == 'failed' && always()", facts(PASSED),
         "`steps.s0.outcome == 'failed' && always()` is false: always() is true, steps.s0.outcome is \"passed\""),
        (None, facts(canceled=True), "the run was canceled, and it calls neither `always()` nor `canceled()`"),
        ("failure()", facts(out_of_time=True),
         "the job ran out of time, and `failure()` calls neither `always()` nor `canceled()`"),
        ("canceled()", facts(out_of_time=True), "`canceled()` is false: canceled() is false"),
    ],
)  # fmt: skip
def test_a_skip_has_the_values_of_its_operands(condition: str | None, so_far: Facts, reason: str) -> None:
    """The expression alone would make people add `echo` steps to find out."""
    assert decided(step(condition=condition), so_far) == Skip(reason)


def test_large_operands_are_shown_in_short() -> None:
    """A reason is one clause, whatever an output holds."""
    values = {"params": {"a": "x" * 500, "b": {"c": 1}}, "branch": "main"}
    found = decided(step(condition="params.a == 'y' && params.b == {} && params.z == 1"), facts(), **values)
    assert isinstance(found, Skip)
    assert len(found.reason) < 300
    assert "params.b is a map" in found.reason
    assert "params.z is not there" in found.reason


def test_a_condition_that_cannot_be_computed_is_told_with_its_place() -> None:
    """Neither running nor skipping would be right: the author has to mend it."""
    with pytest.raises(EvaluationFailed, match=r"headrace.yml:7:9: .*there is no `nope`"):
        decided(step(condition="steps.s0.outputs.nope == 'x'"), facts(PASSED))
    with pytest.raises(EvaluationFailed, match="a condition is true or false, and this is a string"):
        decided(step(condition="branch"), facts())


def test_what_success_decides_already_is_not_computed() -> None:
    """`if: steps.a.outputs.b == 'x'` behind a failed step is a skip, not a second mistake."""
    assert isinstance(decided(step(condition="steps.s0.outputs.nope == 'x'"), facts(FAILED)), Skip)


def test_hash_may_be_called_where_it_is_given() -> None:
    """A step runs only when its inputs are there."""
    rules = step(condition="hash('*.lock') != ''")
    assert decide(rules, facts(), {}, {"hash": lambda *globs: "abc"}) == Run()
