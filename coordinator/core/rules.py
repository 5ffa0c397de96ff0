"""What the pipeline says about a job, as far as it decides whether and how often it runs; and its own judgement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from coordinator.core.states import AttemptState, Cause
from headrace.pipeline.expressions import STATUS, uses_of
from headrace.pipeline.plan import Concurrency, Retry, RetryOn, RetryRule, WhenFull
from headrace.pipeline.planning import explained
from headrace.pipeline.values import EvaluationFailed, Expression, truth_of


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of a job. `skip`: why it will not run whatever happens. `group`: the cells it runs among."""

    condition: Expression | None = None
    skip: str = ""
    allow_failure: bool = False
    retry: Retry | None = None
    group: str = ""
    guarded: bool = False
    """Its stage has an `if` or an approval of its own, which it waits for, whatever its needs."""
    concurrency: Concurrency | None = None
    """The group of jobs that it enters when it is otherwise ready."""
    by_needs: bool = False
    """In a guarded stage: it has `needs`, and looks at these alone."""
    expands: bool = False
    """It stands for the cells of a matrix whose values are known when what it needs has run, and never runs itself."""
    expander: str = ""
    """Key of the job that stands for this cell, and lets it go; empty: nobody does."""
    by_stages: bool = False
    """A cell whose expander waits for all earlier stages."""
    stage_survives: bool = False
    """The `if` of its stage is judged though the run is canceled."""

    @property
    def survives_cancel(self) -> bool:
        """Whether it may run though the run is canceled."""
        return self.stage_survives or survives(self.condition)

    @property
    def trust_the_door(self) -> bool:
        """Whether what comes before its stage was judged by the stage's door, in place of an implied `success()`."""
        return self.guarded and not self.by_needs

    @property
    def are_judged(self) -> bool:
        """Whether there is something to look at before the job may be queued."""
        return self.condition is not None or bool(self.group) or self.concurrency is not None or self.expands


NO_RULES = Rules()


def survives(condition: Expression | None) -> bool:
    """Whether a condition may be true though the run is canceled."""
    return condition is not None and bool(calls_of(condition) & {"always", "canceled"})


def calls_of(condition: Expression) -> frozenset[str]:
    """The status functions that a condition calls."""
    found = uses_of(condition.text)
    return found.calls & STATUS if found else frozenset()


def rules_to_json(rules: Rules) -> str:
    """Empty for a job without rules: most have none."""
    if rules == NO_RULES:
        return ""
    found: dict[str, Any] = {}
    if rules.condition is not None:
        found["if"] = [rules.condition.text, rules.condition.place]
    if rules.retry is not None:
        on = [[each.on, each.first, each.last, each.pattern] for each in rules.retry.on]
        found["retry"] = [rules.retry.max, on, rules.retry.delay_ms, rules.retry.backoff]
    if rules.concurrency is not None:
        found["concurrency"] = [rules.concurrency.group, rules.concurrency.limit, rules.concurrency.when_full]
    for name in (
        "skip",
        "allow_failure",
        "group",
        "guarded",
        "by_needs",
        "expands",
        "expander",
        "by_stages",
        "stage_survives",
    ):
        if value := getattr(rules, name):
            found[name] = value
    return json.dumps(found)


def rules_from_json(text: str) -> Rules:
    """What `rules_to_json` wrote."""
    if not text:
        return NO_RULES
    found = json.loads(text)
    condition, retry, group = found.pop("if", None), found.pop("retry", None), found.pop("concurrency", None)
    return Rules(
        condition=Expression(*condition) if condition else None,
        retry=Retry(
            retry[0],
            tuple(RetryRule(RetryOn(on), first, last, pattern) for on, first, last, pattern in retry[1]),
            retry[2],
            retry[3],
        )
        if retry
        else None,
        concurrency=Concurrency(group[0], group[1], WhenFull(group[2])) if group else None,
        **found,
    )


# Conditions


