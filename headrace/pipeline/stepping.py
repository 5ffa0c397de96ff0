"""Which step of a job runs next: conditions, and trying again. Pure: facts in, a decision out.

A condition that calls none of `success()`, `failure()`, `always()`, `canceled()` is `success() && (…)`, and so is one
that is not there. For a step the four look at the earlier steps of its job. Once the job is canceled or out of time,
only steps whose condition calls `always()` or `canceled()`, and is true, still run, and nothing is tried again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from headrace.pipeline.expressions import STATUS, uses_of
from headrace.pipeline.known import Checked
from headrace.pipeline.values import Expression, Functions, described, truth_of

CLEANING_MS = 300_000
"""What all the steps together may take that run after a cancel or the end of the job's time."""
MOST_DELAY_MS = 86_400_000
"""The longest wait before a step is tried again, however often its delay was multiplied."""
_DESPITE = frozenset({"always", "canceled"})
_MOST_SHOWN = 100


class StepOutcome(StrEnum):
    """How a step ended, as `steps.ID.outcome` has it."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELED = "canceled"


@dataclass(frozen=True, slots=True)
class Retry:
    """A step's `retry`: `max` tries beyond the first; each delay is the one before times `backoff` (0: 1)."""

    max: int = 0
    delay_ms: int = 0
    backoff: float = 1.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides about one step. `condition` None: `success()`. `name` is for people."""

    number: int
    id: str = ""
    condition: Expression | None = None
    allow_failure: bool = False
    retry: Retry = field(default_factory=Retry)
    name: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A step that is over. `allowed`: it failed under `allow_failure`; `outputs`: what it wrote, by name."""

    rules: Rules
    outcome: StepOutcome
    allowed: bool = False
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """What has happened in the job so far. `earlier`: the steps that are over, in order."""

    earlier: Sequence[Ended] = ()
    canceled: bool = False
    out_of_time: bool = False

    @property
    def halted(self) -> bool:
        """Whether the job is to stop."""
        return self.canceled or self.out_of_time


@dataclass(frozen=True, slots=True)
class Run:
    """The step runs."""


@dataclass(frozen=True, slots=True)
class Skip:
    """It does not. `reason`: one clause with the expression and the values of its operands."""

    reason: str


def statuses(facts: Facts) -> dict[str, bool]:
    """What the four functions say. A failure that was allowed counts as success; a job out of time has failed."""
    failed = facts.out_of_time or _decisive(facts) is not None
    stopped = facts.canceled or any(each.outcome is StepOutcome.CANCELED for each in facts.earlier)
    return {
        "success": not failed and not stopped,
        "failure": failed,
        "always": True,
        "canceled": facts.canceled,
    }


def seen(earlier: Iterable[Ended]) -> dict[str, Any]:
    """`steps` as expressions see it: outcome and outputs of each earlier step that has an id."""
    return {
        each.rules.id: {"outcome": each.outcome.value, "outputs": dict(each.outputs)}
        for each in earlier
        if each.rules.id
    }


def decide(rules: Rules, facts: Facts, values: Mapping[str, Any], functions: Functions | None = None) -> Run | Skip:
    """Whether the step runs now. `values`: what its condition sees, `steps` included; `functions`: `hash`.

    Raises `EvaluationFailed` for a condition that cannot be computed; one that `success()` decides already is not.
    """
    condition, status = rules.condition, statuses(facts)
    checked = None if condition is None else uses_of(condition.text)
    calls = checked.calls if checked else frozenset[str]()
    if facts.halted and not calls & _DESPITE:
        return Skip(f"{_why_halted(facts)}, and {_shown(condition)} calls neither `always()` nor `canceled()`")
    implied = not calls & STATUS
    if condition is None:
        return Run() if status["success"] else Skip(f"`success()` is false{_because(facts)}")
    if implied and not status["success"]:
        return Skip(f"`{_whole(condition)}` is false: {_listed(facts, values, {'success'}, checked)}")
    given = {name: _constant(value) for name, value in status.items()}
    if truth_of(condition, values, {**(functions or {}), **given}):
        return Run()
    expression = _whole(condition) if implied else condition.text.strip()
    operands = _listed(facts, values, {"success"} if implied else calls & STATUS, checked)
    return Skip(f"`{expression}` is false{f': {operands}' if operands else ''}")


def delay_before_next_try(rules: Rules, outcome: StepOutcome, tries: int, facts: Facts) -> int | None:
    """Milliseconds until the step is tried again after `tries` tries of which the last came to `outcome`; None: it is
    over."""
    if outcome is not StepOutcome.FAILED or tries > rules.retry.max or facts.halted:
        return None
    try:
        delay = rules.retry.delay_ms * (rules.retry.backoff or 1.0) ** (tries - 1)
    except OverflowError:
        return MOST_DELAY_MS
    return int(delay) if 0 <= delay < MOST_DELAY_MS else MOST_DELAY_MS


def _decisive(facts: Facts) -> Ended | None:
    """The first step that failed and was not allowed to."""
    failed = (each for each in facts.earlier if each.outcome is StepOutcome.FAILED and not each.allowed)
    return next(failed, None)


def _constant(value: bool) -> Any:  # noqa: FBT001 - the value itself
    return lambda: value


def _why_halted(facts: Facts) -> str:
    return "the run was canceled" if facts.canceled else "the job ran out of time"


def _shown(condition: Expression | None) -> str:
    return "it" if condition is None else f"`{condition.text.strip()}`"


def _whole(condition: Expression) -> str:
    return f"success() && ({condition.text.strip()})"


def _listed(facts: Facts, values: Mapping[str, Any], calls: Iterable[str], checked: Checked | None) -> str:
    """The operands of a condition with their values, and the step that decided."""
    status = statuses(facts)
    found = [f"{name}() is {json.dumps(status[name])}" for name in sorted(calls)]
    if "success" in calls and not status["success"]:
        found[-1] += _because(facts)
    paths = dict.fromkeys(use.path for use in checked.uses) if checked else {}
    found += [f"{'.'.join(path)} is {_value(path, values)}" for path in paths]
    return ", ".join(found)


def _because(facts: Facts) -> str:
    step = _decisive(facts)
    if step is not None:
        return f" because step `{step.rules.name or step.rules.id or step.rules.number + 1}` failed"
    return f" because {_why_halted(facts)}" if facts.halted else ""


def _value(path: tuple[str, ...], values: Mapping[str, Any]) -> str:
    at: Any = values
    for name in path:
        if not isinstance(at, Mapping) or name not in at:
            return "not there"
        at = at[name]
    if isinstance(at, Mapping):
        return described(dict(at))
    text = json.dumps(at, ensure_ascii=False, default=str)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
