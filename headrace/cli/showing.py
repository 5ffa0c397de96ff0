"""A run as `headrace show` tells it: how it stands, where the time went, what needs a look. Pure."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable

from rich.text import Text

from headrace.cli.output import clock, plain, span
from headrace.cli.sentences import ALLOWED, approval_of, counts, stands, tried, waiting
from headrace.cli.summary import ended_how, failure, timed
from headrace.client.types import Job, JobState, Run, RunState, Stage, StepResult, TestReport

WIDTH = 100
MOST_FAILURES = 5
MOST_MESSAGE_LINES = 6

_COLOURS = {
    JobState.FAILED: "bold red",
    JobState.SKIPPED: "dim",
    JobState.BLOCKED: "yellow",
    JobState.CANCELED: "yellow",
    JobState.RUNNING: "bold blue",
}
_RUN_COLOURS = {RunState.PASSED: "bold green", RunState.FAILED: "bold red", RunState.BLOCKED: "bold yellow"}

Lines = list[Text]


def page(run: Run) -> Lines:
    """The lines, of at most `WIDTH` columns where what a job wrote can be shortened."""
    blocks = [_head(run), _table(run)]
    blocks += [_stage(run, stage) for stage in run.stages]
    blocks += [_job(run, job) for job in run.jobs]
    lines: Lines = []
    alone = False
    for block in filter(None, blocks):
        if lines and not (alone and len(block) == 1):  # what is said in one line needs no room around it
            lines.append(Text())
        lines += block
        alone = len(block) == 1
    return lines


def _head(run: Run) -> Lines:
    source = run.source
    warned = run.warnings and run.state == RunState.PASSED
    colour = f"bold {ALLOWED}" if warned else _RUN_COLOURS.get(RunState(run.state), "bold") if _known(run) else "bold"
    took = f" in {span(run.took_ms)}" if run.ended_at else ""
    why = f": {plain(run.sentence)}" if run.sentence else ""
    where = source.branch or source.tag
    commit = plain(source.description or source.commit)
    lines = [
        Text(f"run {run.id} ").append(stands(run), style=colour).append(f"{took}{why}"),
        Text(f"pipeline {plain(run.pipeline)} at {commit}, {plain(source.repository)}"),
        Text(f"{plain(run.event)}{f' on {plain(where)}' if where else ''}")
        .append(f", created {clock(run.created_at)}")
        .append(f", ended {clock(run.ended_at)}" if run.ended_at else ""),
    ]
    if run.parameters:
        given = ", ".join(f"{name}={_short(value, 40)}" for name, value in run.parameters.items())
        lines += _wrapped(f"parameters {given}", "")
    return lines


def _known(run: Run) -> bool:
    return run.state in set(RunState)


def _table(run: Run) -> Lines:
    found = timed(run)
    return [Text(line, style=_colour(job) if job else "") for line, job in found] if len(found) > 1 else []


def _colour(job: Job) -> str:
    if job.warned:
        return ALLOWED
    return _COLOURS.get(JobState(job.state), "") if job.state in set(JobState) else ""


def _stage(run: Run, stage: Stage) -> Lines:
    if not stage.environment and stage.approval is None:
        return []
    what = f": environment {plain(stage.environment)}" if stage.environment else ""
    url = f", {plain(stage.url)}" if stage.url else ""
    style = "yellow" if stage in waiting(run) else ""
    found = [line for each in approval_of(run, stage) for line in _wrapped(each, "  ", style)]
    return [Text(f"stage {plain(stage.name)}", style="bold").append(f"{what}{url}", style="not bold"), *found]


def _job(run: Run, job: Job) -> Lines:
    """What is to be said of a job beside its times; nothing of one that passed in the usual way."""
    about = _about(job)
    stage = next((each for each in run.stages if each.index == job.stage), None)
    told = stage.approval.sentence if stage and stage.approval else ""
    if job.state == JobState.FAILED:
        head = [Text(line, style=_colour(job) if not index else "") for index, line in enumerate(failure(job))]
    elif job.sentence and job.sentence != told:
        style = "dim" if job.state == JobState.SKIPPED else ""
        head = _wrapped(f"job {plain(job.key)} {job.state}: {plain(job.sentence)}", "", style)
    elif about:
        head = [Text(f"job {plain(job.key)} {job.state}")]
    else:
        return []
    return [*head, *about]


def _about(job: Job) -> Lines:
    newest = job.attempt
    lines = [Text(f"  {line}") for line in tried(job)]
    for step in newest.steps if newest else ():
        lines += _step(step)
    if newest is not None and newest.tests is not None:
        lines += _tests(newest.tests)
    for name, value in job.outputs.items():
        text = value if isinstance(value, str) else json.dumps(value)
        lines.append(Text(f"  output {plain(name)} = {_short(text, WIDTH - 12 - len(name))}"))
    return lines


def _step(step: StepResult) -> Lines:
    """Of a step, what the outcome of its job does not tell: that it was allowed to fail, that it was tried again."""
    how = ""
    if step.allowed and step.cause:
        how = f"{ended_how(step)}, which is allowed"
    if step.tries > 1:
        how = f"{how}, at try {step.tries}" if how else f"{'failed' if step.cause else 'passed'} at try {step.tries}"
    style = ALLOWED if step.allowed and step.cause else ""
    return [Text(f"  step {step.number + 1}, {plain(step.name)}: {how}", style=style)] if how else []


def _tests(report: TestReport) -> Lines:
    lines = [Text(f"  {counts(report)}")]
    for each in report.failed[:MOST_FAILURES]:
        suite = f"{plain(each.suite)}: " if each.suite else ""
        lines.append(Text(f"    ✘ {suite}{plain(each.name)}", style="red"))
        lines += [Text(f"        {line}") for line in _first_lines(each.message)]
    left = report.failures + report.errors - len(report.failed[:MOST_FAILURES])
    if left > 0 and report.failed:
        lines.append(Text(f"    and {left} more: --json has the first hundred", style="dim"))
    return lines + [line for each in report.problems for line in _wrapped(plain(each), "    ", "yellow")]


def _first_lines(message: str) -> Iterable[str]:
    found = [_short(line.rstrip(), WIDTH - 8) for line in message.splitlines() if line.strip()]
    return found if len(found) <= MOST_MESSAGE_LINES else [*found[: MOST_MESSAGE_LINES - 1], "…"]


def _short(text: str, most: int) -> str:
    text = plain(text)
    return text if len(text) <= most else f"{text[: max(0, most - 1)]}…"


def _wrapped(text: str, indent: str, style: str = "") -> Lines:
    """A sentence on as many lines as it needs; a word that is longer than a line stays whole, to be copied."""
    found = textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return [Text(line, style=style) for line in found]