@dataclass(frozen=True, slots=True)
class Standing:
    """How what a condition looks at has ended. `failed`: dependencies that count as failed; `upstream`: whether one
    of them, or of theirs, has failed; `let_in`: whether a door has answered an implied `success()`."""

    failed: int
    decider: str
    upstream: bool
    canceling: bool
    let_in: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something runs; if not, why. `cause` NONE: it runs. `decider`: the dependency that decided."""

    cause: Cause = Cause.NONE
    sentence: str = ""
    decider: str = ""


def judged(
    condition: Expression | None, standing: Standing, values: Mapping[str, Any], of: str = "its `if`"
) -> Verdict:
    """What a condition comes to. One that calls no status function is `success() && (…)`."""
    by_dependency = Verdict(Cause.SKIPPED_BY_DEPENDENCY, f"`{standing.decider}` did not pass", standing.decider)
    implied = condition is None or not calls_of(condition)
    if implied and standing.failed and not standing.let_in:
        return by_dependency
    if condition is None:
        return Verdict()
    try:
        if truth_of(condition, values, _functions(standing)):
            return Verdict()
        # Would it run, had nobody canceled the run, or had everything passed? Then that is what decided.
        undisturbed = replace(standing, canceling=False)
        if standing.canceling and truth_of(condition, values, _functions(undisturbed)):
            return Verdict(Cause.CANCELED, "the run was canceled")
        best = replace(undisturbed, failed=0, upstream=False)
        if standing.failed and truth_of(condition, values, _functions(best)):
            return by_dependency
    except EvaluationFailed as error:
        return Verdict(Cause.EXPRESSION_FAILED, str(error))
    return Verdict(Cause.SKIPPED_BY_CONDITION, f"{of} is false: {explained(condition, values)}")


def _functions(standing: Standing) -> dict[str, Any]:
    return {
        "success": lambda: not standing.failed and not standing.canceling,
        "failure": lambda: standing.upstream,
        "always": lambda: True,
        "canceled": lambda: standing.canceling,
    }


# Retries


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, as far as rules look at it. `exit_code`: of the step that failed."""

    outcome: AttemptState
    cause: Cause
    exit_code: int | None = None
    matched: frozenset[str] = frozenset()
    """Patterns of `log:` rules that its log holds."""


_OWN_DOING = frozenset({RetryOn.FAILED, RetryOn.TIMED_OUT, RetryOn.OOM, RetryOn.SERVICE_FAILED})


def rule_for(retry: Retry | None, ending: Ending) -> str:
    """The rule by which an attempt is tried again, as it stands in the file; empty: none does."""
    if retry is None:
        return ""
    if not retry.on:
        return "retry" if any(_matches(RetryRule(each), ending) for each in _OWN_DOING) else ""
    return next((str(rule) for rule in retry.on if _matches(rule, ending)), "")


def names(retry: Retry | None, on: RetryOn) -> bool:
    """Whether a rule speaks of that: the budget of the machinery's own failures then gives way to it."""
    return retry is not None and any(rule.on is on for rule in retry.on)


def _matches(rule: RetryRule, ending: Ending) -> bool:
    match rule.on:
        case RetryOn.FAILED:
            # A service that ended may have taken a step with it: then both rules speak of it.
            by_service = ending.cause is Cause.SERVICE_FAILED and ending.exit_code is None
            return ending.outcome is AttemptState.FAILED and ending.cause is not Cause.OOM and not by_service
        case RetryOn.TIMED_OUT:
            return ending.outcome is AttemptState.TIMED_OUT
        case RetryOn.OOM:
            return ending.cause is Cause.OOM
        case RetryOn.SERVICE_FAILED:
            return ending.cause is Cause.SERVICE_FAILED
        case RetryOn.LOST:
            return ending.outcome is AttemptState.LOST
        case RetryOn.ERRORED:
            return ending.outcome is AttemptState.ERRORED
        case RetryOn.EXIT:
            code = ending.exit_code
            return ending.outcome is AttemptState.FAILED and code is not None and rule.first <= code <= rule.last
        case RetryOn.LOG:
            return ending.outcome is AttemptState.FAILED and rule.pattern in ending.matched


def delay_ms(retry: Retry, tried_again: int) -> int:
    """How long to wait before the next try, when it has been tried again so often; at most a day."""
    return min(int(retry.delay_ms * retry.backoff**tried_again), 86_400_000)
