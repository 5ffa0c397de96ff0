"""Pipeline files loaded and expanded, and the graph shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from headrace.errors import BadInput, ServerFailed, Violation

if TYPE_CHECKING:
    from headrace.pipeline.plan import Plan, PlannedJob


def load_plan(
    text: bytes, name: str, *, only_job: str = "", sandbox: str = "", parameters: Mapping[str, str] | None = None
) -> Plan:
    """The pipeline expanded for a run by hand.

    Raises:
        BadInput: with every mistake as `file:line:column: message`.
        ServerFailed: the extra `cli` is not installed.

    """
    try:
        from headrace.pipeline import Event, PipelineError, SandboxKind, expand, load
    except ImportError as error:
        raise ServerFailed(
            f"checking a pipeline needs {error.name}, which is not installed: pip install 'headrace[cli]'"
        ) from error
    try:
        kind = SandboxKind(sandbox) if sandbox else None
        return expand(load(text, name), Event("manual", params=parameters or {}), only=only_job, sandbox=kind)
    except PipelineError as error:
        found = tuple(Violation(f"{each.file}:{each.line}:{each.column}", each.message) for each in error.problems)
        raise BadInput(f"{name} has {len(found)} mistake{'s' * (len(found) != 1)}", found) from error


def plan_json(plan: Plan) -> dict[str, object]:
    """The plan as the pipeline language prints it."""
    from headrace.pipeline import plan_to_json

    return plan_to_json(plan)


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
