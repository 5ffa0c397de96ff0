"""Pipeline files loaded and expanded, and the graph shown."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from headrace.errors import BadInput, ServerFailed, Violation

if TYPE_CHECKING:
    from headrace.pipeline.plan import Plan, PlannedJob


def load_plan(text: bytes, name: str, *, only_job: str = "") -> Plan:
    """The expanded pipeline.

    Raises:
        BadInput: with every mistake as `file:line:column: message`.
        ServerFailed: the extra `cli` is not installed.

    """
    try:
        from headrace.pipeline import PipelineError, expand, load
    except ImportError as error:
        raise ServerFailed(
            f"checking a pipeline needs {error.name}, which is not installed: pip install 'headrace[cli]'"
        ) from error
    try:
        plan = expand(load(text, name))
    except PipelineError as error:
        found = tuple(_violation(str(each)) for each in error.problems)
        raise BadInput(f"{name} has {len(found)} mistake{'s' * (len(found) != 1)}", found) from error
    if only_job and only_job not in {key for job in plan.jobs for key in (job.key, job.name)}:
        raise BadInput(f"{name} has no job {only_job}: it has {', '.join(job.key for job in plan.jobs)}")
    return plan


def _violation(text: str) -> Violation:
    """`file:line:column: message`, split where the position ends."""
    where, colon, sentence = text.partition(": ")
    return Violation(where, sentence) if colon else Violation("", text)


def plan_json(plan: Plan) -> dict[str, object]:
    """The plan's fields as they are named in headrace/pipeline/plan.py."""
    return asdict(plan)


def explained(plan: Plan) -> str:
    """The graph as text: stages, their jobs, what each waits for, where it runs and what it does."""
    lines = [f"pipeline {plan.name or '(without a name)'}"]
    for index, stage in enumerate(plan.stages):
        target = f", environment {stage.environment}" if stage.environment else ""
        lines.append(f"stage {index + 1}: {stage.name}{target}")
        for job in plan.jobs:
            if job.stage == index:
                lines += _job(plan, job)
    return "\n".join(lines)


def _job(plan: Plan, job: PlannedJob) -> list[str]:
    if job.needs is None:
        earlier = [each.key for each in plan.jobs if each.stage < job.stage]
        waits = f"all earlier stages ({', '.join(earlier)})" if earlier else "nothing"
    else:
        waits = ", ".join(job.needs) or "nothing"
    where = [f"image {job.image}" if job.image else f"sandbox {job.sandbox}", f"network {job.network}"]
    where.append(f"pool {job.pool}")
    where += [f"{name}={value}" for name, value in sorted(job.requires.items())]
    lines = [f"  job {job.key}", f"    waits for: {waits}", f"    runs in: {', '.join(where)}"]
    lines += [f"    step {step.number + 1}: {step.name}" for step in job.steps]
    lines += [f"    keeps: {each.name} ({', '.join(each.paths)}) when {each.when}" for each in job.artifacts]
    return lines
