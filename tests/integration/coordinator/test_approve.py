"""A person decides about a stage, with the command line against a real coordinator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from headrace.client import Run, Source, SyncClient
from headrace.client.types import Decision, JobState
from tests.harness.command_line import CommandLine
from tests.integration.coordinator.processes import Daemon, client, coordinator, none_left, token

pytestmark = pytest.mark.timeout(180)

PIPELINE = b"""
name: web
stages:
  - name: release
    approval: {message: "Ship web?", timeout: 1h, count: COUNT}
    environment: {name: production, url: "https://web.example.com"}
    jobs: {deploy: {steps: [{run: ./deploy}]}}
"""
SOURCE = Source("https://example.org/web.git", "a" * 40, url="https://example.org/web.git", branch="main")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = coordinator(tmp_path_factory.mktemp("approve") / "c")
    daemon.start()
    yield daemon
    daemon.end()
    assert none_left(daemon.folder, 10) == []


@pytest.fixture
def people(running: Daemon) -> Iterator[SyncClient]:
    with SyncClient(running.facts["address"], token(running, "client")) as found:
        yield found


@pytest.fixture
def headrace(running: Daemon, tmp_path: Path) -> CommandLine:
    return client(running, tmp_path, tmp_path)


def blocked(people: SyncClient, count: int = 1) -> Run:
    """A run that waits for its approval at once."""
    return people.create_run(SOURCE, PIPELINE.replace(b"COUNT", b"%d" % count))


def test_an_approval_lets_the_jobs_in_and_is_kept_with_its_comment(people: SyncClient, headrace: CommandLine) -> None:
    """What was asked, who said yes and why, stands beside the deployment for good."""
    run = blocked(people)
    approval = run.stages[0].approval
    assert approval is not None
    assert (run.state, approval.asked, approval.count) == ("blocked", True, 1)
    assert approval.sentence == "waits for an approval: Ship web?"
    assert approval.expires_at is not None
    assert run.stages[0].url == "https://web.example.com"
    with closing(people.watch(run.id)) as changes:
        assert next(changes).snapshot is not None
        done = headrace("approve", str(run.id), "--comment", "tested by hand")
        assert (done.code, done.out) == (0, f"run {run.id}: the stage release is approved, the run is running\n")
        decided = next(change.run for change in changes if change.run and change.run.state == "running")
    assert decided.stages[0].approval is not None
    assert decided.stages[0].approval.decisions == (Decision("client", approved=True, comment="tested by hand"),)
    assert people.run(run.id).jobs[0].state == JobState.QUEUED


def test_a_rejection_cancels_the_stage(people: SyncClient, headrace: CommandLine) -> None:
    """No is an answer too: nothing is deployed, and the run says who refused it."""
    run = blocked(people)
    done = headrace("approve", str(run.id), "--stage", "release", "--reject", "--comment", "not on a Friday", "--json")
    assert done.code == 0, done.err
    shown = json.loads(done.out)
    assert shown["jobs"][0]["state"] == "canceled"
    assert "rejected by client: not on a Friday" in shown["jobs"][0]["sentence"]


def test_one_person_counts_once(people: SyncClient, headrace: CommandLine) -> None:
    """Two approvals are asked for so that two people look."""
    run = blocked(people, count=2)
    assert headrace("approve", str(run.id)).out == f"run {run.id}: the stage release has 1 of 2 approvals\n"
    again = headrace("approve", str(run.id))
    assert (again.code, again.err) == (2, "headrace: client has decided about the stage `release` already\n")
    people.cancel(run.id)


def test_a_run_that_waits_for_nothing_gets_one_sentence(people: SyncClient, headrace: CommandLine) -> None:
    """An approval too late, of the wrong run or the wrong stage must not pass for one that counted."""
    run = blocked(people)
    wrong = headrace("approve", str(run.id), "--stage", "relase")
    assert (wrong.code, wrong.err) == (2, f"headrace: run {run.id} has no stage relase: it has release\n")
    people.cancel(run.id)
    late = headrace("approve", str(run.id))
    assert (late.code, late.err) == (2, f"headrace: run {run.id} waits for no approval: it is canceled\n")
    assert headrace("approve", "99999").code == 2
