"""A coordinator in one terminal, agents in others, and people who watch, drain, pause, cancel and retry."""

from __future__ import annotations

import hashlib
import signal
from collections import Counter

import pytest

from tests.harness.waiting import wait_for

pytestmark = pytest.mark.timeout(300)

TEN = (
    "name: ten\nstages:\n  - name: a\n    jobs:\n"
    + "".join(f"      red_{n}: {{requires: {{color: red}}, steps: [{{run: './meet red'}}]}}\n" for n in range(4))
    + "".join(f"      blue_{n}: {{requires: {{color: blue}}, steps: [{{run: './meet blue'}}]}}\n" for n in range(6))
)
MEET = """#!/bin/sh
echo "I am $1 in $HEADRACE_JOB"
while [ ! -e %s ]; do sleep 0.05; done
seq 1 2000
"""
GATE = """
name: gate
stages:
  - name: a
    jobs:
      long: {grace: 2s, steps: [{run: "echo at work; while [ ! -e %s ]; do sleep 0.05; done; echo let go"}]}
"""
SLOW = "name: slow\nstages: [{name: a, jobs: {slow: {grace: 2s, steps: [{run: 'echo at work; sleep 600'}]}}}]\n"
QUICK = "name: quick\nstages: [{name: a, jobs: {quick: {steps: [{run: 'echo quick'}]}}}]\n"
ONCE = """
name: once
stages:
  - name: a
    jobs:
      good: {steps: [{run: "echo good"}]}
      bad: {steps: [{run: "echo try $HEADRACE_ATTEMPT; test $HEADRACE_ATTEMPT = 2"}]}
  - name: b
    jobs: {after: {steps: [{run: "echo after"}]}}
"""


def state_of(scene, run: int) -> str:
    return str(scene.json("show", str(run))["state"])


def ended(scene, run: int, *states: str):
    """Waits for the run's end and returns it."""
    found = wait_for(lambda: (r := scene.json("show", str(run)))["ended_at"] and r, f"the end of run {run}", 90)
    assert found["state"] in states, found
    return found


def test_ten_jobs_spread_over_two_agents_and_everybody_sees_the_same(scene):
    """By label and slot; two followers of one log; a run that joins; and all of it is there when all is stopped."""
    gate = scene.folder / "gate" / "open"
    gate.parent.mkdir()
    shown = {"HEADRACE_READ_ONLY_PATHS": str(gate.parent)}
    repository = scene.repository(TEN, {"meet": MEET % gate})
    (repository.path / "meet").chmod(0o755)
    repository.commit({}, "executable")
    with scene.up() as up:
        red = up.agent("red", "--label", "color=red", "--slots", "2", **shown)
        blue = up.agent("blue", "--label", "color=blue", "--slots", "3", **shown)
        up.connected("red", "blue", "local")
        first = scene.start("run").said("run 1")
        second = scene.start("run", "--job", "red_0", "--json")
        second.said('"event":"begin"')
        wait_for(lambda: busy(scene) == {"local": 0, "red": 2, "blue": 3}, "five jobs at work, no more")
        first.said("red_0 | I am red")
        followers = [scene.start("logs", "1", "red_0", "-f").said("I am red") for _ in range(2)]
        gate.write_text("")
        assert first.end(150).code == 0, first.out
        assert second.end().code == 0
        hashes = {hashlib.sha256(each.end().out.encode()).hexdigest() for each in followers}
        assert len(hashes) == 1
        agents = scene.json("agents")
        assert {each["name"]: (each["busy"], each["slots"]) for each in agents if each["name"] != "local"} == {
            "red": (0, 2), "blue": (0, 3),
        }  # fmt: skip
        assert {"name", "pool", "presence", "labels", "slots", "busy", "version", "sandboxes"} <= set(agents[0])
        for each in (red, blue):
            each.signal(signal.SIGTERM)
            assert each.end().code == 0
        assert up.presences()["connected"] == {"local"}
    run = scene.json("show", "1")
    where = Counter(job["attempts"][0]["agent"] for job in run["jobs"])
    assert where == {"red": 4, "blue": 6}
    log = scene("logs", "1", "red_0").out
    assert "".join(f"{n}\n" for n in range(1, 2001)) in log
    assert log == followers[0].out
    assert scene.json("artifacts", "1")["artifacts"] == []
    assert [each["id"] for each in scene.json("runs")] == [2, 1]


def busy(scene) -> dict[str, int]:
    """How many jobs each agent has."""
    return {each["name"]: each["busy"] for each in scene.json("agents")}


