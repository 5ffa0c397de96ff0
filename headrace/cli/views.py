"""How a followed run is shown where nobody looks at a terminal: as plain lines, or as JSON events."""

from __future__ import annotations

from typing import Protocol

from headrace.cli import output
from headrace.cli.board import Board, OurLine
from headrace.cli.sentences import approves, asks, stands, waiting
from headrace.cli.summary import happened
from headrace.client.types import Job, LogBytes, LogRecord, Run, SectionOpened, json_value


class View(Protocol):
    """Told all that happens to a followed run, in order."""

    def begin(self, run: Run) -> None:
        """The run is there."""

    def changed(self, board: Board, jobs: list[Job]) -> None:
        """The board has taken in a change of the run, or of these jobs."""

    def record(self, job: str, record: LogRecord) -> None:
        """A record of a job's log came."""

    def lines(self, job: str, lines: list[str]) -> None:
        """Whole lines of a job's log came."""

    def note(self, text: str) -> None:
        """Something for the person in front."""

    def end(self) -> None:
        """No more will come."""


class Plain:
    """Lines that can be grepped: `job | what it wrote`, `job # what Headrace wrote into its log`,
    `job > a step begins`, `job * its state`, `run 7 * …`.
    """

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def begin(self, run: Run) -> None:
        """The header."""
        output.say(f"run {run.id} * {run.pipeline or 'pipeline'} at {run.source.description or run.source.commit[:7]}")

    def changed(self, board: Board, jobs: list[Job]) -> None:
        """Says what is new, once; the run's end comes last."""
        over = board.run is not None and board.run.ended
        if not over:
            self._say_run(board)
        for job in jobs:
            self._say(job.key, f"{job.key} * {happened(job)}")
        if over:
            self._say_run(board)

    def _say_run(self, board: Board) -> None:
        if board.run is not None:
            self._say("", f"run {board.run.id} * {stands(board.run)}")
            for stage in waiting(board.run):
                self._say(f"stage {stage.index}", f"run {board.run.id} * stage {stage.name} {asks(stage)}")
                self._say(
                    f"approval {stage.index}", f"run {board.run.id} * to approve it: {approves(board.run, stage)}"
                )

    def _say(self, key: str, line: str) -> None:
        if self._said.get(key) != line:
            self._said[key] = line
            output.say(output.plain(line))

    def record(self, job: str, record: LogRecord) -> None:
        """Steps are announced; bytes come as lines."""
        if isinstance(record, SectionOpened) and record.step >= 0:
            output.say(f"{job} > step {record.step + 1}: {output.plain(record.title)}")

    def lines(self, job: str, lines: list[str]) -> None:
        """Each with its job before it."""
        if lines:
            output.say("\n".join(f"{job} {'#' if isinstance(line, OurLine) else '|'} {line}" for line in lines))

    def note(self, text: str) -> None:
        """Beside the output."""
        output.note(text)

    def end(self) -> None:
        """Nothing is left open."""


class Events:
    """One JSON event a line (docs/reference/json.md)."""

    def begin(self, run: Run) -> None:
        """`{"event": "begin", "run": …}`."""
        output.print_event({"event": "begin", "run": run.to_json()})

    def changed(self, board: Board, jobs: list[Job]) -> None:
        """One event for each job that changed, else one for the run."""
        for job in jobs:
            output.print_event({"event": "job", "job": job.to_json()})
        if not jobs and board.run is not None:
            output.print_event({"event": "run", "run": board.run.to_json()})

    def record(self, job: str, record: LogRecord) -> None:
        """`{"event": "log", "job": …, "record": …}`; the last of a log has no event."""
        if isinstance(record, LogBytes) or hasattr(record, "section"):
            output.print_event({"event": "log", "job": job, "record": json_value(record)})

    def lines(self, job: str, lines: list[str]) -> None:
        """The records have said it."""

    def note(self, text: str) -> None:
        """Beside the output."""
        output.note(text)

    def end(self) -> None:
        """Nothing is left open."""
