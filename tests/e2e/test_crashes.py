"""kill -9 of each of the daemons in the middle of a chatty job: nothing is lost, doubled or left."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.e2e.scene import Scene, Started, kill_and_wait, supervisors
from tests.harness.waiting import wait_for

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="kills processes of other uids"),
]

LINES = 30_000
CHATTY = f"""
name: chatty
stages:
  - name: a
    jobs:
      chatty:
        pool: side
        steps:
          - run: |
              python3 -u - <<'END'
              import time
              for n in range({LINES}):
                  print("line", n)
                  if n % 100 == 99:
                      time.sleep(0.05)
              END
              echo finished
"""
EXPECTED = "".join(f"line {n}\n" for n in range(LINES)) + "finished\n"
DEPLOY = """
name: deploy
stages:
  - name: staging
    environment: staging
    jobs:
      deploy: {pool: side, steps: [{run: "echo token $HEADRACE_FENCING_TOKEN; echo try $HEADRACE_ATTEMPT; sleep 600"}]}
"""
AGAIN = """
name: again
stages:
  - name: a
    jobs:
      again: {pool: side, steps: [{run: 'echo try $HEADRACE_ATTEMPT; [ "$HEADRACE_ATTEMPT" = 2 ] || sleep 600'}]}
"""


class Standing:
    """A coordinator and an agent `side`, each a process that a test may kill and start again on its data."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.data = scene.folder / "coordinator"
        self.coordinator = self.start_coordinator("127.0.0.1:0")
        line = wait_for(self._address, "the coordinator", 90)
        self.address = line
        scene.more |= {"HEADRACE_URL": line, "HEADRACE_TOKEN": self.token("client")}
        self.agent = self.start_agent()
        wait_for(lambda: [each["presence"] for each in scene.json("agents")] == ["connected"], "the agent")

    def start_coordinator(self, listen: str) -> Started:
        return self.scene.start(
            "coordinator", "--data-dir", str(self.data), "--listen", listen, "--http-listen", "127.0.0.1:0",
            "--blob-listen", "127.0.0.1:0", HEADRACE_URL="", HEADRACE_TOKEN="",
        )  # fmt: skip

    def _address(self) -> str:
        for line in (self.coordinator.err + self.coordinator.out).splitlines():
            if line.startswith("{") and "coordinator is ready" in line:
                return str(json.loads(line)["address"])
        assert self.coordinator.process.poll() is None, self.coordinator.err
        return ""

    def token(self, name: str) -> str:
        return (self.data / "tokens" / name).read_text().strip()

    def start_agent(self) -> Started:
        return self.scene.start(
            "agent", "--url", self.address, "--name", "side", "--pool", "side", "--data-dir",
            str(self.scene.folder / "agent-side"), "--slots", "1", HEADRACE_TOKEN=self.token("agent"),
        )  # fmt: skip

    def supervisor(self) -> int:
        """The supervisor of the only attempt, not its guard."""
        (supervisor,) = supervisors(self.scene.folder)
        return supervisor

    def stop(self) -> None:
        """Both leave in order."""
        self.agent.signal(signal.SIGTERM)
        assert self.agent.end().code == 0, self.agent.err
        self.coordinator.signal(signal.SIGTERM)
        assert self.coordinator.end().code == 0, self.coordinator.err

    def log_of(self, run: int, job: str) -> str:
        done = self.scene("logs", str(run), job)
        assert done.code == 0, done.err
        return done.out


@pytest.fixture
def standing(scene, request):
    """The daemons, and their orderly end."""
    scene.more |= getattr(request, "param", {})
    scene.repository(CHATTY, {"deploy.yml": DEPLOY, "again.yml": AGAIN})
    made = Standing(scene)
    yield made
    made.stop()


def follow(standing: Standing, *words: str) -> Started:
    return standing.scene.start("run", *words)


def judge_whole(standing: Standing, run: Started) -> None:
    """The log is whole, in order, and there was one attempt."""
    done = run.end(150)
    assert done.code == 0, done.out[-3000:] + done.err
    text = standing.log_of(1, "chatty")
    assert text[text.index("line 0\n") :].startswith(EXPECTED)
    said = "".join(line.removeprefix("chatty | ") + "\n" for line in done.out.splitlines() if "chatty | " in line)
    assert EXPECTED in said, "who watched saw the same"
    (job,) = standing.scene.json("show", "1")["jobs"]
    assert [each["state"] for each in job["attempts"]] == ["passed"], job["attempts"]


