"""A plan as plain data, for `--json`, `--explain` and tests."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from headrace.pipeline.plan import Plan, PlannedJob


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """`{"name", "priority", "stages": [{"name", "environment"}], "jobs": [{…}]}`: what `json.dumps` takes.

    A job has the fields of `PlannedJob`, its stage by name, and `delivery`; a step has `script` or `artifact`.
    Durations are milliseconds.
    """
    return {
        "name": plan.name,
        "priority": plan.priority,
        "stages": [asdict(stage) for stage in plan.stages],
        "jobs": [_job(plan, job) for job in plan.jobs],
    }


def _job(plan: Plan, job: PlannedJob) -> dict[str, Any]:
    found = _plain(asdict(job))
    found["stage"] = plan.stages[job.stage].name
    found["delivery"] = str(job.delivery)
    return dict(found)


def _plain(value: Any) -> Any:
    """Enums become their words, tuples lists."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, str) else value
