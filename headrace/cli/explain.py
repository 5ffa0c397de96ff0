"""The expanded graph of a pipeline, shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.pipeline.plan import Plan, PlannedJob


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
