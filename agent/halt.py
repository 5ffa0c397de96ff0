"""How an attempt is told to stop: a cancel, the end of its time, a kill. First come, first told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from agent.outcome import Outcome

Result = TypeVar("Result")


class Halted(Exception):
    """The attempt is to stop: canceled, out of time, or no longer wanted."""


class Halt:
    """What has been decided about an attempt from outside. `outcome` None: nothing."""

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.halted = asyncio.Event()
        self.killed = asyncio.Event()
        self.passed_on = asyncio.Event()
        """The supervisor knows of it: what begins from now on is not taken for what was to be ended."""

    def stop(self, outcome: Outcome) -> None:
        """With grace; the first reason stays."""
        if self.outcome is None:
            self.outcome = outcome
        self.halted.set()

    def kill(self, outcome: Outcome) -> None:
        """Without."""
        self.stop(outcome)
        self.killed.set()

    async def unless_halted(self, work: Awaitable[Result]) -> Result:
        """The work's result, or `Halted` when somebody stops the attempt first; the work is cancelled then."""
        return await _unless(self.halted, work)

    async def unless_killed(self, work: Awaitable[Result]) -> Result:
        """The same for work that a cancel with grace still allows."""
        return await _unless(self.killed, work)

    async def unless_late(self, work: Awaitable[Result], *, whole_s: float, after_halt_s: float) -> Result:
        """The same, held to `whole_s`, and to `after_halt_s` from a halt on, whenever it comes. Raises TimeoutError."""
        async with asyncio.timeout(whole_s) as bound:
            shortening = asyncio.create_task(self._shorten(bound, after_halt_s))
            try:
                return await self.unless_killed(work)
            finally:
                shortening.cancel()

    async def _shorten(self, bound: asyncio.Timeout, seconds: float) -> None:
        await self.halted.wait()
        end = asyncio.get_running_loop().time() + seconds
        bound.reschedule(min(bound.when() or end, end))


async def _unless(event: asyncio.Event, work: Awaitable[Result]) -> Result:
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Halted
        return task.result()
    finally:
        for each in (task, waiting):
            each.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
