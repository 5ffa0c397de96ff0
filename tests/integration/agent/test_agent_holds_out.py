"""Jobs that take all CPU, memory, processes and files that there are: the agent goes on, and says what was wanting."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from agent.holding import Held, before_a_child
from agent.workspace.git import Git, GitFailed
from headrace.v1 import agent_pb2
from headrace.v1 import common_pb2 as pb
from tests.harness import images
from tests.integration.agent.conftest import Agent, job, supervisors
from tests.integration.agent.other_side import OtherSide
from tests.integration.agent.test_agent_plain_user import plain

__all__ = ["plain"]
pytestmark = [
    pytest.mark.root,
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes cgroups, and can act as another user"),
]

CAP_SYS_RESOURCE = 24
OWN_SCORE = Path("/proc/self/oom_score_adj")
TREES = Path("/sys/fs/cgroup")
MEGABYTE = 1 << 20
EAT = "dd if=/dev/zero of=/dev/null bs={}M count=1"
UP_THEN = "echo up; until [ -e go ]; do sleep 0.1; done; "
STORM_S = 2.5
STORMS = (
    "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; echo up; wait",
    "echo up; while :; do sleep 60 & done",
    (
        "ulimit -n 1000; for i in $(seq 50); do"
        ' (for f in $(seq 300 999); do eval "exec $f</dev/null"; done; sleep 60) & done; echo up; wait'
    ),
)
"""What a shell alone can do: in every image."""


@pytest.fixture(scope="session")
def image(engine_url: str) -> str:
    """Two megabytes of busybox."""
    return images.busybox(engine_url)


@pytest.fixture(params=["bubblewrap", "docker"])
def where(request: pytest.FixtureRequest) -> dict[str, object]:
    """The fields of a job in each kind of sandbox."""
    if request.param == "bubblewrap":
        return {"sandbox": "bubblewrap"}
    return {"sandbox": "docker", "image": request.getfixturevalue("image")}


def control(agent: Agent, controller: str, name: str) -> Path:
    """A file of the group of all jobs of this agent."""
    return TREES / controller / "headrace" / instance(agent) / name


def instance(agent: Agent) -> str:
    return (agent.data / "instance").read_text().strip()


def may_lower() -> bool:
    """Whether this machine lets anybody be killed later than others: not every container does, not even root."""
    status = Path("/proc/self/status").read_text().splitlines()
    held = next(line.split()[1] for line in status if line.startswith("CapEff:"))
    return bool(int(held, 16) >> CAP_SYS_RESOURCE & 1)


def number(file: Path) -> int:
    return int(file.read_text())


def said(agent: Agent, event: str) -> dict[str, Any]:
    """The record of an event in the agent's own log."""
    records = [json.loads(line) for line in agent.log.splitlines() if line.startswith("{")]
    return next(record for record in records if record["event"] == event)


async def up(side: OtherSide, attempt: int) -> None:
    """The job's first word has come."""
    await side.until(lambda: attempt in side.logs and "up" in side.logs[attempt].text)


async def ended(side: OtherSide, attempt: int) -> agent_pb2.Ended:
    """How it ended."""
    await side.until(lambda: attempt in side.ended)
    return side.ended[attempt]


def members(agent: Agent) -> list[int]:
    """All processes of all jobs."""
    groups = control(agent, "memory", "").rglob("cgroup.procs")
    return [int(pid) for group in groups for pid in group.read_text().split()]


async def test_wants_of_memory_are_told_from_each_other_and_from_a_command_that_says_so(
    dockered: Agent, side: OtherSide, where: dict[str, object]
) -> None:
    """Its own limit, that of all jobs together (which stands for the machine's), and codes that look the same."""
    dockered.flags["memory"] = 1024 * MEGABYTE
    await dockered.start()
    own = side.give(job(None, EAT.format(300), resources=pb.Resources(memory=64 * MEGABYTE), **where))
    told = await ended(side, own)
    assert (told.state, told.cause) == (pb.ATTEMPT_STATE_FAILED, pb.CAUSE_OOM), told
    assert "the memory limit of the job was reached" in side.logs[own].text

    # Files that it reads fill it to its limit first: that alone is no want of memory.
    read = "head -c 150000000 /dev/zero >file; cat file >/dev/null; "
    script = read + UP_THEN + EAT.format(90)
    hosts = side.give(job(None, script, resources=pb.Resources(memory=128 * MEGABYTE), **where))
    await up(side, hosts)
    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        control(dockered, "memory", name).write_text(str(48 * MEGABYTE))
    (workspace,) = (dockered.data / "workspaces").glob("*/")
    (next(workspace.rglob("file")).parent / "go").touch()
    told = await ended(side, hosts)
    assert (told.state, told.cause) == (pb.ATTEMPT_STATE_ERRORED, pb.CAUSE_HOST_OOM), told
    assert "the machine, or what all its jobs may use together, ran out of memory" in side.logs[hosts].text

    for script in ("exit 137", "kill -9 $$"):
        plainly = side.give(job(None, script, **where))
        told = await ended(side, plainly)
        assert (told.state, told.cause) == (pb.ATTEMPT_STATE_FAILED, pb.CAUSE_STEP_FAILED), told
        assert "exit code 137 (what a shell says of a process that SIGKILL has ended)" in str(told), told


