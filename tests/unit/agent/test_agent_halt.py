"""How an attempt is stopped."""

from __future__ import annotations

import asyncio

import pytest

from agent.halt import Halt
from agent.outcome import Outcome
from agent.problems import Cause


async def test_a_cancel_that_comes_late_bounds_what_is_under_way() -> None:
    """Artifacts of a canceled job must not hold its slot as long as an upload likes to take."""
    halt = Halt()
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    late = asyncio.create_task(halt.unless_late(work(), whole_s=60, after_halt_s=0.01))
    await begun.wait()
    halt.stop(Outcome(Cause.CANCELED, "canceled"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(late), 5)
    assert late.done()


async def test_work_that_nobody_stops_has_a_bound_too() -> None:
    """And what ends within it gives its result."""
    with pytest.raises(TimeoutError):
        await Halt().unless_late(asyncio.Event().wait(), whole_s=0.01, after_halt_s=60)
    assert await Halt().unless_late(asyncio.sleep(0, 7), whole_s=60, after_halt_s=60) == 7
