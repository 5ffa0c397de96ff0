"""What an agent's own end may and may not do to its jobs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from agent.keeping import Records
from agent.record import Phase, Record
from agent.supervisor.process import parent_of
from headrace.v1 import common_pb2 as pb
from tests.chaos.proxy import Proxy
from tests.harness import images
from tests.harness.agent_records import kept, rewrite, until_kept
from tests.integration.agent.conftest import Agent, job, supervisors
from tests.integration.agent.other_side import OtherSide, other_side

COUNT = "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.05; done"


def lines(side: OtherSide, attempt: int) -> list[str]:
    return [line for line in side.logs[attempt].text.splitlines() if line.startswith("line ")]


async def test_a_killed_agent_goes_on_with_its_job_when_it_is_started_again(
    agent: Agent, side: OtherSide, repository: tuple[Path, str]
) -> None:
    """kill -9 in mid-job: one attempt, the whole log, and the same outcome as if nothing had happened."""
    await agent.start()
    attempt = side.give(job(repository, COUNT, "echo after; exit 4"))
    await side.until(lambda: attempt in side.logs and "line 5\n" in side.logs[attempt].text)
    agent.kill()
    await agent.ended()
    await agent.start()
    await side.until(lambda: attempt in side.ended)
    ended = side.ended[attempt]
    assert [step.exit_code for step in ended.steps] == [0, 4]
    await side.until(lambda: len(side.logs[attempt].records) == ended.log_records["main"])
    assert lines(side, attempt) == [f"line {i}" for i in range(60)]
    assert len(side.started) == 1
    assert [each.attempt_id for each in side.hellos[1].held] == [attempt]
    assert side.hellos[1].credit == 1


async def test_a_job_that_was_canceled_stays_so_when_the_agent_dies_while_it_keeps_artifacts(
    agent: Agent, side: OtherSide
) -> None:
    """Its step ended well when it was told to stop: read anew from the steps alone, the job would have passed."""
    side.hold_uploads = True
    await agent.start()
    artifact = pb.ArtifactSpec(name="dist", paths=["*.txt"], when="always", if_empty="fail")
    script = "trap 'exit 0' TERM; echo one > 1.txt; echo begun; while :; do sleep 0.1; done"
    attempt = side.give(job(None, script, artifacts=[artifact]))
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    side.cancel(attempt)
    await side.until(lambda: side.uploads)
    agent.kill()
    await agent.ended()
    side.hold_uploads = False
    await side.tell()
    await agent.start()
    await side.until(lambda: attempt in side.ended)
    assert (side.ended[attempt].state, side.ended[attempt].sentence) == (pb.ATTEMPT_STATE_CANCELED, "canceled by ana")
    assert "dist" in side.artifacts


async def test_a_supervisor_that_started_as_the_agent_died_is_reported_by_the_next_process(
    agent: Agent, side: OtherSide
) -> None:
    """Else the coordinator would show the job as waiting for as long as it runs."""
    await agent.start()
    attempt = side.give(job(None, "echo begun; sleep 3"))
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    agent.kill()
    await agent.ended()
    side.started.clear()
    unsupervised = {"facts": {}}
    rewrite(agent.data / "attempts", attempt, lambda written: written | unsupervised)
    await agent.start()
    await side.until(lambda: attempt in side.started, 2)
    await side.until(lambda: attempt in side.ended)


async def test_an_outcome_that_was_not_answered_is_handed_in_by_the_next_process(
    agent: Agent, short_path: Path
) -> None:
    """The coordinator was away when the job ended, and then the agent was killed too."""
    async with other_side() as first:
        agent.side = first
        await agent.start()
        attempt = first.give(job(None, "sleep 1; echo done"))
        await first.until(lambda: attempt in first.started)
        address, tokens = first.address, first.tokens
    await until_kept(short_path / "data" / "attempts", attempt, lambda record: record["phase"] == "settled")
    agent.kill()
    await agent.ended()
    async with other_side(address) as second:
        second.tokens = tokens
        agent.side = second
        await agent.start()
        await second.until(lambda: attempt in second.ended)
        assert second.ended[attempt].state == pb.ATTEMPT_STATE_PASSED
        await second.until(lambda: len(second.logs[attempt].records) == second.ended[attempt].log_records["main"])
        agent.terminate()
        assert await agent.ended() == 0
    assert not list((short_path / "data" / "attempts").iterdir())
    assert not list((short_path / "data" / "logs").iterdir())


async def test_an_agent_that_dies_between_the_end_of_the_log_and_its_report_still_reports_what_the_job_came_to(
    agent: Agent, short_path: Path
) -> None:
    """The supervisor has left and the workspace is gone by then: that is no reason to take a passed job for lost."""
    async with other_side() as first:
        agent.side = first
        await agent.start()
        attempt = first.give(job(None, "sleep 1; echo done"))
        await first.until(lambda: attempt in first.started)
        address, tokens = first.address, first.tokens
    records = short_path / "data" / "attempts"
    await until_kept(records, attempt, lambda record: record["phase"] == "settled")
    agent.kill()
    await agent.ended()
    as_it_was = {"phase": "cleanup", "reports": [], "outcome": 0, "facts": {"supervised": True}}
    rewrite(records, attempt, lambda written: written | as_it_was)
    async with other_side(address) as second:
        second.tokens = tokens
        agent.side = second
        await agent.start()
        await second.until(lambda: attempt in second.ended)
        assert second.ended[attempt].state == pb.ATTEMPT_STATE_PASSED
        await second.until(lambda: len(second.logs[attempt].records) == second.ended[attempt].log_records["main"])
        assert "may be missing" not in second.logs[attempt].text
        agent.terminate()
        assert await agent.ended() == 0


@pytest.mark.root
@pytest.mark.docker
async def test_why_a_job_failed_is_not_forgotten_by_an_agent_that_dies_while_it_removes_the_sandbox(
    dockered: Agent, side: OtherSide, engine_url: str
) -> None:
    """The next process finds a sandbox that was killed: that alone looks like a cancel that nobody asked for."""
    with Proxy(engine_url.removeprefix("unix://")) as way:
        dockered.env["DOCKER_HOST"] = f"tcp://{way.address}"
        image = images.busybox(engine_url)
        side.grant_permits, side.when_asked = False, way.stall
        await dockered.start()
        attempt = side.give(job(None, "true", image=image, sandbox="docker", environment="production"))
        records = dockered.data / "attempts"
        await until_kept(records, attempt, lambda record: record["ended"] is not None)
        dockered.kill()
        await dockered.ended()
        way.cut()
        way.resume()
        await dockered.start()
        await side.until(lambda: attempt in side.ended)
    assert (side.ended[attempt].cause, side.ended[attempt].sentence) == (pb.CAUSE_ERRORED, "somebody else has it")


async def test_an_attempt_that_was_half_forgotten_is_forgotten_by_the_next_process(
    agent: Agent, side: OtherSide
) -> None:
    """Its log is gone by then: an agent that waited for it to be handed in could never leave."""
    record = Record(
        attempt=7,
        token=b"t",
        attempt_try=1,
        slot=0,
        spec=pb.JobSpec(),
        assigned_boot_ms=1,
        phase=Phase.SETTLED,
        outcome=pb.ATTEMPT_STATE_PASSED,
        facts={"records": 5},
        log_done=True,
    )
    folder = agent.data / "attempts"
    folder.mkdir(parents=True)
    Records(folder, lambda _: None).write(record)
    await agent.start()
    agent.terminate()
    assert await agent.ended(5) == 0
    assert not list(folder.iterdir())


async def test_a_tree_that_a_job_made_deep_does_not_keep_an_agent_from_starting(agent: Agent, side: OtherSide) -> None:
    """Every start sweeps what nobody holds: one hostile job must not cost a machine its agent."""
    await agent.start()
    agent.terminate()
    assert await agent.ended() == 0
    left = agent.data / "workspaces" / "77"
    left.mkdir(parents=True)
    here = os.open(left, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    await agent.start()
    assert not left.exists()


async def test_a_job_whose_supervisor_died_is_errored_and_its_log_is_kept(agent: Agent, side: OtherSide) -> None:
    """Nobody adopts a sandbox without its keeper; what was spooled is handed in, with a marker."""
    await agent.start()
    attempt = side.give(job(None, COUNT))
    await side.until(lambda: attempt in side.logs and "line 5\n" in side.logs[attempt].text)
    for pid in supervisors(agent.data):
        os.kill(pid, signal.SIGKILL)
    await side.until(lambda: attempt in side.ended)
    ended = side.ended[attempt]
    assert (ended.state, ended.cause) == (pb.ATTEMPT_STATE_ERRORED, pb.CAUSE_ERRORED)
    await side.until(lambda: len(side.logs[attempt].records) == ended.log_records["main"])
    assert "may be missing" in side.logs[attempt].text
    assert lines(side, attempt)[:6] == [f"line {i}" for i in range(6)]


async def test_a_frozen_supervisor_is_ended_before_its_job_is_given_up(agent: Agent, side: OtherSide) -> None:
    """Else a deployment that counts as over, and is perhaps begun again, would go on when the supervisor thaws."""
    await agent.start()
    attempt = side.give(job(None, COUNT))
    await side.until(lambda: attempt in side.logs and "line 5\n" in side.logs[attempt].text)
    agent.kill()
    await agent.ended()
    found = supervisors(agent.data)  # and their guards
    [frozen] = {parent_of(pid) for pid in found} & set(found)
    os.kill(frozen, signal.SIGSTOP)
    await agent.start()
    await side.until(lambda: attempt in side.ended)
    assert frozen not in supervisors(agent.data)
    assert side.ended[attempt].state == pb.ATTEMPT_STATE_ERRORED
    await side.until(lambda: len(side.logs[attempt].records) == side.ended[attempt].log_records["main"])


async def test_a_disk_that_takes_no_records_ends_neither_the_agent_nor_its_jobs(agent: Agent, side: OtherSide) -> None:
    """An agent that dies of a full disk dies again at each start, with all its jobs."""
    await agent.start()
    attempt = side.give(job(None, COUNT))
    await side.until(lambda: attempt in side.logs and "line 5\n" in side.logs[attempt].text)
    records = agent.data / "attempts"
    away = records.rename(agent.data / "away")
    side.cancel(attempt)
    await side.until(lambda: attempt in side.ended)
    assert side.ended[attempt].state == pb.ATTEMPT_STATE_CANCELED
    away.rename(records)
    second = side.give(job(None, "true"))
    await side.until(lambda: second in side.ended)
    assert side.ended[second].state == pb.ATTEMPT_STATE_PASSED
    assert "Traceback" not in agent.log


async def test_sigterm_finishes_what_runs_and_takes_nothing_new(agent: Agent, side: OtherSide) -> None:
    """An upgrade of the agent costs no job."""
    await agent.start()
    attempt = side.give(job(None, "echo begun; sleep 1; echo done"))
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    agent.terminate()
    await side.until(lambda: side.draining)
    refused = side.give(job(None, "true"))
    assert await agent.ended() == 0
    assert side.ended[attempt].state == pb.ATTEMPT_STATE_PASSED
    assert "done" in side.logs[attempt].text
    assert refused not in side.started


async def test_a_second_sigterm_cancels_and_cleans_up(agent: Agent, side: OtherSide) -> None:
    """Whoever asks twice does not want to wait."""
    await agent.start()
    attempt = side.give(job(None, "echo begun; sleep 100"))
    await side.until(lambda: attempt in side.logs and "begun" in side.logs[attempt].text)
    agent.terminate()
    await side.until(lambda: side.draining)
    agent.terminate()
    assert await agent.ended() == 0
    assert side.ended[attempt].state == pb.ATTEMPT_STATE_CANCELED
    assert not list((agent.data / "workspaces").iterdir())


async def test_a_second_sigterm_ends_an_agent_whose_coordinator_is_gone(agent: Agent) -> None:
    """A machine that shuts down cannot wait for another one: outcome and log keep until the next start."""
    async with other_side() as first:
        agent.side = first
        await agent.start()
        attempt = first.give(job(None, "echo begun; sleep 100"))
        await first.until(lambda: attempt in first.logs and "begun" in first.logs[attempt].text)
    agent.terminate()
    agent.terminate()
    await asyncio.sleep(0.2)  # two signals at once may be one
    agent.terminate()
    assert await agent.ended(15) == 0
    assert kept(agent.data / "attempts", attempt)["phase"] == "settled"


async def test_two_agents_cannot_share_a_data_directory(agent: Agent, side: OtherSide) -> None:
    """They would take each other's jobs for their own."""
    await agent.start()
    other = Agent(side, agent.data, flags={"name": "other"})
    await other.start(wait=False)
    assert await other.ended() == 2
    assert "in use by another agent process" in agent.log


