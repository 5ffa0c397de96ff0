"""A plan as plain data, for `--json`, `--explain` and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from headrace.pipeline.explaining import Explanation
from headrace.pipeline.plan import Plan, PlannedJob, PlannedStage, RetryRule
from headrace.pipeline.values import Expression, Template


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The fields of `Plan` with stages and jobs as lists: what `json.dumps` takes.

    A job has the fields of `PlannedJob`, its stage by name, and `delivery`; a step has `script` or `artifact`.
    Durations are milliseconds.
    """
    return {
        **_plain(plan),
        "stages": [_stage(stage) for stage in plan.stages],
        "jobs": [_job(plan, job) for job in plan.jobs],
    }


def explanation_to_json(explanation: Explanation) -> dict[str, Any]:
    """The fields of `Explanation`, with those of its event and its jobs."""
    return dict(_plain(explanation))


def _stage(stage: PlannedStage) -> dict[str, Any]:
    found = _plain(stage)
    del found["env"]  # its jobs have it
    return dict(found)


def _job(plan: Plan, job: PlannedJob) -> dict[str, Any]:
    found = _plain(job)
    del found["context"]  # what the event and the plan say already
    found["stage"] = plan.stages[job.stage].name
    found["delivery"] = str(job.delivery)
    for name in ("late_cell", "waits_for_stages", *(() if job.expands else ("expands",))):
        del found[name]  # said of few
    return dict(found)


def _plain(value: Any) -> Any:
    """Enums become their words, tuples lists, expressions their text."""
    if isinstance(value, Template):
        return "".join(each if isinstance(each, str) else f"${{{{{each.text}}}}}" for each in value.parts)
    if isinstance(value, Expression):
        return value.text
    if isinstance(value, RetryRule):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, str) else value
