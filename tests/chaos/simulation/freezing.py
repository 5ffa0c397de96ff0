"""Processes that can be frozen: while one is, none of its tasks takes a step, and its timers pile up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar

from tests.harness.virtual_time import VirtualLoop


class Process:
    """A process of the simulation. Tasks that are made within it belong to it."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._steps: list[asyncio.Handle] = []
        self.frozen = False

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        """What waited is done, in order; what interrupted it as well."""
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        steps, self._steps = self._steps, []
        if steps:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            loop.go_on(steps)
        for each in waiting:
            each()

    def when_thawed(self, call: Callable[[], None]) -> None:
        """Calls it once when the process goes on."""
        self._waiting.append(call)

    def queue(self) -> list[asyncio.Handle] | None:
        """Where steps wait while it is frozen."""
        return self._steps if self.frozen else None


_process: ContextVar[Process | None] = ContextVar("process", default=None)


def within(process: Process | None) -> Context:
    """The context in which tasks of a process are made."""
    context = Context()
    context.run(_process.set, process)
    return context


def queue_of(context: Context) -> list[asyncio.Handle] | None:
    """Where the steps of a context's process wait; None: it runs."""
    process = context.get(_process)
    return process.queue() if process is not None else None
