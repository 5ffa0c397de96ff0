"""The tree of a followed run: stages, their jobs, the cells of a matrix together. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from rich.text import Text

from headrace.cli.board import Board
from headrace.cli.output import between, plain, span
from headrace.cli.sentences import ALLOWED, alike, approves, asks, cell_of, counted, families, stands, waiting
from headrace.client.types import Job, JobState, Run, Stage

_SIGNS = {
    JobState.WAITING: ("·", "dim"),
    JobState.QUEUED: ("○", "cyan"),
    JobState.RUNNING: ("▶", "bold blue"),
    JobState.BLOCKED: ("◆", "yellow"),
    JobState.PASSED: ("✔", "green"),
    JobState.FAILED: ("✘", "bold red"),
    JobState.CANCELED: ("■", "yellow"),
    JobState.SKIPPED: ("↷", "dim"),
}
_FIRST = (JobState.FAILED, JobState.RUNNING, JobState.BLOCKED, JobState.QUEUED)
"""What is shown first where there is no room for all."""
_PEOPLE_FIRST = -1
_LAST = len(_FIRST)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the tree. `rank`: the lower, the longer it is kept; `jobs`: how many it stands for."""

    text: Text
    rank: int
    jobs: int = 0


def tree(board: Board, time: datetime, *, rows: int) -> Text:
    """Stages with their jobs, one a row; where there are more than `rows`, the jobs that matter now."""
    run, jobs = board.run, board.jobs
    if run is None:
        return Text("waiting for the run …", style="dim")
    found: list[_Row] = []
    for stage in run.stages:
        found += _stage(run, stage, [job for job in jobs if job.stage == stage.index], time)
    kept, left_out = _that_fit(found, rows - 1)
    text = Text(no_wrap=True, overflow="ellipsis")
    for row in kept:
        text.append_text(row.text).append("\n")
    if left_out:
        text.append(f"… and {counted(left_out, 'more job')}\n", style="dim")
    style = f"bold {ALLOWED}" if run.warnings and run.ended and run.state == "passed" else "bold"
    took = span(between(run.started_at or run.created_at, run.ended_at or time))
    return text.append(f"{stands(run)} {took}", style=style)


def _that_fit(found: list[_Row], room: int) -> tuple[list[_Row], int]:
    """The rows to be shown, and how many jobs are not."""
    if len(found) <= room:
        return found, 0
    order = sorted(range(len(found)), key=lambda index: (found[index].rank, index))
    chosen = set(order[: max(1, room - 1)])
    left_out = sum(row.jobs for index, row in enumerate(found) if index not in chosen)
    return [row for index, row in enumerate(found) if index in chosen], left_out


def _stage(run: Run, stage: Stage, jobs: list[Job], time: datetime) -> list[_Row]:
    found: list[_Row] = []
    asked = stage in waiting(run)
    named = len(run.stages) > 1 or asked
    if named:
        done = sum(1 for job in jobs if job.ended)
        head = Text(plain(stage.name), style="bold").append(f"  {done}/{len(jobs)}", style="not bold dim")
        found.append(_Row(head, _PEOPLE_FIRST if asked else min(map(_rank, jobs), default=_LAST)))
    if asked:
        found.append(_Row(Text(f"  ◆ {asks(stage)}", style="yellow"), _PEOPLE_FIRST))
        found.append(_Row(Text(f"    {approves(run, stage)}", style="bold yellow"), _PEOPLE_FIRST))
    told = stage.approval.sentence if asked and stage.approval else ""
    indent = "  " if named else ""
    for family in families(jobs):
        found += _family(family, time, indent, told)
    return found


def _family(jobs: list[Job], time: datetime, indent: str, told: str) -> list[_Row]:
    """A job, or the cells of a matrix: in one row where they are alike, else below their name."""
    if len(jobs) == 1:
        return [_Row(_job(jobs[0], plain(jobs[0].key), time, indent, told), _rank(jobs[0]), 1)]
    first = jobs[0]
    if alike(jobs):
        row = _job(first, plain(first.name), None, indent, told).append(f"  {len(jobs)} cells", style="dim")
        return [_Row(row, _rank(first), len(jobs))]
    done = sum(1 for job in jobs if job.ended)
    head = Text(f"{indent}  {plain(first.name)}").append(f"  {done}/{len(jobs)}", style="dim")
    below = [_Row(_job(job, cell_of(job), time, f"{indent}  ", told), _rank(job), 1) for job in jobs]
    return [_Row(head, min(row.rank for row in below)), *below]


def _rank(job: Job) -> int:
    return _FIRST.index(job.state) if job.state in _FIRST else _LAST


def _job(job: Job, name: str, time: datetime | None, indent: str, told: str) -> Text:
    """`time` None: for several jobs at once, of which none has a time of its own. `told`: is not said once more."""
    sign, style = _SIGNS.get(JobState(job.state), ("?", "")) if job.state in set(JobState) else ("?", "")
    if job.warned:
        sign, style = "!", f"bold {ALLOWED}"
    text = Text(indent).append(f"{sign} ", style=style).append(name, style=style)
    if job.started_at is not None and time is not None:
        text.append(f"  {span(between(job.started_at, job.ended_at or time))}")
    newest = job.attempt
    if job.state == JobState.RUNNING and newest is not None:
        text.append(f"  on {plain(newest.agent)}", style="dim")
        if newest.number > 1:
            text.append(f", attempt {newest.number}", style="dim")
    if job.warned:
        text.append("  allowed to fail", style=ALLOWED)
    if job.sentence and job.sentence != told:
        text.append(f"  {plain(job.sentence)}", style="dim")
    return text