async def test_jobs_go_before_the_agent_and_weigh_less(
    dockered: Agent, side: OtherSide, where: dict[str, object]
) -> None:
    """By the kernel's own files. All of it is gone with the last job, which the fixture looks at."""
    dockered.flags["memory"] = 1024 * MEGABYTE
    await dockered.start()
    attempt = side.give(job(None, UP_THEN, **where))
    await up(side, attempt)
    assert dockered.process is not None
    score = "/proc/{}/oom_score_adj"
    assert number(Path(score.format(dockered.process.pid))) == (-800 if may_lower() else number(OWN_SCORE))
    (supervisor,) = supervisors(dockered.data)[:1]
    assert number(Path(score.format(supervisor))) == (-900 if may_lower() else number(OWN_SCORE))
    jobs = members(dockered)
    assert len(jobs) >= 2, jobs
    assert {number(Path(score.format(pid))) for pid in jobs} == {500}
    assert dockered.process.pid not in jobs
    assert supervisor not in jobs
    assert number(TREES / "cpu" / "headrace" / "cpu.shares") == 512
    assert 1024 * MEGABYTE < number(control(dockered, "memory", "memory.limit_in_bytes")) < 1100 * MEGABYTE
    most = min(number(Path("/proc/sys/kernel", name)) for name in ("pid_max", "threads-max"))
    assert number(control(dockered, "pids", "pids.max")) == min(2 * 4096, most * 3 // 4)
    words = said(dockered, "holds out")
    assert "all jobs together weigh half" in words["has"], words
    assert words["lacks"] == ([] if may_lower() else ["a low oom score (it takes CAP_SYS_RESOURCE)"]), words
    if where["sandbox"] == "bubblewrap":
        assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in jobs} == {5}
    side.cancel(attempt, kill=True)
    await ended(side, attempt)
    await dockered.left()
    assert not control(dockered, "memory", "").exists()


async def test_heartbeats_go_on_in_a_storm(dockered: Agent, side: OtherSide, where: dict[str, object]) -> None:
    """One job takes the CPU, one forks, one opens files; the agent is heard, and a kill reaches them."""
    dockered.flags["slots"] = len(STORMS)
    await dockered.start()
    limits = pb.Resources(memory=256 * MEGABYTE, pids=500)
    storms = [side.give(job(None, script, resources=limits, **where)) for script in STORMS]
    for attempt in storms:
        await up(side, attempt)
    begun = time.monotonic()
    await side.until(lambda: side.heard[-1] > begun + STORM_S, STORM_S * 3)
    gaps = [after - before for before, after in itertools.pairwise(side.heard) if after > begun]
    assert max(gaps) < 2.0, gaps
    assert len(side.hellos) == 1, "and it is the same session"
    assert set(side.ended) <= {storms[1]}, "the forks may be too much for their shell, not for others"
    for attempt in storms:
        side.cancel(attempt, kill=True)
    for attempt in storms:
        await ended(side, attempt)


async def test_without_root_the_agent_says_what_it_lacks_and_still_tells_a_kill(plain: Agent, side: OtherSide) -> None:
    """The group that it shares with its jobs ran out: it is told as the host's, for the job has no limit of its own."""
    around = TREES / "memory" / f"headrace-test-around-{os.getpid()}"
    around.mkdir()
    try:
        (around / "memory.limit_in_bytes").write_text(str(400 * MEGABYTE))
        join = f'echo 0 >{around}/cgroup.procs; exec "$@"'
        plain.python = ("/bin/sh", "-c", join, "sh", *plain.python)
        await plain.start()
        lacks = said(plain, "holds out")["lacks"]
        assert [each.partition(" (")[0].partition(":")[0] for each in lacks] == [
            "a low oom score",
            "a cpu weight for jobs",
            "a bound on the memory of all jobs",
            "a bound on the processes of all jobs",
        ]
        hungry = side.give(job(None, f"cat /proc/self/oom_score_adj; nice; {EAT.format(800)}"))
        told = await ended(side, hungry)
        assert "\n500\n5\n" in side.logs[hungry].text, side.logs[hungry].text
        assert told.cause == pb.CAUSE_HOST_OOM, told
        plainly = side.give(job(None, "exit 137"))
        assert (await ended(side, plainly)).cause == pb.CAUSE_STEP_FAILED
    finally:
        await plain.left()
        around.rmdir()


def test_what_the_agent_starts_for_a_job_is_not_protected_as_it_is_itself() -> None:
    """git unpacks what a stranger has packed: it must not be the last that the kernel kills."""
    before = before_a_child(Held(oom_score=-800, open_files=1))
    words = ["cat", str(OWN_SCORE), "a b"]
    done = subprocess.run([*before, *words], capture_output=True, text=True, check=False, timeout=30)
    assert (done.stdout, done.stderr) == ("500\n", "cat: 'a b': No such file or directory\n")
    assert before_a_child(Held(oom_score=0, open_files=1)) == ()


async def test_a_git_that_is_missing_is_named_behind_it_too(tmp_path: Path) -> None:
    """A shell is found, and says in its own words that git is not."""
    git = Git(tmp_path, {}, program="no-such-git", before=before_a_child(Held(oom_score=-800, open_files=1)))
    with pytest.raises(GitFailed, match="git is not installed on this agent"):
        await git.run(None, "version")
