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
from headrace.cli.output import plain
from headrace.cli.tree import tree
from headrace.cli.views import View
from headrace.client.types import Job, LogRecord, Run


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


def view() -> View:
    """A live view on this terminal."""
    return Live(Console(), partial(datetime.now, UTC))