async def test_an_agent_with_a_wrong_token_ends_with_one_sentence(agent: Agent, side: OtherSide) -> None:
    """A wrong token stays wrong: knocking on for ever helps nobody."""
    agent.env["HEADRACE_TOKEN"] = "wrong"
    await agent.start(wait=False)
    assert await agent.ended() == 3
    said = [line for line in agent.log.splitlines() if line.startswith("headrace agent: ")]
    mend = "set HEADRACE_TOKEN, or HEADRACE_TOKEN_FILE to a file that holds it, to what stands in the coordinator's"
    assert said == [f"headrace agent: The coordinator does not accept this agent's token: {mend} tokens/agent"]
    assert any(json.loads(line).get("event") == "metrics" for line in agent.log.splitlines() if line.startswith("{"))
    assert "Traceback" not in agent.log


async def test_an_agent_whose_heartbeats_are_not_answered_connects_anew(agent: Agent, side: OtherSide) -> None:
    """A coordinator whose database hangs still answers pings. The agent once took the end of its own call for its own
    end, and died with a traceback."""
    side.answer_heartbeats = False
    await agent.start()
    await side.until(lambda: len(side.hellos) == 2, 30)
    side.answer_heartbeats = True
    attempt = side.give(job(None, "echo still here"))
    await side.until(lambda: attempt in side.ended)
    assert "Traceback" not in agent.log


