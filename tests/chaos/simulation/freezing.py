"""Processes that can be frozen: while one is, none of its tasks takes a step, and its timers pile up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar
from typing import Any


class Process:
    """A process of the simulation. Tasks that are made within it belong to it."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._runs = asyncio.Event()
        self._runs.set()

    @property
    def frozen(self) -> bool:
        return not self._runs.is_set()

    def freeze(self) -> None:
        self._runs.clear()

    def thaw(self) -> None:
        self._runs.set()
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each()

    def when_thawed(self, call: Callable[[], None]) -> None:
        """Calls it once when the process goes on."""
        self._waiting.append(call)

    async def thawed(self) -> None:
        await self._runs.wait()


_process: ContextVar[Process | None] = ContextVar("process", default=None)


def within(process: Process | None) -> Context:
    """The context in which tasks of a process are made."""
    context = Context()
    context.run(_process.set, process)
    return context


class _Steps:
    """A coroutine that takes its steps only while its process runs; what interrupts it waits too."""

    def __init__(self, process: Process, inner: Coroutine[Any, Any, Any]) -> None:
        self._process = process
        self._inner = inner

    def __await__(self) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        while True:
            while self._process.frozen:
                try:
                    yield from self._process.thawed().__await__()
                except BaseException as interrupt:
                    error = interrupt
            try:
                waits = self._inner.throw(error) if error is not None else self._inner.send(None)
            except StopIteration as stop:
                return stop.value
            error = None
            try:
                yield waits
            except BaseException as interrupt:
                error = interrupt


async def _stepped(process: Process, inner: Coroutine[Any, Any, Any]) -> Any:
    return await _Steps(process, inner)


def freezable_tasks(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """A task factory: a task belongs to the process of the context it is made in."""
    context: Context | None = options.get("context")
    process = context.get(_process) if context is not None else _process.get()
    if process is None:
        return asyncio.Task(coroutine, loop=loop, **options)
    task = asyncio.Task(_stepped(process, coroutine), loop=loop, **options)
    task.add_done_callback(lambda _: coroutine.close())  # one that was cancelled before its first step
    return task
