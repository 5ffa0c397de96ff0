"""PostgreSQL cut, stalled, shot and started again below real replicas with real agents and running jobs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from coordinator.store.embedded import EmbeddedPostgres
from tests.chaos.conftest import LONG, Fleet
from tests.chaos.proxy import Proxy
from tests.chaos.work import SHORT, Counting, User
from tests.harness.postgres import dsn_at, socket_of
from tests.harness.waiting import wait_for
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon, agent, metric, share_secrets
from tests.integration.metrics.prometheus import get

pytestmark = [pytest.mark.timeout(400), pytest.mark.root]

TIMES = {} if LONG else {"HEADRACE_LEASE_S": "15", "HEADRACE_HEARTBEAT_S": "1"}
"""A replica is not ready after 10 s without a commit, which a lease has to outlast."""
AWAY_S = 90.0 if LONG else 17.0
"""Longer than the lease, and how many seconds a job counts that begins before."""
SILENCE_S = 35.0 if LONG else 7.0
"""The same for the leases of the other test."""
LINES = int(10 * AWAY_S) + 50


@contextlib.asynccontextmanager
async def postgres_behind(folder: Path, *proxies: Proxy) -> AsyncIterator[EmbeddedPostgres]:
    """A server that is reached through these proxies, from now on."""
    async with EmbeddedPostgres(folder) as postgres:
        for each in proxies:
            each.target = socket_of(postgres.dsn)
        yield postgres


@pytest.fixture
def links() -> Iterator[tuple[Proxy, Proxy]]:
    """Two ways to the database."""
    with Proxy("") as first, Proxy("") as second:
        yield first, second


def replicas(folder: Path, make: Make, times: Mapping[str, str], *dsns: str) -> Fleet:
    """One for each address of the database, ready."""
    made: list[Daemon] = []
    for number, dsn in enumerate(dsns):
        blobs = (folder / "blobs").as_uri()
        each = make(f"r{number}", HEADRACE_DATABASE_URL=dsn, HEADRACE_BLOB_URL=blobs, **times)
        if made:
            share_secrets(made[0].folder, each.folder)
        each.start()
        made.append(each)
    return Fleet(folder, made)


def agents(fleet: Fleet, daemons: list[Daemon], *names: str) -> None:
    """Agents that know all replicas, each with a pool of its own, connected."""
    for name in names:
        made = agent(fleet.folder / name, fleet.replicas[0], name)
        made.arguments |= {"url": fleet.addresses, "pool": name}
        daemons.append(made)
        made.start()


def ready(of: Daemon) -> bool:
    return get(f"http://{of.facts['http']}/readyz")[0] == 200


async def test_a_replica_that_alone_is_cut_off_from_the_database_hands_its_agents_over(
    links: tuple[Proxy, Proxy], make_coordinator: Make, daemons: list[Daemon], tmp_path: Path
) -> None:
    """It stays cut off for longer than a lease (90 s in the long form): its agents are at the other one long before,
    and no attempt is lost. When the database is there again it serves by itself."""
    async with postgres_behind(tmp_path / "pg", *links) as postgres:
        fleet = replicas(tmp_path, make_coordinator, TIMES, *(dsn_at(postgres.dsn, each.address) for each in links))
        agents(fleet, daemons, "a", "b", "c")
        work = [Counting(name, LINES, pool=name) for name in "abc"]
        counts = [metric(each, "headrace_sessions") for each in fleet.replicas]
        assert sum(counts) == len(work)
        alone, other = (0, 1) if counts[0] else (1, 0)
        with User(fleet.replicas[other]) as user:
            run = user.begin(work)
            user.until_it_writes(run, *work)
            links[alone].stall()
            other_sessions = lambda: metric(fleet.replicas[other], "headrace_sessions") == len(work)  # noqa: E731
            wait_for(other_sessions, "all agents are at the other replica", 20)
            wait_for(lambda: not ready(fleet.replicas[alone]), "it says that it serves nobody", 20)
            with contextlib.suppress(AssertionError):  # nothing is to happen
                wait_for(lambda: user.state(run) != "running", "something happens", AWAY_S - 11)
            links[alone].resume()
            wait_for(lambda: ready(fleet.replicas[alone]), "it serves again", 30)
            user.until_over(run, 200)
            for each in work:
                user.judge(run, each, ["passed"])


async def test_a_database_that_is_cut_stalled_and_shot_costs_no_attempt(
    links: tuple[Proxy, Proxy], make_coordinator: Make, daemons: list[Daemon], tmp_path: Path
) -> None:
    """For longer than a lease nothing can be committed; then the server is shot (`pg_ctl stop -m immediate`) and comes
    back. Jobs that ended meanwhile are passed, others have not noticed, new ones are given out by themselves."""
    async with contextlib.AsyncExitStack() as up:
        life = await up.enter_async_context(contextlib.AsyncExitStack())
        postgres = await life.enter_async_context(postgres_behind(tmp_path / "pg", *links))
        fleet = replicas(
            tmp_path, make_coordinator, {} if LONG else SHORT, *(dsn_at(postgres.dsn, each.address) for each in links)
        )
        agents(fleet, daemons, "a", "b")
        ends, goes_on = Counting("ends", 60, pool="a"), Counting("on", int(10 * SILENCE_S) + 80, pool="b")
        with User(fleet.replicas[0], fleet.addresses) as user:
            run = user.begin([ends, goes_on])
            user.until_it_writes(run, ends, goes_on)
            for each in links:
                each.cut()
            user.until_it_writes(run, ends, goes_on)
            acknowledged = {each: user.log(run, each.name) for each in (ends, goes_on)}
            for each in links:
                each.stall()
            with contextlib.suppress(AssertionError):  # more than a lease: nothing is to happen, and nobody to be told
                wait_for(lambda: any(each.process.poll() for each in daemons), "somebody ends", SILENCE_S)
            os.kill(postgres.pid, signal.SIGQUIT)
            await postgres.ended()
            await life.aclose()
            for each in links:
                each.resume()
            wait_for(lambda: not any(map(ready, fleet.replicas)), "they say that they serve nobody", 15)
            await life.enter_async_context(postgres_behind(tmp_path / "pg", *links))
            for each in acknowledged:
                wait_for(
                    lambda of=each: user.log(run, of.name).startswith(acknowledged[of]),  # type: ignore[misc]
                    "what was acknowledged is there",
                    20,
                )
            after = Counting("after", 5, pool="a")
            again = user.begin([after])
            user.until_over(again, 30)
            for number, job in ((again, after), (run, ends), (run, goes_on)):
                user.until_over(number, 200)
                user.judge(number, job, ["passed"])
        for daemon in reversed(daemons):
            daemon.end()
