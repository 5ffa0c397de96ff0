"""Bells wake, and forget no ring."""

from __future__ import annotations

import asyncio

from coordinator.logs.bells import LogBells


async def test_a_ring_between_two_waits_is_not_forgotten() -> None:
    """A reader looks, then waits: what happens in between must wake it."""
    bells = LogBells()
    with bells.hung(run=1, attempt=2) as bell:
        bells.ring(attempts=[2])
        async with asyncio.timeout(5):
            await bell.wait(3_600)
            bells.ring(runs=[1])
            await bell.wait(3_600)
            bells.grew([2])
            await bell.wait(3_600)


async def test_others_do_not_ring_here_and_the_slow_poll_comes_all_the_same() -> None:
    """A bell that is lost on its way costs time, never bytes."""
    bells = LogBells()
    with bells.hung(run=1, attempt=2) as bell:
        bells.ring(attempts=[1], runs=[2])
        begun = asyncio.get_running_loop().time()
        await bell.wait(0.05)
        assert asyncio.get_running_loop().time() - begun >= 0.04


async def test_growth_is_told_to_other_replicas_and_what_they_tell_is_not_told_back() -> None:
    """Otherwise two replicas would ring each other for ever."""
    told: list[frozenset[int]] = []
    bells = LogBells(told.append)
    bells.grew([1, 2])
    bells.ring(attempts=[3])
    bells.grew([])
    assert told == [frozenset({1, 2})]
