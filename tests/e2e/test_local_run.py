"""`headrace run` on a repository on disk: what is built, what is kept, what is said when it goes wrong."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.e2e.scene import kill_and_wait, sandboxes
from tests.harness.git_repo import fingerprint
from tests.harness.waiting import wait_for

pytestmark = pytest.mark.timeout(300)

NOTE = """
name: note
stages:
  - name: build
    jobs:
      note:
        steps: [{run: "cat note.txt new.txt; mkdir dist; cp note.txt dist/"}]
        artifacts: [{name: dist, paths: ["dist/*"]}]
"""

FAILURES = """
name: failures
defaults: {shell: sh}
stages:
  - name: a
    jobs:
      code:
        steps:
          - {name: fine, run: "echo all is well"}
          - {name: tests, run: "seq 1 40; echo the last words; exit 7"}
          - {name: never, run: "echo never"}
      signal: {steps: [{name: suicide, run: "kill -TERM $$; sleep 600"}]}
      slow_step: {grace: 1s, steps: [{name: dawdle, run: "echo waiting; sleep 600", timeout: 1s}]}
      slow_job: {grace: 1s, timeout: 2s, steps: [{name: idle, run: "echo waiting; sleep 600"}]}
      hungry: {steps: [{name: eat, run: "python3 -c 'x = bytearray(1 << 30)'"}]}
      plain_137: {steps: [{name: pretend, run: "exit 137"}]}
"""

SLOW = """
name: slow
stages:
  - name: a
    jobs:
      slow: {grace: 2s, steps: [{name: wait, run: "trap 'echo going; exit 3' TERM; echo at work; sleep 600 & wait"}]}
"""
STUBBORN = """
name: stubborn
stages:
  - name: a
    jobs:
      slow: {grace: 5m, steps: [{name: wait, run: "trap '' TERM; echo at work; while :; do sleep 600; done"}]}
"""


def test_what_is_on_disk_is_built_and_the_repository_stays_untouched(scene):
    """A newcomer edits, runs, and commits nothing: index, refs, objects, work tree are the user's own."""
    repository = scene.repository(NOTE, {"note.txt": "committed\n", ".gitignore": "secret\n"})
    (repository.path / "note.txt").write_text("edited\n")
    (repository.path / "new.txt").write_text("untracked\n")
    (repository.path / "secret").write_text("ignored\n")
    before = fingerprint(repository.path)
    done = scene("run")
    assert done.code == 0, done.out + done.err
    assert fingerprint(repository.path) == before
    assert "note | edited\nnote | untracked\n" in done.out
    assert "+ 2 changed files" in done.out.splitlines()[0]
    saved = scene.state / "artifacts" / "1" / "dist"
    assert f"artifact dist (1 file, 7 B): {saved}" in done.out
    assert (saved / "dist" / "note.txt").read_text() == "edited\n"


def test_what_was_done_can_be_asked_for_after_everything_was_stopped(scene):
    """`show`, `logs`, `runs` and `artifacts` answer the next morning, for people and for programs."""
    scene.repository(NOTE, {"note.txt": "one\n", "new.txt": "two\n"})
    events = [json.loads(line) for line in scene("run", "--json").out.splitlines()]
    assert events[0]["event"] == "begin"
    assert events[-1]["event"] == "end"
    assert (events[-1]["exit_code"], events[-1]["run"]["state"]) == (0, "passed")
    run = scene.json("show")
    assert set(run) == set(events[-1]["run"])
    assert {"id", "project", "pipeline", "state", "event", "source", "stages", "jobs", "sequence"} <= set(run)
    attempt = run["jobs"][0]["attempts"][0]
    assert (attempt["state"], attempt["number"], attempt["steps"][0]["exit_code"]) == ("passed", 1, 0)
    assert [each["id"] for each in scene.json("runs")] == [1]
    listed = scene.json("artifacts", "1")
    assert [(each["name"], each["job"], each["files"][0]["path"]) for each in listed["artifacts"]] == [
        ("dist", "note", "dist/note.txt")
    ]
    records = [json.loads(line) for line in scene("logs", "1", "note", "--json").out.splitlines()]
    assert records[-1]["kind"] == "end"
    assert records[-1]["complete"] is True
    shown = scene("logs", "1", "note").out
    assert "one\ntwo\n" in shown
    assert "".join(each["text"] for each in records if each["kind"] == "bytes") == shown
    target = scene.folder / "fetched"
    assert scene("artifacts", "1", "--download", str(target)).code == 0
    assert (target / "dist" / "dist" / "note.txt").read_text() == "one\n"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a hard memory limit needs root")
