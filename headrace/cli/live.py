"""How a followed run is shown in a terminal: a tree of stages and jobs, and below it the log of a running job."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.rule import Rule
from rich.text import Text

from headrace.cli.board import Board, OurLine
from headrace.cli.output import between, plain, span
from headrace.cli.views import View
from headrace.client.types import Job, JobState, LogRecord, Run

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


class Live:
    """Redraws the picture of a board as it changes; at the end the tree stays, the pane goes."""

    def __init__(self, console: Console, time: Callable[[], datetime]) -> None:
        self._console = console
        self._time = time
        self._board = Board()
        self._live = RichLive(
            get_renderable=self._picture, console=console, refresh_per_second=8, redirect_stderr=False, transient=True
        )

    def begin(self, run: Run) -> None:
        """The header, then the moving part."""
        what = run.source.description or run.source.commit[:7]
        self._console.print(Text(f"run {run.id}  {run.pipeline or 'pipeline'} at {what}", style="bold"))
        self._live.start()

    def changed(self, board: Board, jobs: list[Job]) -> None:
        """The next picture shows it."""
        del jobs  # the picture shows them all
        self._board = board

    def record(self, job: str, record: LogRecord) -> None:
        """The board has the lines."""

    def lines(self, job: str, lines: list[str]) -> None:
        """The board has them."""

    def note(self, text: str) -> None:
        """Above the moving part."""
        self._console.print(Text(text, style="yellow"))

    def end(self) -> None:
        """Leaves the tree as it was in the end."""
        if self._live.is_started:
            self._live.stop()
            self._console.print(tree(self._board, self._time(), rows=10_000))

    def _picture(self) -> RenderableType:
        return picture(self._board, self._time(), self._console.height)


def picture(board: Board, time: datetime, height: int) -> RenderableType:
    """The tree, and the pane with what room is left; at most `height` - 1 rows."""
    rows = max(3, height - 2)
    jobs = tree(board, time, rows=max(3, rows * 2 // 3))
    left = rows - len(jobs.plain.splitlines()) - 1
    if board.pane is None or left < 2:
        return jobs
    lines = board.last_lines(board.pane, left)
    pane = Text("\n", no_wrap=True, overflow="ellipsis").join(_line(line) for line in lines)
    return Group(jobs, Rule(Text(plain(board.pane), style="bold"), align="left", style="dim"), pane)


def _line(line: str) -> Text:
    """Ours in a colour of its own: nobody else can print that."""
    return Text(f"# {plain(line)}", style="cyan") if isinstance(line, OurLine) else Text(plain(line), style="dim")


def tree(board: Board, time: datetime, *, rows: int) -> Text:
    """Stages with their jobs, one a row; where there are more than `rows`, the jobs that matter now."""
    run, jobs = board.run, board.jobs
    if run is None:
        return Text("waiting for the run …", style="dim")
    text = Text(no_wrap=True, overflow="ellipsis")
    named = len(run.stages) > 1
    room = rows - 1 - (len(run.stages) if named else 0)
    shown = _most_important(jobs, room)
    for stage in run.stages:
        mine = [job for job in jobs if job.stage == stage.index]
        if named:
            done = sum(1 for job in mine if job.ended)
            text.append(f"{plain(stage.name)}", style="bold").append(f"  {done}/{len(mine)}\n", style="dim")
        for job in mine:
            if job.key in shown:
                _append_job(text, job, time, indent="  " if named else "")
    if len(shown) < len(jobs):
        text.append(f"… and {len(jobs) - len(shown)} more jobs\n", style="dim")
    text.append(f"{run.state} {span(between(run.created_at, run.ended_at or time))}", style="bold")
    return text


def _most_important(jobs: list[Job], room: int) -> set[str]:
    if len(jobs) <= room:
        return {job.key for job in jobs}
    ranked = sorted(jobs, key=lambda job: _FIRST.index(job.state) if job.state in _FIRST else len(_FIRST))
    return {job.key for job in ranked[: max(1, room - 1)]}


def _append_job(text: Text, job: Job, time: datetime, *, indent: str) -> None:
    sign, style = _SIGNS.get(JobState(job.state), ("?", "")) if job.state in set(JobState) else ("?", "")
    text.append(f"{indent}{sign} ", style=style).append(plain(job.key), style=style)
    if job.started_at is not None:
        text.append(f"  {span(between(job.started_at, job.ended_at or time))}")
    newest = job.attempt
    if job.state == JobState.RUNNING and newest is not None:
        text.append(f"  on {plain(newest.agent)}", style="dim")
        if newest.number > 1:
            text.append(f", attempt {newest.number}", style="dim")
    if job.sentence:
        text.append(f"  {plain(job.sentence)}", style="dim")
    text.append("\n")


def view() -> View:
    """A live view on this terminal."""
    return Live(Console(), partial(datetime.now, UTC))