def test_sigterm_to_an_agent_drains_it_and_a_second_one_cancels(scene):
    """It finishes what it has and takes nothing new; told twice, it cancels, cleans up and leaves."""
    gate = scene.folder / "gate" / "open"
    gate.parent.mkdir()
    scene.repository(GATE % gate)
    pool = GATE % gate
    (scene.folder / "repo" / "headrace.yml").write_text(pool.replace("long: {", "long: {pool: side, "))
    with scene.up() as up:
        side = up.agent("side", "--pool", "side", "--slots", "1", HEADRACE_READ_ONLY_PATHS=str(gate.parent))
        up.connected("side")
        running = scene.start("run").said("long | at work")
        side.signal(signal.SIGTERM)
        wait_for(lambda: "side" in up.presences().get("draining", set()), "the agent that drains")
        waiting = scene.start("run", "--json")
        wait_for(lambda: state_of(scene, 1) == "running" and len(scene.json("runs")) == 2, "the second run")
        gate.write_text("")
        assert running.end().code == 0, running.out
        assert side.end().code == 0
        assert scene.json("show", "2")["jobs"][0]["state"] == "queued", "nobody took it"
        gate.unlink()
        again = up.agent("side", "--pool", "side", "--slots", "1", HEADRACE_READ_ONLY_PATHS=str(gate.parent))
        waiting.said('"state":"running"')
        wait_for(lambda: "at work" in scene("logs", "2", "long").out, "its log")
        again.signal(signal.SIGTERM)
        again.said("no new jobs")
        again.signal(signal.SIGTERM)
        assert again.end().code == 0
        job = wait_for(lambda: (j := scene.json("show", "2")["jobs"][0])["state"] == "queued" and j, "the requeued job")
        assert [each["state"] for each in job["attempts"]] == ["canceled"]
        assert job["attempts"][0]["sentence"] == "the agent was told to stop"
        gate.write_text("")
        third = up.agent("side", "--pool", "side", "--slots", "1", HEADRACE_READ_ONLY_PATHS=str(gate.parent))
        assert waiting.end().code == 0, "another agent takes what the one that left gave up"
        third.signal(signal.SIGTERM)
        assert third.end().code == 0


def test_cancel_retry_drain_and_pause_do_what_they_say(scene):
    """The commands of an operator, on a coordinator that stays."""
    scene.repository(SLOW, {"quick.yml": QUICK, "once.yml": ONCE})
    with scene.up():
        detached = scene.json("run", "--detach")
        assert detached["id"] == 1
        wait_for(lambda: "at work" in scene("logs", "1", "slow").out, "its log")
        assert scene("cancel", "1").code == 0
        assert ended(scene, 1, "canceled")["jobs"][0]["cause"] == "canceled"

        assert scene.json("pools", "pause", "default")["paused"] is True
        assert scene("run", "quick.yml", "--detach").code == 0
        held = wait_for(lambda: (j := scene.json("show", "2")["jobs"][0])["sentence"] and j, "the reason")
        reason = "pool `default` is paused: `headrace pools resume default`"
        assert (held["state"], held["sentence"]) == ("queued", reason)
        assert scene.json("pools", "resume", "default")["paused"] is False
        ended(scene, 2, "passed")

        assert scene.json("drain", "local")["presence"] == "draining"
        assert scene("run", "quick.yml", "--detach").code == 0
        assert scene.json("drain", "local", "--undo")["presence"] == "connected"
        ended(scene, 3, "passed")

        failed = scene("run", "once.yml")
        assert failed.code == 1
        states = {job["key"]: job["state"] for job in scene.json("show", "4")["jobs"]}
        assert states == {"good": "passed", "bad": "failed", "after": "skipped"}
        assert scene("retry", "4", "bad").code == 0
        run = ended(scene, 4, "passed")
        assert {job["key"]: len(job["attempts"]) for job in run["jobs"]} == {"good": 1, "bad": 2, "after": 1}
        assert "try 1" in scene("logs", "4", "bad", "--attempt", "1").out
        assert "try 2" in scene("logs", "4", "bad").out


def test_a_retry_without_a_coordinator_does_the_work_itself(scene):
    """Nobody has to keep `headrace up` open to try a job again."""
    scene.repository(ONCE)
    assert scene("run").code == 1
    again = scene("retry", "1", "bad")
    assert again.code == 0, again.out + again.err
    assert "bad | try 2" in again.out
    assert scene.json("show", "1")["state"] == "passed"


def test_two_clients_of_one_run(scene):
    """Start it in one terminal and leave; look from another; come back to its log."""
    gate = scene.folder / "gate" / "open"
    gate.parent.mkdir()
    scene.repository(GATE % gate)
    with scene.up(HEADRACE_READ_ONLY_PATHS=str(gate.parent)):
        assert scene("run", "--detach").out.startswith("run 1;")
        follower = scene.start("logs", "1", "long", "-f").said("at work")
        late = scene.start("logs", "-f").said("at work")
        assert state_of(scene, 1) == "running"
        gate.write_text("")
        assert follower.end().out == late.end().out
        assert follower.out.count("let go\n") == 1
        ended(scene, 1, "passed")


def test_a_followed_log_goes_on_when_its_reader_has_had_enough(scene):
    """`headrace logs | head` ends without a word."""
    scene.repository("name: n\nstages: [{name: a, jobs: {j: {steps: [{run: 'seq 1 200000'}]}}}]\n")
    assert scene("run").code == 0
    shell = scene.command(["sh", "-c", '"$@" | head -n 1', "sh", *scene.user.headrace, "logs", "1", "j"])
    done = shell.end()
    assert done.code == 0
    assert done.err == ""


def test_the_owner_waits_for_the_run_of_another_command(scene):
    """A second `headrace run` beside the first uses its coordinator, and is not cut off when the first is done."""
    gate = scene.folder / "gate" / "open"
    gate.parent.mkdir()
    scene.repository(GATE % gate, {"quick.yml": QUICK, "slow.yml": SLOW})
    owner = scene.start("run", HEADRACE_READ_ONLY_PATHS=str(gate.parent)).said("long | at work")
    assert scene("run", "quick.yml").code == 0
    other = scene.start("run", "slow.yml").said("slow | at work")
    gate.write_text("")
    owner.said("waiting for run 3")
    other.signal(signal.SIGINT)
    assert other.end().code == 130
    assert owner.end().code == 0