async def test_logs_survive_a_coordinator_that_cuts_every_stream(agent: Agent, side: OtherSide) -> None:
    """Not a byte lost or doubled: what is not durable is sent again from where it was."""
    side.cut_logs_after = 3
    await agent.start()
    attempt = side.give(job(None, "i=0; while [ $i -lt 30 ]; do echo line $i; i=$((i+1)); sleep 0.12; done"))
    await side.until(lambda: attempt in side.ended)
    await side.until(lambda: len(side.logs[attempt].records) == side.ended[attempt].log_records["main"], 60)
    assert lines(side, attempt) == [f"line {i}" for i in range(30)]
    assert side.logs[attempt].repeats > 0


def instance_of(agent: Agent) -> str:
    return (agent.data / "instance").read_text().strip()


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


async def test_an_agent_that_has_left_leaves_nothing_on_the_machine(agent: Agent, side: OtherSide) -> None:
    """Neither a mount nor a folder in memory: a machine with a thousand starts looks like one with none."""
    await agent.start()
    runtime = Path("/run/headrace", instance_of(agent))
    attempt = side.give(job(None, "true"))
    await side.until(lambda: attempt in side.ended)
    agent.terminate()
    assert await agent.ended() == 0, agent.log
    assert str(agent.data) not in mounts()
    assert runtime not in runtime.parent.glob("*")


