"""Agents of another time, over the real wire."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata

import pytest
from packaging.version import Version

from agent.clock import SystemClock
from agent.connection import Connection, Ending
from agent.session import Outbox
from agent.wire import Access, SessionWire, sessions
from tests.integration.coordinator.processes import Daemon, coordinator, none_left, token
from tests.unit.agent.simulated import SleepingJobs, Told, identity

pytestmark = pytest.mark.timeout(120)

OURS = metadata.version("headrace")
BASE = Version(OURS).base_version


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = coordinator(tmp_path_factory.mktemp("versions") / "c")
    daemon.start()
    yield daemon
    daemon.end()
    assert none_left(daemon.folder, 10) == []


class Counting:
    """Counts how often it was asked to dial."""

    def __init__(self, access: Access) -> None:
        self.dialed = 0
        self._dialer = sessions(lambda _: access)

    async def dial(self, address: str) -> SessionWire:
        self.dialed += 1
        return await self._dialer.dial(address)


async def knocking(running: Daemon, version: str, seconds: float) -> tuple[Ending | None, int, Told]:
    """An agent of that version at the coordinator's door, for so long at most; how it ended, and its tries."""
    credential, rng, told, outbox = token(running, "agent"), random.Random(1), Told(), Outbox()
    dialer = Counting(Access(credential, secure=False, roots=None))
    connection = Connection(
        dialer,
        [running.facts["address"]],
        replace(identity(1), version=version, name=f"agent {version}", instance_id=f"i {version}"),
        SleepingJobs(outbox, 1, {}, rng),
        outbox,
        clock=SystemClock(),
        rng=rng,
        listener=told,
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    return await connection.run(stop), dialer.dialed, told


async def test_an_agent_of_a_newer_major_ends_with_the_sentence_and_does_not_knock_again(running: Daemon) -> None:
    """It would fill the log of a coordinator that can do nothing for it."""
    newer = f"{Version(OURS).major + 1}.0"
    ending, dialed, _ = await knocking(running, newer, 30)
    assert ending is not None
    assert ending.exit_code == 3
    assert f"the agent is version {newer}, which this coordinator of version {OURS} does not know" in ending.sentence
    assert "upgrade the coordinator first" in ending.sentence
    assert dialed == 1


@pytest.mark.parametrize(
    "version", [OURS, *(f"{BASE}{suffix}" for suffix in ("+of.my.own", ".dev1+g1234567", ".post2"))]
)
async def test_an_agent_built_by_its_owner_is_served(running: Daemon, version: str) -> None:
    """A local build is a build."""
    ending, dialed, told = await knocking(running, version, 1.0)
    assert (ending, dialed) == (None, 1)
    assert len(told.sessions) == 1


async def test_what_says_no_version_is_sent_away(running: Daemon) -> None:
    """Nobody knows what it speaks."""
    ending, _, _ = await knocking(running, "", 30)
    assert ending is not None
    assert "the agent says version '', which is none" in ending.sentence
