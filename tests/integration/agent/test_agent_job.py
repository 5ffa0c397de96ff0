"""Jobs from the assignment to the outcome: a real agent process, supervisor and bubblewrap."""

from __future__ import annotations

from pathlib import Path

from headrace.v1 import common_pb2 as pb
from tests.integration.agent.conftest import Agent, job
from tests.integration.agent.other_side import OtherSide


async def test_a_job_runs_end_to_end(agent: Agent, side: OtherSide, repository: tuple[Path, str]) -> None:
    """The whole way: assignment, checkout, steps, log, outcome, and nothing left of it."""
    await agent.start()
    attempt = side.give(job(repository, "cat hello.txt; echo $HEADRACE_JOB", "exit 3", "echo never"))
    await side.until(lambda: attempt in side.ended)
    ended = side.ended[attempt]
    assert (ended.state, ended.cause) == (pb.ATTEMPT_STATE_FAILED, pb.CAUSE_STEP_FAILED), agent.log
    assert [(s.exit_code, s.skipped) for s in ended.steps] == [(0, False), (3, False), (0, True)]
    await side.until(lambda: len(side.logs[attempt].records) == ended.log_records["main"])
    assert "hello from the repository\nunit\n" in side.logs[attempt].text
    assert "never" not in side.logs[attempt].text
