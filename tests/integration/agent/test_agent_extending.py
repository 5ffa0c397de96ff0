"""What a step writes to `$HEADRACE_PIPELINE`, and what becomes of the step: a real agent, supervisor and bubblewrap."""

from __future__ import annotations

import grpc
import pytest

from headrace.v1 import agent_pb2
from headrace.v1 import common_pb2 as pb
from tests.integration.agent.conftest import Agent, job
from tests.integration.agent.other_side import OtherSide
from tests.integration.agent.test_agent_steps import ended, step

WRITE = 'echo "stages: []" > "$HEADRACE_PIPELINE"'


async def test_what_a_step_wrote_is_handed_in_when_the_step_has_passed(agent: Agent, side: OtherSide) -> None:
    """Byte for byte, under the number of the step; a step that wrote nothing asks for nothing."""
    await agent.start()
    side.extension = agent_pb2.ExtendResponse(added=2)
    attempt = side.give(job(None, steps=[step(0, "true"), step(1, WRITE), step(2, ': > "$HEADRACE_PIPELINE"')]))
    told = await ended(side, attempt)
    assert told.state == pb.ATTEMPT_STATE_PASSED, told
    (asked,) = side.extends
    assert (asked.attempt_id, asked.token) == (attempt, side.tokens[attempt])
    assert (asked.step, asked.text) == (1, b"stages: []\n")
    assert "headrace: 2 jobs were added to the run\n" in side.logs[attempt].ours
    assert ("step", "Extend the run") in side.logs[attempt].sections


async def test_a_mistake_in_it_fails_the_step_with_the_first_and_the_log_has_them_all(
    agent: Agent, side: OtherSide
) -> None:
    """The position is what the person needs, beside the script that wrote the file."""
    await agent.start()
    problems = ["$HEADRACE_PIPELINE:1:9: `stages` is empty", "$HEADRACE_PIPELINE:2:1: and more"]
    side.extension = agent_pb2.ExtendResponse(problems=problems)
    attempt = side.give(job(None, steps=[step(0, WRITE), step(1, "echo never")]))
    told = await ended(side, attempt)
    assert (told.state, told.cause) == (pb.ATTEMPT_STATE_FAILED, pb.CAUSE_STEP_FAILED)
    assert (told.steps[0].sentence, told.steps[1].skipped) == (problems[0], True)
    assert "".join(f"headrace: {each}\n" for each in problems) in side.logs[attempt].ours


@pytest.mark.parametrize(
    "script",
    [f"{WRITE}; exit 1", 'head -c 1048577 /dev/zero > "$HEADRACE_PIPELINE"', 'ln -s /etc/passwd "$HEADRACE_PIPELINE"'],
    ids=["of a step that failed", "too large", "a link"],
)
async def test_nothing_is_handed_in(agent: Agent, side: OtherSide, script: str) -> None:
    """Half of what a failed step meant to add is worse than nothing, and a job names no file of its agent."""
    await agent.start()
    attempt = side.give(job(None, steps=[step(0, script)]))
    told = await ended(side, attempt)
    assert (told.cause, told.steps[0].cause) == (pb.CAUSE_STEP_FAILED, pb.CAUSE_STEP_FAILED)
    assert side.extends == []


async def test_an_agent_that_was_killed_while_it_asked_asks_again(agent: Agent, side: OtherSide) -> None:
    """The step is not run again: what it wrote is still there, and the coordinator knows the bytes."""
    await agent.start()
    side.extension = grpc.StatusCode.UNAVAILABLE
    attempt = side.give(job(None, steps=[step(0, f"echo once; {WRITE}"), step(1, "echo after")]))
    await side.until(lambda: side.extends)
    agent.kill()
    await agent.ended()
    side.extends.clear()
    side.extension = agent_pb2.ExtendResponse(added=1, existed=True)
    await agent.start()
    told = await ended(side, attempt)
    assert told.state == pb.ATTEMPT_STATE_PASSED, told
    assert [(each.step, each.text) for each in side.extends] == [(0, b"stages: []\n")]
    log = side.logs[attempt].text
    assert log.count("once\n") == 1
    assert "headrace: 1 job was added to the run before, by the same text\n" in log


async def test_a_cancel_ends_the_wait_for_a_coordinator_that_is_away(agent: Agent, side: OtherSide) -> None:
    """However patient the agent is, a person is not."""
    await agent.start()
    side.extension = grpc.StatusCode.UNAVAILABLE
    attempt = side.give(job(None, steps=[step(0, WRITE), step(1, "echo cleaned", "always()")]))
    await side.until(lambda: side.extends)
    side.cancel(attempt)
    told = await ended(side, attempt)
    assert told.state == pb.ATTEMPT_STATE_CANCELED, told
    assert "cleaned\n" in side.logs[attempt].text
