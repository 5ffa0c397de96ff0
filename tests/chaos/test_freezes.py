"""Agents that are frozen for longer than their lease, and thaw: what they say then is too late."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import long_form
from tests.chaos.work import SHORT, Counting, User
from tests.e2e.scene import sandboxes
from tests.harness.waiting import wait_for
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon, metric

pytestmark = [pytest.mark.timeout(300), pytest.mark.root]

STAGING = "name: staging, environment: staging"
RETURNED = "headrace_assignments_returned_total"


@contextlib.contextmanager
def frozen(of: Daemon) -> Iterator[None]:
    """Its process does nothing while inside; the supervisors of its jobs go on."""
    os.kill(of.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(of.process.pid, signal.SIGCONT)


@pytest.fixture
def pair(make_coordinator: Make, make_agent: Make) -> Callable[..., tuple[Daemon, Daemon, Daemon]]:
    """A coordinator and an agent, both ready, and another agent that is not yet started."""

    def make(**environment: str) -> tuple[Daemon, Daemon, Daemon]:
        of = make_coordinator("c", **(SHORT | environment))
        of.start()
        first, second = (make_agent(of, name, HEADRACE_ALLOW_HOST="true") for name in "ab")
        for each in (first, second):
            each.arguments["slots"] = "3"
        first.start()
        return of, first, second

    return make


def deployment(ledger: Path, lines: int, name: str = "deploy") -> Counting:
    """One that writes into the ledger when it begins."""
    return Counting(name, lines, keys="sandbox: host", first=f"echo begun >> {ledger}")


def test_what_an_agent_says_that_was_frozen_for_longer_than_its_lease_is_refused(
    pair: Callable[..., tuple[Daemon, Daemon, Daemon]], tmp_path: Path
) -> None:
    """One of its jobs ended meanwhile, one still runs: both were done by another agent, are counted once, and the
    sandbox that still ran is stopped. A deployment is resumed: its own lease is long, and it began once."""
    of, first, second = pair()
    ended, runs, deploy = Counting("ended", 60), Counting("runs", 900), deployment(tmp_path / "ledger", 140)
    with User(of) as user:
        run, release = user.begin([ended, runs]), user.begin([deploy], STAGING)
        user.until_it_writes(run, ended, runs)
        user.until_it_writes(release, deploy)
        second.start()
        with frozen(first):
            user.until_over(run)
            assert [each.agent for each in user.attempts(run, "ended")] == ["a", "b"]
            assert sandboxes(first.folder), "nobody has told them yet"
        wait_for(lambda: metric(of, "headrace_sessions") == 2, "it is back", 20)
        wait_for(lambda: not sandboxes(first.folder), "what it still ran is stopped", 10)
        user.until_over(release)
        for each in (ended, runs):
            user.judge(run, each, ["lost", "passed"])
        user.judge(release, deploy, ["passed"])
        assert [each.agent for each in user.attempts(release, "deploy")] == ["a"]
    assert (tmp_path / "ledger").read_text() == "begun\n"
    assert metric(of, 'headrace_outcomes_total{cause="none",outcome="passed"}') == 3


@long_form
def test_an_agent_that_thaws_to_an_assignment_that_went_to_another_does_not_begin_it(
    pair: Callable[..., tuple[Daemon, Daemon, Daemon]], tmp_path: Path
) -> None:
    """It was frozen before it received it. Once it reads it, the job has long been done elsewhere."""
    of, first, second = pair()
    ledger = tmp_path / "ledger"
    deploy = deployment(ledger, 20)
    with User(of) as user:
        with frozen(first):
            release = user.begin([deploy], STAGING)
            wait_for(lambda: metric(of, RETURNED) == 1, "nobody acknowledges it", 10)
            second.start()
            user.until_over(release)
            wait_for(lambda: metric(of, 'headrace_agents{state="gone"}') == 1, "its lease is over", 20)
        wait_for(lambda: metric(of, "headrace_sessions") == 2, "it is back", 20)
        after = deployment(ledger, 5, "after")
        again = user.begin([after], STAGING)
        user.until_over(again)
        user.judge(release, deploy, ["passed"])
        user.judge(again, after, ["passed"])
        assert user.attempts(release, "deploy")[0].agent == "b"
    assert ledger.read_text() == "begun\n" * 2
    assert not list((first.folder / "attempts").iterdir())


@long_form
def test_a_deployment_of_an_agent_that_stays_frozen_is_stopped_before_it_is_given_up(
    pair: Callable[..., tuple[Daemon, Daemon, Daemon]], tmp_path: Path
) -> None:
    """Its supervisor sees to that by itself, by the boot clock: the run is blocked when nothing of it runs any more."""
    of, first, second = pair(HEADRACE_LONG_LEASE_S="40")
    ledger = tmp_path / "ledger"
    deploy = deployment(ledger, 2000)
    with User(of) as user:
        release = user.begin([deploy], STAGING)
        user.until_it_writes(release, deploy)
        second.start()
        with frozen(first):
            assert _at_work(ledger)
            wait_for(lambda: not _at_work(ledger), "its supervisor stops it", 40)
            assert user.states(release, "deploy") == ["running"], "and only then"
            wait_for(lambda: user.state(release) == "blocked", "it is given up", 60)
        wait_for(lambda: metric(of, "headrace_sessions") == 2, "it is back", 20)
        user.judge(release, deploy, ["lost"])
        assert str(user.job(release, "deploy").cause) == "lost"
        user.cancel(release)
    assert ledger.read_text() == "begun\n"


def _at_work(ledger: Path) -> bool:
    """Whether a shell with this script runs: the job has no sandbox that could be asked for."""
    for each in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if b"HEADRACE_ATTEMPT=" in each.read_bytes() and str(ledger.parent) in str(
                (each.parent / "cwd").readlink()
            ):
                return True
    return False
