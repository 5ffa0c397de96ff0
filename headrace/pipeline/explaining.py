"""A plan explained: whether its event starts it, and of each job what it waits for and whether it would run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from headrace.pipeline.event import Event
from headrace.pipeline.late import late_expressions, roots_of
from headrace.pipeline.late_matrix import template_text
from headrace.pipeline.model import Pipeline
from headrace.pipeline.plan import Plan, PlannedJob
from headrace.pipeline.scopes import STATIC
from headrace.pipeline.starting import start
from headrace.pipeline.values import Expression


class Runs(StrEnum):
    """Whether a job would run, if nothing fails."""

    YES = "yes"
    NO = "no"
    """A condition that this event makes false."""
    LATER = "later"
    """It hangs on what is known only while the run goes on: a condition, or a person."""


@dataclass(frozen=True, slots=True)
class ExplainedJob:
    """One job. `reasons`: why it would not run, or what decides later, a sentence each."""

    key: str
    waits_for: tuple[str, ...]
    """Keys of jobs, also where it names none and so waits for all earlier stages."""
    runs: Runs
    reasons: tuple[str, ...]
    looks_at: tuple[str, ...]
    """What its values come from that are known only when it begins: `needs`, `run`, `steps`."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an event makes of a pipeline. `reason`: why it starts it, or does not."""

    event: Event
    starts: bool
    reason: str
    jobs: tuple[ExplainedJob, ...]


def explain(pipeline: Pipeline, plan: Plan, event: Event) -> Explanation:
    """Explains the plan of a pipeline for an event."""
    verdict = start(pipeline.triggers, event)
    return Explanation(event, verdict.starts, verdict.reason, tuple(_job(plan, job) for job in plan.jobs))


def _job(plan: Plan, job: PlannedJob) -> ExplainedJob:
    waits = job.needs
    if waits is None:
        waits = tuple(each.key for each in plan.jobs if each.stage < job.stage)
    runs, reasons = (Runs.NO, (job.skip,)) if job.skip else _later(plan, job)
    looks_at = tuple(sorted(roots_of(late_expressions(job)) - STATIC))
    return ExplainedJob(job.key, waits, runs, reasons, looks_at)


def _later(plan: Plan, job: PlannedJob) -> tuple[Runs, tuple[str, ...]]:
    stage = plan.stages[job.stage]
    found = []
    if job.expands:
        waits = "what it waits for has ended"
        if job.needs:
            waits = f"{', '.join(f'`{each}`' for each in job.needs[:5])}{' and others' * (len(job.needs) > 5)} is done"
        gives = ", ".join(f"{key}: {template_text(each)}" for key, each in job.expands.items())
        found.append(f"its cells are known when {waits} ({gives})")
    if stage.condition is not None:
        found.append(f"judged once the stages before have ended: {_shown(stage.condition)} of the stage")
    if stage.approval is not None:
        found.append("asked of a person once the stages before have ended")
    if job.condition is not None:
        found.append(f"judged once what it waits for has ended: {_shown(job.condition)}")
    return (Runs.LATER if found else Runs.YES), tuple(found)


def _shown(condition: Expression) -> str:
    return f"`if: {' '.join(condition.text.split())}`"