async def test_an_agent_whose_disk_is_full_of_logs_takes_no_new_job(agent: Agent, side: OtherSide) -> None:
    """Each job that ends leaves its slot before its log: with nobody who takes logs they would pile up for ever."""
    agent.flags |= {"slots": 1, "spool_agent": 1 << 20}
    side.take_logs = False
    await agent.start()
    spec = job(None, "head -c 650000 /dev/urandom | base64 -w 70")
    first, second = side.give(spec), side.give(spec)
    await side.until(lambda: {first, second} <= set(side.ended), 90)
    third, beats = side.give(spec), len(side.heartbeats)
    await side.until(lambda: len(side.heartbeats) > beats + 2)
    assert (side.credit, third in side.accepted) == (0, False)
    side.take_logs = True
    await side.until(lambda: third in side.ended, 90)


async def test_mirrors_that_nobody_used_for_a_month_go_when_an_idle_agent_starts(
    agent: Agent, side: OtherSide, repository: tuple[Path, str]
) -> None:
    """Projects are renamed and leave, their mirrors would stay for good. Not while a job may borrow from one."""
    await agent.start()
    attempt = side.give(job(repository, "echo up; until [ -e done ]; do sleep 0.05; done"))
    await side.until(lambda: attempt in side.logs and "up" in side.logs[attempt].text)
    (mirror,) = (agent.data / "mirrors").iterdir()
    os.utime(mirror / "lock", (1, 1))
    agent.kill()
    await agent.ended()
    await agent.start()
    assert mirror.exists()
    (agent.data / "workspaces" / str(attempt) / "tree" / "done").touch()
    await side.until(
        lambda: attempt in side.ended and len(side.logs[attempt].records) == side.ended[attempt].log_records["main"]
    )
    agent.terminate()
    await agent.ended()
    await agent.start()
    assert not mirror.exists()
