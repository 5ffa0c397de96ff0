"""Following a run: one watch, one tail for each attempt, and two Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from headrace.cli.board import Board, Lines
from headrace.cli.processes import Processes
from headrace.cli.views import View
from headrace.client import Client
from headrace.client.types import Job, JobState, LogBytes, LogGap, Run
from headrace.errors import HeadraceError, ServerFailed

TAILS_END_WITHIN = 20.0
"""Seconds for the logs to be complete after the run has ended."""
KILLED_WITHIN = 10.0
"""Seconds for a killed run to end; its owner takes the daemons away then in any case."""


@contextmanager
def interrupts_to(told: Callable[[], object]) -> Iterator[None]:
    """Ctrl-C and TERM call this as long as it lasts; afterwards they do what they did before.

    The loop by itself would leave TERM to the kernel, which ends an owner before it has stopped its daemons.
    """
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, told)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


class Interrupts:
    """The first Ctrl-C (or TERM) cancels with grace, the second kills."""

    def __init__(self, client: Client, view: View) -> None:
        self._client = client
        self._view = view
        self._tasks: set[asyncio.Task[None]] = set()
        self.run_id = 0
        self.count = 0
        self.killed = asyncio.Event()

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Signals come here as long as this lasts."""
        with interrupts_to(self._interrupted):
            yield

    def _interrupted(self) -> None:
        self.count += 1
        if self.count == 1:
            self._view.note(f"canceling run {self.run_id}; once more kills it")
        elif self.count == 2:
            self._view.note(f"killing run {self.run_id}")
            asyncio.get_running_loop().call_later(KILLED_WITHIN, self.killed.set)
        else:
            self.killed.set()
            return
        task = asyncio.get_running_loop().create_task(self._cancel(), name="cancel")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self) -> None:
        try:
            await self._client.cancel(self.run_id, reason="interrupted by the person who started it")
        except HeadraceError as error:
            self._view.note(f"the cancel did not reach the coordinator: {error}")


class Follower:
    """Follows one run to its end and tells a view; afterwards `board` holds how it ended."""

    def __init__(self, client: Client, run: Run, view: View, *, after_retry: bool = False) -> None:
        self.board = Board()
        self._client = client
        self._run = run
        self._view = view
        self._seen: set[tuple[str, int]] = set()
        if after_retry:  # the logs of attempts that had ended before are not told again
            self._seen |= {(job.key, each.number) for job in run.jobs for each in job.attempts if each.ended_at}
        self._tails: set[asyncio.Task[None]] = set()

    async def follow(self) -> Run:
        """Returns the run as it ended."""
        self._view.begin(self._run)
        try:
            async for change in self._client.watch(self._run.id):
                jobs = self.board.apply(change)
                self._view.changed(self.board, jobs)
                for job in jobs:
                    self._tail_new(job)
            await self._tails_end()
        finally:
            for task in self._tails:
                task.cancel()
            self._view.end()
        return self.board.whole()

    def _tail_new(self, job: Job) -> None:
        """A job that is queued may have been returned: only what has started has a log."""
        for attempt in job.attempts:
            started = attempt.started_at is not None or job.state == JobState.RUNNING
            if attempt.number and started and (job.key, attempt.number) not in self._seen:
                self._seen.add((job.key, attempt.number))
                task = asyncio.create_task(self._tail(job.key, attempt.number), name=f"tail {job.key}")
                self._tails.add(task)

    async def _tail(self, job: str, number: int) -> None:
        lines = Lines()
        try:
            async for record in self._client.tail(self._run.id, job, attempt=number):
                self._view.record(job, record)
                if isinstance(record, LogBytes):
                    self._show(job, lines.add(record.data, ours=record.ours))
                elif isinstance(record, LogGap):
                    self._show(job, [*lines.end(), f"[{record.length} bytes are missing here]"])
            self._show(job, lines.end())
        except HeadraceError as error:
            self._view.note(f"the log of {job} cannot be shown: {error}")

    def _show(self, job: str, lines: list[str]) -> None:
        self.board.log(job, lines)
        self._view.lines(job, lines)

    async def _tails_end(self) -> None:
        if not self._tails:
            return
        _, late = await asyncio.wait(self._tails, timeout=TAILS_END_WITHIN)
        if late:
            self._view.note("not every log is complete yet: `headrace logs` shows what comes later")


async def follow_interruptibly(follower: Follower, interrupts: Interrupts, processes: Processes | None) -> Run | None:
    """Follows until the run has ended; None when it was killed and did not end in time.

    Raises:
        ServerFailed: a daemon of ours has died meanwhile.

    """
    following = asyncio.create_task(follower.follow(), name="follow")
    killed = asyncio.create_task(interrupts.killed.wait(), name="killed")
    dead = asyncio.create_task(_death(processes), name="death of a daemon")
    others = {killed, dead}
    try:
        await asyncio.wait({following, *others}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            return following.result()
        if dead.done():
            raise ServerFailed(dead.result())
        return None
    finally:
        for task in (following, *others):
            task.cancel()
        with suppress(asyncio.CancelledError, HeadraceError):
            await asyncio.gather(following, *others, return_exceptions=True)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _death(processes: Processes | None) -> str:
    """Returns a sentence when a daemon of ours dies; the kernel says when, nobody polls."""
    loop = asyncio.get_running_loop()
    gone: asyncio.Future[None] = loop.create_future()
    descriptors = [os.pidfd_open(pid) for pid in (processes.pids() if processes else [])]
    try:
        for descriptor in descriptors:
            loop.add_reader(descriptor, _settle, gone)
        await gone
    finally:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    assert processes is not None
    return f"the {processes.dead() or 'daemon'} has died: see {processes.logs}"