def test_each_way_to_fail_is_named_as_what_it_is(scene):
    """The summary says job, step, exit code and last lines; what the command did is told apart from a timeout."""
    scene.repository(FAILURES)
    done = scene("run", HEADRACE_MEMORY=str(1 << 29))
    assert done.code == 1, done.out + done.err
    assert "job code failed (step_failed) in step 2, tests: exit code 7" in done.out
    summary = done.out[done.out.index("job code failed") :]
    assert "  | 40\n  | the last words\n" in summary
    assert "  | 1\n" not in summary, "the last lines, not all"
    run = scene.json("show")
    assert run["state"] == "failed"
    jobs = {job["key"]: job for job in run["jobs"]}
    assert {key: job["cause"] for key, job in jobs.items()} == {
        "code": "step_failed",
        "signal": "step_failed",
        "slow_step": "step_timed_out",
        "slow_job": "job_timed_out",
        "hungry": "oom",
        "plain_137": "step_failed",
    }
    steps = {key: job["attempts"][-1]["steps"] for key, job in jobs.items()}
    assert [step["exit_code"] for step in steps["code"]] == [0, 7, None]
    assert steps["code"][2]["skipped"]
    assert steps["plain_137"][0]["exit_code"] == 137
    assert (steps["signal"][0]["signal"], steps["signal"][0]["exit_code"]) in {(15, None), (None, 143)}
    assert all(len(job["attempts"]) == 1 for job in jobs.values()), "what a command did is not tried again"
    assert "memory" in jobs["hungry"]["sentence"]
    assert "1 s" in jobs["slow_step"]["sentence"]
    assert "2 s" in jobs["slow_job"]["sentence"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="looks for the sandbox of another uid")
def test_a_sandbox_that_somebody_kills_is_no_fault_of_the_command(scene):
    """`sandbox_killed` is the machinery's: it is tried again, and the run can still pass."""
    scene.repository(
        "name: n\nstages: [{name: a, jobs: {j: {steps: [{run: 'echo try $HEADRACE_ATTEMPT;"
        " [ $HEADRACE_ATTEMPT = 2 ] || sleep 600'}]}}}]\n"
    )
    running = scene.start("run").said("j | try 1")
    (sandbox, *_) = wait_for(lambda: sandboxes(scene.folder), "the sandbox")
    kill_and_wait(sandbox)
    done = running.end()
    run = scene.json("show")
    attempts = run["jobs"][0]["attempts"]
    assert [each["cause"] for each in attempts] == ["sandbox_killed", None], done.out
    assert attempts[0]["state"] == "errored"
    assert done.code == 0, done.out


def test_ctrl_c_cancels_with_grace(scene):
    """The first Ctrl-C: TERM to the step, its last words in the log, exit 130, `canceled`."""
    scene.repository(SLOW)
    running = scene.start("run").said("slow | at work")
    running.signal(signal.SIGINT)
    done = running.end()
    assert done.code == 130, done.out + done.err
    assert "slow | going" in done.out
    run = scene.json("show")
    assert (run["state"], run["jobs"][0]["state"], run["jobs"][0]["cause"]) == ("canceled", "canceled", "canceled")


def test_a_second_ctrl_c_kills(scene):
    """Who cannot wait for the grace of a step that ignores TERM presses it again."""
    scene.repository(STUBBORN)
    running = scene.start("run").said("slow | at work")
    running.signal(signal.SIGINT)
    running.said("canceling run 1")
    running.signal(signal.SIGINT)
    assert running.end(60).code == 130
    assert scene.json("show")["state"] == "canceled"
