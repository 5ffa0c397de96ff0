"""Clocks that step by an hour: no lease, no token, no signed address goes by them."""

from __future__ import annotations

import functools
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from coordinator.store.embedded import EmbeddedPostgres, Tools
from headrace.v1 import blob_pb2, blob_pb2_grpc
from tests.chaos.clock import HOUR, SteppedClock
from tests.chaos.conftest import Fleet, long_form
from tests.chaos.work import SHORT, Counting, User
from tests.harness.waiting import wait_for
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon, agent, bearer, metric, token
from tests.integration.metrics.prometheus import get

pytestmark = [pytest.mark.timeout(240), pytest.mark.root]

PLAIN = Counting("plain", 200)
DEPLOYMENT = Counting("deployment", 200)
STAGING = "name: staging, environment: staging"
MAKER = """
name: maker
stages:
  - {name: make, jobs: {make: {checkout: false, steps: [{run: 'echo made > made.txt'}], artifacts: [{name: made, paths: [made.txt]}]}}}
"""  # noqa: E501


def readyz(of: Daemon) -> str:
    """What the page says, which has to be true."""
    code, text = get(f"http://{of.facts['http']}/readyz")
    assert code == 200, text
    return text


def test_clocks_that_step_at_a_replica_and_at_an_agent_change_nothing_but_what_is_said_of_them(
    make_fleet: Callable[..., Fleet], daemons: list[Daemon], tmp_path: Path
) -> None:
    """A job and a deployment run through steps of an hour, ahead and back and behind, each of them far longer than the
    lease. An address that was signed before a step is good after it. The replica names the skew and serves."""
    fleet = make_fleet(1, **SHORT)
    (replica,) = fleet.replicas
    clocks = {}
    replica.terminate()
    for name in ("replica", "agent"):
        (tmp_path / name).mkdir()
        clocks[name] = SteppedClock(tmp_path / name)
    replica.environment |= clocks["replica"].environment
    replica.start()
    side = agent(fleet.folder / "a", replica, "a", **clocks["agent"].environment)
    side.arguments["slots"] = "3"
    daemons.append(side)
    side.start()
    with User(replica) as user:
        user.until_over(user.start(MAKER))
        assert user.state(1) == "passed"
        runs = {PLAIN: user.begin([PLAIN]), DEPLOYMENT: user.begin([DEPLOYMENT], STAGING)}
        for job, run in runs.items():
            user.until_it_writes(run, job)
        assert readyz(replica) == "ready\n"
        for step in (HOUR, -HOUR):
            url = _signed(replica)
            for clock in clocks.values():
                clock.step(step)
            assert urllib.request.urlopen(url, timeout=10).read() == b"made\n", "signed before the step"
            where = "ahead of" if step > 0 else "behind"
            assert f"ready; the clock of this machine is {HOUR} s {where} the database's" in readyz(replica)
            assert abs(metric(replica, "headrace_clock_skew_seconds") - step) < 5
            assert urllib.request.urlopen(_signed(replica), timeout=10).read() == b"made\n", "signed after it"
            for job, run in runs.items():
                user.until_it_writes(run, job)
        again = user.start(MAKER)
        user.until_over(again)
        assert user.state(again) == "passed", "an agent's upload, an hour behind"
        for clock in clocks.values():
            clock.step(0)
        for job, run in runs.items():
            user.until_over(run)
            user.judge(run, job, ["passed"])
    assert readyz(replica) == "ready\n"
    assert metric(replica, "headrace_sessions") == 1


def _signed(of: Daemon) -> str:
    """The address of what the first run made, as a client gets it."""
    with grpc.insecure_channel(of.facts["address"]) as channel:
        request = blob_pb2.DownloadArtifactRequest(run_id=1, name="made")
        metadata = bearer(token(of, "client"))
        answer = blob_pb2_grpc.BlobServiceStub(channel).DownloadArtifact(request, metadata=metadata, timeout=20)
    return str(answer.transfers[0].url)


@long_form
async def test_a_database_whose_clock_steps_loses_no_attempt(
    make_coordinator: Make, daemons: list[Daemon], tmp_path: Path
) -> None:
    """Leases are counted, not timed: an hour forward in the database ends none, an hour back keeps no dead one."""
    (tmp_path / "pg").mkdir()
    clock = SteppedClock(tmp_path)
    async with EmbeddedPostgres(tmp_path / "pg", tools=Tools(setpriv=clock.wrapped("setpriv"))) as postgres:
        of = make_coordinator("c", HEADRACE_DATABASE_URL=postgres.dsn, **SHORT)
        of.start()
        first, second = (agent(tmp_path / name, of, name) for name in "ab")
        for each, pool in ((first, "default"), (second, "other")):
            each.arguments["pool"] = pool
            daemons.append(each)
            each.start()
        with User(of) as user:
            runs = {PLAIN: user.begin([PLAIN]), DEPLOYMENT: user.begin([DEPLOYMENT], STAGING)}
            for job, run in runs.items():
                user.until_it_writes(run, job)
            for step in (HOUR, -HOUR):
                clock.step(step)
                told = f"{HOUR} s {'behind' if step > 0 else 'ahead of'} the database's"
                wait_for(functools.partial(_tells, of, told), "the skew is named", 15)
                other = Counting("other", 5, pool="other")
                run = user.begin([other])
                user.until_over(run)
                user.judge(run, other, ["passed"])
            second.process.kill()
            wait_for(lambda: metric(of, 'headrace_agents{state="gone"}') == 1, "a dead agent is seen as ever", 20)
            for job, run in runs.items():
                user.until_over(run)
                user.judge(run, job, ["passed"])
        first.terminate()
        of.terminate()


def _tells(of: Daemon, sentence: str) -> bool:
    return sentence in readyz(of)
