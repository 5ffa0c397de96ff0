"""Agents that the machinery fails on, in both stores."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.core.states import AttemptState
from coordinator.dispatch.port import Wake
from tests.integration.store.world import J, World


async def tried(world: World, session: str, outcome: AttemptState) -> None:
    """One more attempt of a job of its own."""
    made = await world.run(J("a", environment="prod" if outcome is AttemptState.ERRORED else ""))
    (job,) = [each for each in await world.claim(session, 1, number=next(world.numbers)) if each.run_id == made[""]]
    await world.start(job)
    await world.end(job, outcome)


async def test_an_agent_that_errs_three_times_in_a_row_gets_nothing_until_a_person_says_so(world: World) -> None:
    """It would be free again at once, and burn job after job."""
    opened = await world.open()
    for _ in range(2):
        await tried(world, opened.session_id, AttemptState.ERRORED)
    assert await world.at.drained([opened.agent_id]) == frozenset()
    world.bells.wakes.clear()
    await tried(world, opened.session_id, AttemptState.ERRORED)
    assert await world.at.drained([opened.agent_id]) == {opened.agent_id}
    assert any(wake.agents for wake in world.bells.wakes), "the session hears of it at once"
    assert (await world.open()).drained, "also over a restart of the agent"
    await world.drain("a", drained=False)
    assert await world.at.drained([opened.agent_id]) == frozenset()
    again = await world.open()
    assert not again.drained
    await tried(world, again.session_id, AttemptState.ERRORED)
    assert await world.at.drained([opened.agent_id]) == frozenset(), "the count begins anew"


async def test_an_attempt_that_did_not_err_begins_the_count_anew(world: World) -> None:
    """What happens now and then is no reason."""
    opened = await world.open()
    for outcome in [AttemptState.ERRORED, AttemptState.ERRORED, AttemptState.FAILED] * 3:
        await tried(world, opened.session_id, outcome)
    assert await world.at.drained([opened.agent_id]) == frozenset()


async def test_the_same_report_again_counts_once(world: World) -> None:
    """An agent hands a report in until it is answered."""
    opened = await world.open()
    made = await world.run(J("a", environment="prod"))
    (job,) = await world.claim(opened.session_id)
    assert job.run_id == made[""]
    await world.start(job)
    for _ in range(5):
        await world.end(job, AttemptState.ERRORED, "the same")
    assert await world.at.drained([opened.agent_id]) == frozenset()


async def test_a_job_whose_agents_are_quarantined_says_so(world: World) -> None:
    """Agents that are there and free, and a job that waits without a word, are a riddle."""
    opened = await world.open("one")
    for _ in range(3):
        await tried(world, opened.session_id, AttemptState.ERRORED)
    two = await world.open("two")
    await world.at.leaving(two.agent_id, "its disk has failed")
    made = await world.run(J("a"))
    await world.at.judge_schedulable(fail=False)
    sentence = "the agents that fit are quarantined: `one`, `two`; `headrace agents` says why, and what to do"
    assert (await world.jobs(made[""]))["a"] == ("queued", sentence)
    await world.open("two")
    await world.at.judge_schedulable(fail=False)
    assert (await world.jobs(made[""]))["a"] == ("queued", "")


async def test_agents_that_say_hello_while_their_attempts_err_lock_nobody_out(world: World) -> None:
    """A Hello locks the agent and then its session, a report the session and then, were it so, the agent."""
    for round_ in range(10):
        opened = await world.open()
        made = await world.run(J("a", environment="prod"))
        (job,) = [each for each in await world.claim(opened.session_id) if each.run_id == made[""]]
        await world.start(job)
        async with asyncio.timeout(20):
            await asyncio.gather(world.end(job, AttemptState.ERRORED, f"r{round_}"), world.open(held=[job]))
        await world.drain("a", drained=False)


@pytest.mark.parametrize("refusal", ["its disk has failed", ""])
async def test_what_an_agent_says_of_itself_ends_with_its_next_hello(world: World, refusal: str) -> None:
    """It is not ours to lift: a person started it again."""
    await world.open(leaving=True, refusal=refusal)
    made = await world.run(J("a"))
    await world.at.judge_schedulable(fail=False)
    assert ("quarantined" in (await world.jobs(made[""]))["a"][1]) is bool(refusal)
    await world.open()
    await world.at.judge_schedulable(fail=False)
    assert (await world.jobs(made[""]))["a"][1] == ""
    assert Wake(agents=True) in world.bells.wakes
