"""The end of a log, of which the coordinator's answers were lost, or which was handed in before the agent died."""

from __future__ import annotations

import asyncio

from tests.harness.agent_records import until_kept
from tests.integration.agent.conftest import Agent, job
from tests.integration.agent.other_side import OtherSide


async def test_a_log_of_which_all_was_sent_and_nothing_answered_is_sent_again(agent: Agent, side: OtherSide) -> None:
    """The replica died before it answered: that there is nothing new to send is no reason to stay away."""
    side.logs_end = asyncio.Event()
    await agent.start()
    attempt = side.give(job(None, "echo done"))
    await side.until(lambda: attempt in side.ended)
    await asyncio.sleep(0.5)  # nobody tells that the last records have left
    side.logs_end.set()
    await side.until(lambda: len(side.logs[attempt].records) == side.ended[attempt].log_records["main"], 10)


async def test_an_agent_that_died_between_the_log_and_the_answer_to_its_outcome_can_leave(
    agent: Agent, side: OtherSide
) -> None:
    """The log was handed in, so that nobody takes it again: what waits for that would keep the agent for ever."""
    side.answer_reports = False
    await agent.start()
    attempt = side.give(job(None, "echo done"))
    await until_kept(agent.data / "attempts", attempt, lambda record: record["log_done"])
    assert attempt in side.ended
    agent.kill()
    await agent.ended()
    side.answer_reports, side.take_logs = True, False
    await agent.start()
    await side.until(lambda: len(side.hellos) == 2)
    agent.terminate()
    assert await agent.ended() == 0
    assert not list((agent.data / "attempts").iterdir())
