"""Several coordinators on one database: whichever ends, its agents and clients go on at another, and no job notices."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.conftest import Fleet
from tests.chaos.work import LEASE_S, SHORT, Counting, User
from tests.e2e.scene import supervisors
from tests.harness.command_line import CommandLine, git_repository
from tests.harness.waiting import wait_for
from tests.integration.coordinator.processes import Daemon, agent, metric

pytestmark = pytest.mark.timeout(300)

BUSY_S = 5.0
"""What a busy machine may add to a time that is promised."""

LINES = 600
PIPELINE = f"""
name: long
stages:
  - name: a
    jobs:
      long:
        steps:
          - run: 'i=0; while [ $i -lt {LINES} ]; do echo "line $i"; i=$((i+1)); sleep 0.05; done'
"""
EXPECTED = "".join(f"line {n}\n" for n in range(LINES))


@pytest.fixture
def fleet(make_fleet: Callable[[int], Fleet]) -> Fleet:
    return make_fleet(3)


@pytest.fixture
def side(fleet: Fleet, daemons: list[Daemon]) -> Daemon:
    """An agent that knows all replicas, connected."""
    made = agent(fleet.folder / "agent", fleet.replicas[0], "a")
    made.arguments["url"] = fleet.addresses
    daemons.append(made)
    made.start()
    wait_for(lambda: at(fleet) is not None, "the agent is connected", 30)
    return made


@pytest.fixture
def line(fleet: Fleet, tmp_path: Path) -> CommandLine:
    """A client that knows all replicas."""
    repository = tmp_path / "repo"
    git_repository(repository, {"headrace.yml": PIPELINE})
    return fleet.client(repository)


def at(fleet: Fleet) -> Daemon | None:
    """The replica that the agent is at."""
    for each in fleet.replicas:
        with contextlib.suppress(OSError):  # one that is ending, or has ended
            if each.process.poll() is None and metric(each, "headrace_sessions") == 1:
                return each
    return None


def elsewhere(fleet: Fleet, first: Daemon) -> bool:
    return at(fleet) not in (None, first)


def test_a_replica_that_ends_leaves_its_agent_to_another_and_no_job_notices(
    fleet: Fleet, side: Daemon, line: CommandLine
) -> None:
    """A rolling restart happens in the middle of the day, and so does a crash. A log is followed at any replica:
    behind a load balancer nobody knows where the agent is."""
    begun = line("run", "--detach", "--json")
    assert begun.code == 0, begun.err
    _hear_everywhere(fleet, line)
    for how in (signal.SIGTERM, signal.SIGKILL):
        wait_for(lambda: "line 1\n" in line("logs").out, "the job writes", 60)
        first = at(fleet)
        assert first is not None
        first.process.send_signal(how)
        since = time.monotonic()
        wait_for(functools.partial(elsewhere, fleet, first), "the agent is elsewhere", 10)
        took = time.monotonic() - since
        assert took < (2.5 if how is signal.SIGTERM else 5.0), f"it took {took:.1f} s"
        first.process.wait(30)
        first.start()
    ended = line("logs", "-f", seconds=120)
    assert [each for each in ended.out.splitlines() if each.startswith("line ")] == EXPECTED.splitlines()
    (job,) = json.loads(line("show", "--json").out)["jobs"]
    assert (job["state"], len(job["attempts"])) == ("passed", 1)


def test_an_agent_that_dies_with_the_replica_that_watches_it_is_given_up_within_two_leases(
    make_fleet: Callable[..., Fleet], daemons: list[Daemon]
) -> None:
    """Another replica has to see first that nobody watches any more, and begins to look only then."""
    fleet = make_fleet(2, **SHORT)
    first, second = (agent(fleet.folder / name, fleet.replicas[0], name) for name in "ab")
    for each in (first, second):
        each.arguments |= {"url": fleet.addresses, "slots": "1"}
        daemons.append(each)
    first.start()
    job = Counting("job", 600)
    with User(fleet.replicas[0], fleet.addresses) as user:
        run = user.begin([job])
        user.until_it_writes(run, job)
        second.start()
        watching = fleet.replicas[0]  # it was there first
        killed = time.time()
        for each in (first, watching):
            each.process.kill()
            each.process.wait()
        user.until_over(run)
        assert user.states(run, job.name) == ["lost", "passed"]
        again = user.attempts(run, job.name)[1].leased_at
        assert again is not None
        assert again.timestamp() - killed < 2 * LEASE_S + BUSY_S
    first.start()  # what it left is removed
    wait_for(lambda: not supervisors(first.folder), "nothing is left of the lost attempt", 20)


def _hear_everywhere(fleet: Fleet, line: CommandLine) -> None:
    tails = [line.start("logs", "-f", HEADRACE_URL=each.facts["address"]) for each in fleet.replicas]
    for tail in tails:
        assert tail.stdout is not None
        while not tail.stdout.readline().startswith("line"):
            assert tail.poll() is None, "it ended before the job wrote anything"
    assert '"state": "running"' in line("show", "--json").out, "lines come while the job runs"
    for tail in tails:
        tail.kill()
        tail.communicate()
