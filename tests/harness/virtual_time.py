"""Runs a coroutine under a virtual clock: waiting costs nothing, and a day runs in milliseconds.

All chance comes from the generator that is passed to the coroutine, so the seed is the whole bug report. No
threads and no real sockets may be used inside: the loop would jump past them.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Every task waits and no timer is set: nothing can ever happen again."""


class JumpingSelector(selectors.DefaultSelector):
    """Moves the clock instead of sleeping."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Nothing: the clock jumps to the next timer. The one socket of such a loop is its own, for threads."""
        if timeout is None:
            raise Deadlock(f"every task waits and no timer is set at t={self.now:.3f} s")
        self.now += max(0.0, timeout)
        return []


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
    selector = JumpingSelector()

    def loop_factory() -> asyncio.AbstractEventLoop:
        loop = asyncio.SelectorEventLoop(selector)
        loop.time = lambda: selector.now  # type: ignore[method-assign]  # the clock is ours: that is the point
        return loop

    async def body() -> T:
        return await main(random.Random(seed))

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        result: Any = runner.run(body())
    return result  # type: ignore[no-any-return]  # what main returned
