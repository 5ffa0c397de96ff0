"""What is known of a followed run: its newest state, the last lines of each job's log. Plain data, no I/O."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from headrace.cli.output import plain
from headrace.client.types import Job, JobState, Run, RunChange

KEPT_LINES = 200
"""Of each job's log: enough for a tall terminal; a summary shows the last 20."""
_LONGEST_LINE = 16 * 1024


class OurLine(str):
    """A line that Headrace itself wrote into a job's log, and not the job."""

    __slots__ = ()


class Lines:
    """Cuts a stream of bytes into lines of harmless text. A line over 16 KiB is cut into several."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes, *, ours: bool = False) -> list[str]:
        """The lines that these bytes complete; `ours` are `OurLine`, and whole in themselves."""
        if ours:
            texts = (plain(line.decode("utf-8", "replace")) for line in data.split(b"\n"))
            return [*self.end(), *(OurLine(text) for text in texts if text)]
        *whole, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > _LONGEST_LINE:
            whole.append(self._rest[:_LONGEST_LINE])
            self._rest = self._rest[_LONGEST_LINE:]
        return [plain(line.decode("utf-8", "replace")) for line in whole]

    def end(self) -> list[str]:
        """What is left without a line break."""
        rest, self._rest = self._rest, b""
        return [plain(rest.decode("utf-8", "replace"))] if rest else []


class Board:
    """A run with its jobs, kept up to date by the changes of a watch."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self._jobs: dict[str, Job] = {}
        self._logs: dict[str, deque[str]] = {}
        self.pane: str | None = None
        """The job whose log is shown: a running one, and the same as long as it runs."""

    def apply(self, change: RunChange) -> list[Job]:
        """Takes a change in; returns the jobs that are other than they were."""
        if change.snapshot is not None:
            self.run = change.snapshot
            found = [job for job in change.snapshot.jobs if self._jobs.get(job.key) != job]
        else:
            found = [change.job] if change.job is not None else []
        if change.run is not None:
            stages = self.run.stages if self.run else ()
            self.run = replace(change.run, stages=change.run.stages or stages)
        for job in found:
            self._jobs.pop(job.key, None) if job.expanded else self._jobs.update({job.key: job})
        found = [job for job in found if not job.expanded]
        self._choose_pane()
        return found

    def _choose_pane(self) -> None:
        shown = self._jobs.get(self.pane or "")
        if shown is not None and shown.state == JobState.RUNNING:
            return
        running = [key for key, job in self._jobs.items() if job.state == JobState.RUNNING]
        if running:
            self.pane = running[-1]

    @property
    def jobs(self) -> list[Job]:
        """All jobs, in the order of the file."""
        return list(self._jobs.values())

    def whole(self) -> Run:
        """The run with its jobs as they are now."""
        assert self.run is not None, "a watch begins with a snapshot"
        return replace(self.run, jobs=tuple(self._jobs.values()))

    def log(self, job: str, lines: list[str]) -> None:
        """Notes the lines of a job's log."""
        self._logs.setdefault(job, deque(maxlen=KEPT_LINES)).extend(lines)

    def last_lines(self, job: str, count: int) -> list[str]:
        """The newest lines of a job's log."""
        return list(self._logs.get(job, ()))[-count:] if count > 0 else []
