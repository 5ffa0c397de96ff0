"""Jobs from the assignment to the outcome: a real agent process, supervisor and bubblewrap."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from headrace.v1 import common_pb2 as pb
from tests.integration.agent.conftest import Agent, job
from tests.integration.agent.other_side import OtherSide


async def test_a_job_runs_end_to_end(agent: Agent, side: OtherSide, repository: tuple[Path, str]) -> None:
    """The whole way: assignment, checkout, steps, log, outcome, and nothing left of it."""
    await agent.start()
    attempt = side.give(job(repository, "cat hello.txt; echo $HEADRACE_JOB", "exit 3", "echo never"))
    await side.until(lambda: attempt in side.ended)
    ended = side.ended[attempt]
    assert (ended.state, ended.cause) == (pb.ATTEMPT_STATE_FAILED, pb.CAUSE_STEP_FAILED), ended
    assert [(s.exit_code, s.skipped) for s in ended.steps] == [(0, False), (3, False), (0, True)]
    await side.until(lambda: len(side.logs[attempt].records) == ended.log_records["main"])
    assert "hello from the repository\nunit\n" in side.logs[attempt].text
    assert "never" not in side.logs[attempt].text


async def test_what_headrace_says_in_a_log_is_marked_as_its_own(agent: Agent, side: OtherSide) -> None:
    """A job that prints `headrace: deployed` must not be believed."""
    await agent.start()
    slow = pb.Step(number=0, name="slow", run=pb.RunStep(script="echo headrace: a lie; sleep 60"), timeout_ms=300)
    attempt = side.give(job(None, steps=[slow], grace_ms=0))
    await side.until(lambda: attempt in side.ended)
    await side.until(lambda: len(side.logs[attempt].records) == side.ended[attempt].log_records["main"])
    assert "headrace: a lie\n" in side.logs[attempt].text
    assert "headrace: the step took longer than its timeout of 0.3 s\n" in side.logs[attempt].ours
    assert "sandbox bubblewrap" in side.logs[attempt].ours
    assert "a lie" not in side.logs[attempt].ours


async def test_what_steps_write_to_headrace_env_reaches_later_steps(agent: Agent, side: OtherSide) -> None:
    """Precedence: the step's own, then what steps exported, then the job's."""
    await agent.start()
    spec = job(
        None,
        'echo "A=exported" >> "$HEADRACE_ENV"; printf "B<<END\\ntwo\\nlines\\nEND\\n" >> "$HEADRACE_ENV"; echo $A',
        'echo "$A|$B|$C|$HEADRACE_ATTEMPT|$CI"',
        "echo HEADRACE_JOB=x >> $HEADRACE_ENV",
        env={"A": "of the job", "C": "c"},
    )
    attempt = side.give(spec)
    await side.until(lambda: attempt in side.ended)
    ended = side.ended[attempt]
    await side.until(lambda: len(side.logs[attempt].records) == ended.log_records["main"])
    assert "of the job\n" in side.logs[attempt].text
    assert "exported|two\nlines|c|1|true\n" in side.logs[attempt].text
    assert "may not set HEADRACE_JOB" in ended.steps[2].sentence
    assert ended.cause == pb.CAUSE_STEP_FAILED


async def test_artifacts_go_from_one_job_to_another(agent: Agent, side: OtherSide) -> None:
    """Kept by signed URL after the sandbox is gone, brought into another workspace as they were."""
    await agent.start()
    artifact = pb.ArtifactSpec(name="dist", paths=["out/*.txt"], when="passed", if_empty="fail")
    first = side.give(job(None, "mkdir out; echo one > out/1.txt; chmod +x out/1.txt", artifacts=[artifact]))
    await side.until(lambda: first in side.ended)
    assert side.ended[first].state == pb.ATTEMPT_STATE_PASSED, side.ended[first]
    assert [(f.path, f.size, f.executable) for f in side.artifacts["dist"]] == [("out/1.txt", 4, True)]
    use = pb.Step(number=0, name="use", use_artifact=pb.UseArtifactStep(artifact="dist", path="in"))
    run = pb.Step(number=1, name="run", run=pb.RunStep(script="cat in/out/1.txt && rm in/out/1.txt", shell="sh"))
    second = side.give(job(None, steps=[use, run]))
    await side.until(lambda: second in side.ended)
    assert side.ended[second].state == pb.ATTEMPT_STATE_PASSED, side.ended[second]
    missing = pb.Step(number=0, name="use", use_artifact=pb.UseArtifactStep(artifact="nope"))
    third = side.give(job(None, steps=[missing]))
    await side.until(lambda: third in side.ended)
    assert "there is no artifact nope" in side.ended[third].sentence
    empty = pb.ArtifactSpec(name="none", paths=["*.zip"], when="passed", if_empty="fail")
    fourth = side.give(job(None, "true", artifacts=[empty]))
    await side.until(lambda: fourth in side.ended)
    assert side.ended[fourth].cause == pb.CAUSE_ARTIFACT_EMPTY


async def test_a_cancel_gives_the_step_its_grace(agent: Agent, side: OtherSide) -> None:
    """TERM first: a deployment script may want to roll back."""
    await agent.start()
    slow = "trap 'echo rolled back; exit 9' TERM; echo begun; while :; do sleep 0.1 || true; done"
    spec = job(None, slow, "echo never")
    attempt = side.give(spec)
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    side.cancel(attempt)
    await side.until(lambda: attempt in side.ended)
    ended = side.ended[attempt]
    assert (ended.state, ended.sentence) == (pb.ATTEMPT_STATE_CANCELED, "canceled by ana")
    await side.until(lambda: len(side.logs[attempt].records) == ended.log_records["main"])
    assert "rolled back" in side.logs[attempt].text


async def test_a_job_out_of_time_is_told_apart_from_a_failed_one(agent: Agent, side: OtherSide) -> None:
    """The summary says which clock ran out."""
    await agent.start()
    job_time = side.give(job(None, "sleep 60", timeout_ms=700))
    slow = pb.Step(number=0, name="slow", run=pb.RunStep(script="sleep 60", shell="sh"), timeout_ms=300)
    step_time = side.give(job(None, steps=[slow]))
    await side.until(lambda: {job_time, step_time} <= set(side.ended))
    assert side.ended[job_time].cause == pb.CAUSE_JOB_TIMED_OUT
    assert side.ended[step_time].cause == pb.CAUSE_STEP_TIMED_OUT
    assert {side.ended[n].state for n in (job_time, step_time)} == {pb.ATTEMPT_STATE_TIMED_OUT}


async def test_a_deployment_starts_only_with_a_permit(agent: Agent, side: OtherSide) -> None:
    """The permit is what makes at-most-once true: without it not one command runs."""
    await agent.start()
    first = side.give(job(None, "echo fence=$HEADRACE_FENCING_TOKEN", environment="production"))
    await side.until(lambda: first in side.ended)
    await side.until(lambda: len(side.logs[first].records) == side.ended[first].log_records["main"])
    assert "fence=7\n" in side.logs[first].text
    side.grant_permits = False
    second = side.give(job(None, "echo ran", environment="production"))
    await side.until(lambda: second in side.ended)
    assert not side.ended[second].steps
    assert "somebody else has it" in side.ended[second].sentence


async def test_the_agent_tells_its_health_and_its_figures(agent: Agent, side: OtherSide) -> None:
    """What an operator's Prometheus and load balancer look at."""
    ready = await agent.start()
    attempt = side.give(job(None, "true"))
    await side.until(lambda: attempt in side.ended)
    async with httpx.AsyncClient(base_url=f"http://{ready['http']}") as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        figures = (await client.get("/metrics")).text
    assert 'headrace_agent_outcomes_total{cause="none",outcome="passed"} 1.0' in figures
    assert 'headrace_agent_sandbox_start_seconds_count{sandbox="bubblewrap"} 1.0' in figures
    assert "headrace_agent_machinery_failures_total 0.0" in figures


