"""What is said of a run, its stages and jobs, in every view alike. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from headrace.cli.output import between, clock, plain, span
from headrace.client.types import Approval, Job, JobState, Run, RunState, Stage, TestReport

ALLOWED = "magenta"
"""The colour of what failed and was allowed to, and of nothing else."""


def counted(count: int, word: str) -> str:
    """`1 warning`, `2 warnings`."""
    return f"{count} {word}{'s' * (count != 1)}"


def stands(run: Run) -> str:
    """`running`, `passed`, `passed with 2 warnings`."""
    if run.state == RunState.PASSED and run.warnings:
        return f"{run.state} with {counted(run.warnings, 'warning')}"
    return str(run.state)


def state_of(job: Job) -> str:
    """Its state; one that failed and was allowed to says so."""
    return f"{job.state}, allowed" if job.warned else str(job.state)


def waiting(run: Run) -> list[Stage]:
    """The stages that a person has to decide about now; a run that has ended asks nobody any more."""
    return [each for each in run.stages if each.approval is not None and each.approval.asked and not run.ended]


def asks(stage: Stage) -> str:
    """`waits for 2 approvals: Ship it? (1 of 2 so far)`."""
    approval = stage.approval
    assert approval is not None
    approved = sum(each.approved for each in approval.decisions)
    so_far = f" ({approved} of {approval.count} so far)" if approved else ""
    return f"{plain(approval.sentence) or 'waits for an approval'}{so_far}"


def approves(run: Run, stage: Stage) -> str:
    """The command that approves a stage."""
    named = f" --stage {shlex.quote(plain(stage.name))}" if len(waiting(run)) > 1 else ""
    return f"headrace approve {run.id}{named}"


def approval_of(run: Run, stage: Stage) -> list[str]:
    """How the approval of a stage stands: what is asked, what people decided, how to decide."""
    approval = stage.approval
    if approval is None:
        return []
    lines = [_outcome(run, approval)] if _outcome(run, approval) else []
    if stage in waiting(run):
        lines = [f"{asks(stage)}, until {clock(approval.expires_at)}"]
        lines.append(f"`{approves(run, stage)}` approves it, with --reject it is refused")
    for each in approval.decisions:
        comment = f": {plain(each.comment)}" if each.comment else ""
        lines.append(f"{'approved' if each.approved else 'rejected'} by {plain(each.person)}{comment}")
    return lines


def _outcome(run: Run, approval: Approval) -> str:
    """What the decisions do not tell by themselves."""
    if approval.state == "closed":
        return f"asks for {counted(approval.count, 'approval')} once it is its turn" if not run.ended else ""
    if approval.state == "asked":
        return "was never decided: the run ended first"
    return plain(approval.sentence) if approval.state == "expired" else ""


def counts(report: TestReport) -> str:
    """`42 tests, 1 failed, 3 skipped in 12.3 s`."""
    parts = [counted(report.tests, "test")]
    for count, word in ((report.failures, "failed"), (report.errors, "broke"), (report.skipped, "skipped")):
        if count:
            parts.append(f"{count} {word}")
    return f"{', '.join(parts)} in {span(report.duration_ms)}" if report.duration_ms else ", ".join(parts)


def tried(job: Job) -> list[str]:
    """How each try of a job went that was tried more than once, and when the next one comes."""
    count = len(job.attempts) + (job.due_at is not None)
    if count < 2:
        return []
    lines = []
    for each in job.attempts:
        cause = f" ({each.cause})" if each.cause not in {None, each.state} else ""
        sentence = f": {plain(each.sentence)}" if each.sentence else ""
        took = f" in {span(between(each.started_at, each.ended_at))}" if each.ended_at and each.started_at else ""
        lines.append(f"try {each.number} of {count} {each.state}{cause}{took} on {plain(each.agent)}{sentence}")
    return lines if job.due_at is None else [*lines, f"try {count} of {count} begins at {clock(job.due_at)}"]


def families(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs of one stage, in order, with the cells of a matrix together; a job without cells is alone."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.name if job.matrix or job.shard else job.key, []).append(job)
    return list(found.values())


def cell_of(job: Job) -> str:
    """What tells a cell from the others, as its key ends: `[python=3.11,os=trixie]`."""
    return plain(job.key.removeprefix(job.name)) or plain(job.key)


def alike(jobs: Sequence[Job]) -> bool:
    """Whether several cells need no row each: they all wait, or all passed, and there is nothing else to say."""
    first = jobs[0]
    quiet = (JobState.WAITING, JobState.QUEUED, JobState.BLOCKED, JobState.PASSED, JobState.SKIPPED)
    return first.state in quiet and all((job.state, job.sentence) == (first.state, first.sentence) for job in jobs)