def test_an_agent_that_is_killed_and_started_again_goes_on(standing):
    """The job does not notice: its supervisor holds it, and the new agent finds the supervisor."""
    run = follow(standing).said("chatty | line 3000")
    kill_and_wait(standing.agent.pid)
    seen = len(standing.log_of(1, "chatty"))
    spool = standing.scene.folder / "agent-side" / "logs"
    size = sum(file.stat().st_size for file in spool.rglob("*") if file.is_file())
    wait_for(
        lambda: sum(file.stat().st_size for file in spool.rglob("*") if file.is_file()) > size,
        "the job that goes on without its agent",
    )
    assert standing.scene.json("show", "1")["jobs"][0]["state"] == "running"
    standing.agent = standing.start_agent()
    judge_whole(standing, run)
    assert len(standing.log_of(1, "chatty")) > seen


def test_a_coordinator_that_is_killed_and_started_again_goes_on(standing):
    """Its database recovers, agent and client come back by themselves, no line is lost or doubled."""
    run = follow(standing).said("chatty | line 3000")
    kill_and_wait(standing.coordinator.pid)
    standing.coordinator = standing.start_coordinator(standing.address)
    judge_whole(standing, run)


def test_a_supervisor_that_is_killed_takes_its_sandbox_along_and_the_job_is_tried_again(standing):
    """Nothing is adopted: the attempt is `errored`, says so, and a second one does the work."""
    run = follow(standing, "again.yml").said("again | try 1")
    kill_and_wait(standing.supervisor())
    done = run.end(150)
    assert done.code == 0, done.out + done.err
    (job,) = standing.scene.json("show", "1")["jobs"]
    first, second = job["attempts"]
    assert (first["state"], first["cause"], first["number"]) == ("errored", "errored", 1)
    assert "supervisor" in first["sentence"]
    assert (second["state"], second["number"]) == ("passed", 2)
    assert "try 1" in standing.scene("logs", "1", "again", "--attempt", "1").out


def begin_deployment(standing: Standing) -> Started:
    """A deployment at work; returns who follows its log."""
    assert follow(standing, "deploy.yml", "--detach").end().code == 0
    watcher = standing.scene.start("logs", "1", "deploy", "-f").said("try 1")
    token = next(line for line in watcher.out.splitlines() if line.startswith("token "))
    assert int(token.split()[1]) > 0
    return watcher


def test_a_deployment_whose_supervisor_dies_is_not_started_again(standing):
    """It is known to be over, and not how far it came: the job failed, says why, and a person decides."""
    watcher = begin_deployment(standing)
    kill_and_wait(standing.supervisor())
    watcher.end()
    run = wait_for(lambda: (r := standing.scene.json("show", "1"))["ended_at"] and r, "the end of the run")
    (job,) = run["jobs"]
    assert (run["state"], job["state"], job["cause"]) == ("failed", "failed", "errored")
    assert "supervisor died" in job["sentence"]
    assert [each["state"] for each in job["attempts"]] == ["errored"]
    assert "try 2" not in standing.log_of(1, "deploy")


@pytest.mark.parametrize(
    "standing", [{"HEADRACE_LONG_LEASE_S": "40", "HEADRACE_LEASE_S": "10", "HEADRACE_HEARTBEAT_S": "2"}], indirect=True
)
def test_a_deployment_that_is_lost_blocks_its_run(standing):
    """Its agent fell silent, so nobody knows whether it still goes on: the run waits for a person."""
    watcher = begin_deployment(standing)
    supervisor = standing.supervisor()
    kill_and_wait(standing.agent.pid)
    kill_and_wait(supervisor)
    blocked = wait_for(
        lambda: (r := standing.scene.json("show", "1"))["state"] == "blocked" and r, "the blocked run", 120
    )
    (job,) = blocked["jobs"]
    assert (job["state"], job["cause"]) == ("blocked", "lost")
    assert job["sentence"]
    assert [each["state"] for each in job["attempts"]] == ["lost"]
    assert "deploy blocked" in standing.scene("show", "1").out
    standing.agent = standing.start_agent()
    assert standing.scene("cancel", "1").code == 0
    watcher.said("supervisor died here")
    watcher.signal(signal.SIGINT)  # the rest of a lost log may come for an hour
    watcher.end()
    assert standing.scene.json("show", "1")["state"] == "canceled"


def test_nothing_of_a_dead_agent_is_left_once_it_has_come_back(standing):
    """Agent and supervisor killed at once: the next start sweeps what they left."""
    run = follow(standing, "again.yml").said("again | try 1")
    supervisor = standing.supervisor()
    kill_and_wait(standing.agent.pid)
    kill_and_wait(supervisor)
    standing.agent = standing.start_agent()
    assert run.end(150).code == 0, run.out
    states = [each["state"] for each in standing.scene.json("show", "1")["jobs"][0]["attempts"]]
    assert states == ["errored", "passed"]
