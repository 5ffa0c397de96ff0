"""Runs a coroutine under a virtual clock: waiting costs nothing, and a day runs in milliseconds.

All chance comes from the generator that is passed to the coroutine, so the seed is the whole bug report. No
real sockets may be used inside: the loop would jump past them.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Every task waits and no timer is set: nothing can ever happen again."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Moves its clock to the next timer instead of sleeping, and never looks at a socket.

    `freezes`, where it is set, is asked for the queue of the frozen process that a context belongs to: what a task of
    it has to do waits there. What is handed to a thread is done at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.freezes: Callable[[Context], list[asyncio.Handle] | None] | None = None
        self._todo: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0

    def time(self) -> float:
        """Virtual seconds since the simulation began."""
        return self.now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:
        """In this moment, after what was asked for before. Tasks name their context; nobody else is ever frozen."""
        handle = asyncio.Handle(callback, args, self, context)
        queue = self.freezes(context) if context is not None and self.freezes is not None else None
        (self._todo if queue is None else queue).append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """After `delay` seconds."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """At a moment; timers of the same one in the order in which they were set."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    async def sleep(self, seconds: float) -> None:
        """As `asyncio.sleep`, at half the price."""
        future: asyncio.Future[None] = self.create_future()
        timer = self.call_at(self.now + seconds, _wake, future)
        try:
            await future
        except asyncio.CancelledError:
            timer.cancel()
            raise

    def go_on(self, handles: Iterable[asyncio.Handle]) -> None:
        """What a process that was frozen had to do."""
        self._todo.extend(handles)

    def run_in_executor(self, executor: object, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]  # a future at once
        """Done before it returns: threads have no virtual time."""
        del executor
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def _run_once(self) -> None:
        todo, timers = self._todo, self._timers
        if not todo:
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not timers:
                raise Deadlock(f"every task waits and no timer is set at t={self.now:.3f} s")
            self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            todo.append(heapq.heappop(timers)[2])
        for _ in range(len(todo)):
            handle = todo.popleft()
            if not handle._cancelled:
                handle._run()  # type: ignore[attr-defined]  # as the loop that it stands for does


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class VirtualClock:
    """The agent's clocks, read off the running loop. `wall_ms` begins at an arbitrary epoch."""

    def __init__(self, epoch_ms: int = 1_700_000_000_000) -> None:
        self._epoch_ms = epoch_ms

    def wall_ms(self) -> int:
        """Virtual milliseconds since the Unix epoch."""
        return self._epoch_ms + self.monotonic_ms()

    def boot_ms(self) -> int:
        """Virtual milliseconds since boot."""
        return self.monotonic_ms()

    def monotonic_ms(self) -> int:
        """Virtual milliseconds since the simulation began."""
        return round(asyncio.get_running_loop().time() * 1000)


def simulate(main: Callable[[random.Random], Awaitable[T]], seed: int) -> T:
    """Runs `main(random.Random(seed))` to its end under a virtual clock that begins at 0."""

    async def body() -> T:
        return await main(random.Random(seed))

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        result: Any = runner.run(body())
    return result  # type: ignore[no-any-return]  # what main returned