@pytest.mark.parametrize("local", [{}, {"local": True}])
async def test_the_host_is_offered_only_where_the_agents_settings_allow_it(
    agent: Agent, side: OtherSide, local: dict[str, object]
) -> None:
    """An agent of a local run has it for the user's own code, but no job may name it: it was listed as if one could."""
    agent.flags |= local
    await agent.start()
    (host,) = [each for each in side.hellos[-1].sandboxes if each.kind == "host"]
    assert list(host.networks) == []
    assert host.why_not == "its settings do not let jobs run on the host: HEADRACE_ALLOW_HOST=true lets them"


async def test_an_agent_whose_settings_allow_the_host_offers_it(agent: Agent, side: OtherSide) -> None:
    """The other side of the same setting."""
    agent.flags |= {"allow_host": True}
    await agent.start()
    (host,) = [each for each in side.hellos[-1].sandboxes if each.kind == "host"]
    assert (list(host.networks), host.why_not) == (["full"], "")


async def test_a_number_that_is_given_out_again_ends_the_attempt_that_had_it(agent: Agent, side: OtherSide) -> None:
    """A failover has lost the commit that gave it to us: nobody waits for it any more, and the next one is another."""
    await agent.start()
    attempt = side.give(job(None, "sleep 600"))
    await side.until(lambda: attempt in side.started and attempt in side.heartbeats[-1].attempt_ids)
    side.give(job(None, "true"), attempt)
    await side.until(lambda: side.accepted[attempt] is False)
    assert side.refusals[attempt] == "this agent still has an attempt of that number"
    await side.until(lambda: not side.heartbeats[-1].attempt_ids)
    assert attempt not in side.ended, "what is aborted reports nothing"


async def test_the_log_of_an_attempt_that_nobody_wants_is_handed_in_to_its_last_word(
    agent: Agent, side: OtherSide
) -> None:
    """Its outcome is told to nobody: else who follows the log of a lost attempt would wait for an hour."""
    await agent.start()
    attempt = side.give(job(None, "echo one; sleep 600"))
    await side.until(lambda: "one" in side.logs[attempt].text)
    side.take_logs = False
    side.cancel(attempt, abort=True)
    await side.until(lambda: not side.heartbeats[-1].attempt_ids)
    side.take_logs = True
    await side.until(lambda: side.logs[attempt].final == len(side.logs[attempt].records))
    assert attempt not in side.ended
    await side.until(lambda: not list((agent.data / "logs").glob("*")))
