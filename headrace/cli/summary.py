"""How a run ended, as text: where the time went, what failed and why, where the artifacts are. Pure."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Mapping, Sequence

from headrace.cli.board import Board, OurLine
from headrace.cli.output import between, plain, size, span, table
from headrace.cli.sentences import cell_of, families, stands, state_of
from headrace.client.types import Artifact, Attempt, Job, JobState, Run, RunState, StepResult

LAST_LINES = 20


def exit_code(run: Run) -> int:
    """0 passed, 1 failed, 130 canceled."""
    return {RunState.PASSED.value: 0, RunState.CANCELED.value: 130}.get(str(run.state), 1)


def summary(board: Board, artifacts: Sequence[Artifact], folders: Mapping[str, str]) -> list[str]:
    """The lines at the end of a run; `folders`: where artifacts were saved, by name."""
    run = board.whole()
    lines = ["", *times(run)]
    for job in run.jobs:
        if job.state == JobState.FAILED:
            lines += ["", *failure(job), *_last_lines(board, job)]
    if artifacts:
        lines.append("")
        for each in artifacts:
            where = folders.get(each.name) or f"headrace artifacts {run.id} --download DIR"
            files = "1 file" if len(each.files) == 1 else f"{len(each.files)} files"
            lines.append(f"artifact {plain(each.name)} ({files}, {size(each.size)}): {where}")
    total = span(run.took_ms)
    why = f": {plain(run.sentence)}" if run.sentence else ""
    return [*lines, "", f"run {run.id} {stands(run)} in {total}{why}"]


def how_to_follow(run: Run) -> str:
    """Commands that work for this run, whatever jobs it has."""
    ahead = [job for job in run.jobs if not job.ended] or list(run.jobs)
    if len(run.jobs) == 1:
        return f"follow it with `headrace logs {run.id} -f`"
    look = f"look at it with `headrace show {run.id}`"
    return f"{look}, follow a job with `headrace logs {run.id} {shlex.quote(ahead[0].key)} -f`" if ahead else look


def times(run: Run) -> list[str]:
    """Where the time of each job went, as a table."""
    return [line for line, _ in timed(run)]


def timed(run: Run) -> list[tuple[str, Job | None]]:
    """The same, each row with its job; the head of the table, and the name above the cells of a matrix, have none."""
    header = ("JOB", "STATE", "QUEUED", "SANDBOX", "CHECKOUT", "STEPS", "ARTIFACTS", "IN ALL")
    rows: list[tuple[str, ...]] = []
    jobs: list[Job | None] = [None]
    for stage in sorted({job.stage for job in run.jobs}):
        for family in families([job for job in run.jobs if job.stage == stage]):
            if len(family) > 1:
                rows.append((family[0].name, *[""] * (len(header) - 1)))
                jobs.append(None)
            rows += [_row(job, f"  {cell_of(job)}" if len(family) > 1 else job.key) for job in family]
            jobs += family
    return list(zip(table(header, rows).splitlines(), jobs, strict=True))


def _row(job: Job, name: str) -> tuple[str, ...]:
    newest = job.attempt
    return (
        name,
        state_of(job),
        span(job.queued_for_ms),
        *map(span, _parts(newest)),
        span(between(newest.leased_at or newest.started_at, newest.ended_at) if newest else None),
    )


def _parts(attempt: Attempt | None) -> tuple[int | None, ...]:
    if attempt is None:
        return (None, None, None, None)
    return (attempt.sandbox_ms, attempt.checkout_ms, attempt.steps_ms, attempt.artifacts_ms)


def failure(job: Job) -> list[str]:
    """Which job failed, in which step, how, and the sentence of its cause."""
    step = _failed_step(job)
    cause = f" ({job.cause})" if job.cause else ""
    what = f"{'warning: ' if job.warned else ''}job {plain(job.key)} failed{cause}"
    if step is None:
        return [f"{what}: {plain(job.sentence) or 'no reason was given'}"]
    how, sentence = ended_how(step), plain(job.sentence or step.sentence)
    # The sentence may say the same and more: that this exit code stands for a signal, say.
    how = next((each for each in (plain(step.sentence), sentence) if each.startswith(how)), how)
    lines = [f"{what} in step {step.number + 1}, {plain(step.name)}: {how}"]
    told = not sentence or how in sentence or sentence in how
    return lines if told else [*lines, f"  {sentence}"]


def _failed_step(job: Job) -> StepResult | None:
    newest = job.attempt
    steps = newest.steps if newest else ()
    return next((step for step in steps if step.cause and not step.skipped and not step.allowed), None)


def ended_how(step: StepResult) -> str:
    """`exit code 3`, `killed by signal 9 (SIGKILL)`, or its sentence."""
    if step.signal is not None:
        try:
            name = f" ({signal.Signals(step.signal).name})"
        except ValueError:
            name = ""
        return f"killed by signal {step.signal}{name}"
    if step.exit_code is not None:
        return f"exit code {step.exit_code}"
    return plain(step.sentence) or str(step.cause)


def _last_lines(board: Board, job: Job) -> list[str]:
    lines = board.last_lines(job.key, LAST_LINES)
    if not lines:
        return ["  it wrote no log"]
    return [
        f"  the last {len(lines)} lines of its log:",
        *(f"  {'#' if isinstance(line, OurLine) else '|'} {line}" for line in lines),
    ]


def happened(job: Job) -> str:
    """What to say when a job has changed: `running on local`, `failed in 3.2 s: …`."""
    newest = job.attempt
    again = f", attempt {newest.number}" if newest and newest.number > 1 else ""
    sentence = f": {plain(job.sentence)}" if job.sentence else ""
    match job.state:
        case JobState.RUNNING:
            return f"running on {newest.agent if newest else 'an agent'}{again}"
        case JobState.PASSED | JobState.FAILED | JobState.CANCELED if job.started_at is not None:
            return f"{state_of(job)} in {span(between(job.started_at, job.ended_at))}{again}{sentence}"
        case _:
            return f"{job.state}{sentence}"
