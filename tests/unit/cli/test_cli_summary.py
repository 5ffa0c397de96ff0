"""What is said at the end of a run: where the time went, what failed and why, where the artifacts are."""

from __future__ import annotations

import pytest

from headrace.cli.summary import exit_code, failure, how_to_follow, summary, times
from headrace.client.types import Artifact, ArtifactFile, JobState, RunState
from tests.harness.shown_runs import at, attempt, board, job, run, step


def test_the_summary_says_where_the_time_went():
    """Queued, sandbox, checkout, steps, artifacts: a person sees what to make faster."""
    lines = summary(board(run(job("unit"))), [], {})
    assert lines[1].split() == ["JOB", "STATE", "QUEUED", "SANDBOX", "CHECKOUT", "STEPS", "ARTIFACTS", "IN", "ALL"]
    assert lines[2].split() == [
        "unit",
        "passed",
        "0.5",
        "s",
        "0.1",
        "s",
        "0.2",
        "s",
        "6.0",
        "s",
        "0.1",
        "s",
        "8.0",
        "s",
    ]
    assert lines[-1] == "run 7 passed in 9.0 s"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["unit"], "follow it with `headrace logs 7 -f`"),
        (["wheel", "unit[python=3.11]"], "follow a job with `headrace logs 7 'unit[python=3.11]' -f`"),
        ([], "look at it with `headrace show 7`"),
    ],
)  # fmt: skip
def test_whoever_does_not_wait_is_given_a_command_that_works_for_this_run(keys, words):
    """`headrace logs 7 -f` of a run with several jobs is refused: which of them?"""
    jobs = [job(key, JobState.PASSED if key == "wheel" else JobState.QUEUED) for key in keys]
    assert how_to_follow(run(*jobs)).endswith(words)


def test_what_is_not_known_yet_is_a_dash():
    """A job that has worked for 40 s and shows 0.0 s for each part of it tells an untruth."""
    unknown = dict.fromkeys(("sandbox_ms", "checkout_ms", "steps_ms", "artifacts_ms", "ended_at"))
    running = job("unit", JobState.RUNNING, ended_at=None, attempts=(attempt(state="running", **unknown),))
    assert times(run(running))[1].split() == ["unit", "running", "0.5", "s", "-", "-", "-", "-", "-"]


def test_a_failure_names_job_step_exit_code_and_the_last_twenty_lines():
    """What a person needs to begin with, without another command."""
    steps = (step(0, "build"), step(1, "pytest -q", cause="step_failed", exit_code=3))
    failed = job(
        "unit", JobState.FAILED, cause="step_failed", sentence="step 2 failed", attempts=(attempt(steps=steps),)
    )
    made = board(run(failed, state=RunState.FAILED))
    made.log("unit", [f"line {number}" for number in range(50)])
    text = "\n".join(summary(made, [], {}))
    assert "job unit failed (step_failed) in step 2, pytest -q: exit code 3" in text
    assert "| line 30\n" in text
    assert "| line 29\n" not in text
    assert exit_code(made.whole()) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"signal": 9, "exit_code": None, "cause": "oom"}, "killed by signal 9 (SIGKILL)"),
        ({"exit_code": None, "cause": "step_timed_out", "sentence": "it ran longer than 10 min"}, "longer than 10 min"),
    ],
)
def test_a_signal_and_a_timeout_are_named_as_what_they_are(values, words):
    """An out-of-memory kill, a timeout and a failed command call for different mends."""
    failed = job("unit", JobState.FAILED, cause=values["cause"], attempts=(attempt(steps=(step(0, "x", **values),)),))
    text = "\n".join(summary(board(run(failed, state=RunState.FAILED)), [], {}))
    assert words in text
    assert f"({values['cause']})" in text


@pytest.mark.parametrize("of_job", ["", "exit code 139 (what a shell says of a process that SIGSEGV has ended)"])
def test_an_exit_code_that_stands_for_a_signal_is_shown_as_such(of_job):
    """139 says nothing to most people; that the program crashed says where to look."""
    sentence = "exit code 139 (what a shell says of a process that SIGSEGV has ended)"
    steps = (step(0, "segv", cause="step_failed", exit_code=139, sentence=sentence),)
    failed = job("sig", JobState.FAILED, cause="step_failed", sentence=of_job, attempts=(attempt(steps=steps),))
    assert failure(failed) == [f"job sig failed (step_failed) in step 1, segv: {sentence}"]


def test_a_job_that_never_ran_shows_its_sentence():
    """Unschedulable, skipped, refused: no step, but a reason."""
    stuck = job(
        "unit", JobState.FAILED, cause="unschedulable", sentence="no agent has gpu=yes", attempts=(), started_at=None
    )
    text = "\n".join(summary(board(run(stuck, state=RunState.FAILED)), [], {}))
    assert "job unit failed (unschedulable): no agent has gpu=yes" in text


def test_artifacts_are_named_with_the_way_to_get_them():
    """A path for a local run, a command for a remote one."""
    kept = Artifact("dist", "unit", 1, (ArtifactFile("a.whl", "0", 2048, executable=False),), at(9), None)
    made = board(run(job("unit")))
    assert "artifact dist (1 file, 2.0 KiB): headrace artifacts 7 --download DIR" in summary(made, [kept], {})
    assert "artifact dist (1 file, 2.0 KiB): /s/7/dist" in summary(made, [kept], {"dist": "/s/7/dist"})
