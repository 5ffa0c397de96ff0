"""A fleet that comes back at once, in virtual time: the real session code of both sides over a wire in memory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence

import grpc
import pytest

from agent.connection import Connection
from agent.session import Identity, Outbox
from agent.wire import WireClosed
from coordinator.api.agent_service import AgentSessions
from coordinator.core.bucket import Rate
from coordinator.dispatch.dispatcher import Timing
from coordinator.dispatch.reception import LONGEST_AWAY_HOLDING_S, LONGEST_AWAY_S, Reception, TurnedAway
from coordinator.errors import CoordinatorError, TooLate
from headrace.v1 import agent_pb2 as pb
from tests.harness.virtual_time import VirtualClock, simulate
from tests.unit.agent.simulated import SleepingJobs, Told
from tests.unit.dispatch.test_dispatch import Replica

AGENTS = 2_000
RATE = Rate(100.0, 200.0)


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def reception(clock: Clock, *, rate: Rate = RATE, at_once: int = 1_000) -> tuple[Reception, list[None]]:
    away: list[None] = []
    return Reception(rate, at_once=at_once, clock=clock, turned_away=lambda: away.append(None)), away


def said(where: Reception, *, holds: bool = False) -> float:
    """How long a Hello that comes now has to wait; 0: it was let in."""
    try:
        with where.hello(holds=holds):
            return 0.0
    except TurnedAway as away:
        return away.seconds


class Wire:
    """Both ends of a session, without delay."""

    def __init__(self, sessions: AgentSessions) -> None:
        self.up: asyncio.Queue[pb.SessionRequest] = asyncio.Queue()
        self.down: asyncio.Queue[pb.SessionResponse | WireClosed] = asyncio.Queue()
        self._task = asyncio.create_task(self._serve(sessions))

    async def _requests(self) -> AsyncIterator[pb.SessionRequest]:
        while True:
            yield await self.up.get()

    async def _serve(self, sessions: AgentSessions) -> None:
        over = WireClosed(grpc.StatusCode.OK, "over")
        try:
            async with contextlib.aclosing(sessions.serve(self._requests())) as responses:
                async for each in responses:
                    self.down.put_nowait(each)
        except CoordinatorError as error:
            over = WireClosed(error.code, str(error))
        self.down.put_nowait(over)

    async def send(self, message: pb.SessionRequest) -> None:
        self.up.put_nowait(message)

    async def receive(self) -> pb.SessionResponse:
        message = await self.down.get()
        if isinstance(message, WireClosed):
            raise message
        return message

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


class Herd:
    """Agents that all dial at the same moment. `dialled`: where and when."""

    def __init__(self, replicas: Mapping[str, AgentSessions], rng: random.Random) -> None:
        self.replicas, self.rng = replicas, rng
        self.dialled: list[tuple[str, float]] = []
        self.told = Told()
        self.stop = asyncio.Event()

    async def dial(self, address: str) -> Wire:
        self.dialled.append((address, asyncio.get_running_loop().time()))
        return Wire(self.replicas[address])

    def start(self, agents: int) -> list[asyncio.Task[object]]:
        return [asyncio.create_task(self._agent(number)) for number in range(agents)]

    async def _agent(self, number: int) -> None:
        outbox = Outbox()
        await Connection(
            self,
            list(self.replicas),
            Identity(f"instance-{number:08}", f"agent-{number}", "1", "default", 1),
            SleepingJobs(outbox, 1, {}, self.rng),
            outbox,
            clock=VirtualClock(),
            rng=self.rng,
            listener=self.told,
        ).run(self.stop)


def test_thousands_of_agents_that_come_at_once_are_all_connected_soon_and_never_come_as_a_herd_again() -> None:
    """Let in at the rate, told a moment each: the first second is the only one that sees them all."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing(heartbeat=60.0, lease=200.0)).running() as replica:
            loop = asyncio.get_running_loop()
            where = Reception(RATE, at_once=100, clock=loop.time, turned_away=lambda: None)
            herd = Herd({"a:1": AgentSessions(replica.dispatch, where, version="1")}, rng)
            agents = herd.start(AGENTS)
            while replica.dispatch.sessions < AGENTS:
                await asyncio.sleep(0.5)
                assert loop.time() < 2 * AGENTS / RATE.per_s, f"{replica.dispatch.sessions} are connected"
            assert len(herd.told.sessions) == AGENTS
            seconds = Counter(int(when) for _, when in herd.dialled)
            assert seconds[0] >= AGENTS
            assert max(count for second, count in seconds.items() if second) <= 2 * RATE.per_s
            assert len(herd.dialled) < 3 * AGENTS
            herd.stop.set()
            await asyncio.gather(*agents)

    simulate(main, 1)


def test_an_agent_tries_the_other_address_at_once_and_leaves_each_alone_for_as_long_as_it_was_told() -> None:
    """One that is sent away everywhere would otherwise go round the replicas as fast as it can."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing()).running() as replica:
            loop = asyncio.get_running_loop()
            rate = Rate(1 / 30, 2.0)
            full = Reception(rate, at_once=0, clock=loop.time, turned_away=lambda: None)
            open_again = Reception(rate, at_once=1, clock=loop.time, turned_away=lambda: None)
            replicas = {name: AgentSessions(replica.dispatch, full, version="1") for name in ("a:1", "b:2")}
            herd = Herd(replicas, rng)
            (agent,) = herd.start(1)
            await asyncio.sleep(100)
            (first, at_first), (second, at_second), *later = herd.dialled
            assert {first, second} == {"a:1", "b:2"}
            assert at_second - at_first < 1
            assert later[0][1] - at_first >= 30
            assert all(when - before >= 30 for where in replicas for before, when in pairs_of(herd.dialled, where))
            replicas["b:2"] = AgentSessions(replica.dispatch, open_again, version="1")
            herd.replicas = replicas
            await asyncio.sleep(100)
            assert [address for address, _ in herd.told.sessions] == ["b:2"]
            herd.stop.set()
            await agent

    simulate(main, 1)


def pairs_of(dialled: Sequence[tuple[str, float]], where: str) -> list[tuple[float, float]]:
    times = [when for address, when in dialled if address == where]
    return list(itertools.pairwise(times))


def test_agents_that_hold_attempts_are_let_in_before_those_that_wait_for_work() -> None:
    """Their leases run while they wait; an idle agent loses nothing."""
    where, away = reception(Clock())
    idle = [said(where) for _ in range(1_000)]
    assert idle.count(0.0) == RATE.burst / 2
    assert [said(where, holds=True) for _ in range(100)] == [0.0] * 100
    assert len(away) == 900
    assert 0 < said(where, holds=True) <= 2 / RATE.per_s
    assert max(said(where, holds=True) for _ in range(5_000)) <= LONGEST_AWAY_HOLDING_S


def test_whoever_is_turned_away_is_told_a_moment_of_its_own() -> None:
    """The same wait for all would bring them all back together; and a wait without end is none."""
    where, _ = reception(Clock())
    waits = [wait for wait in (said(where) for _ in range(2_000)) if wait]
    assert waits == sorted(waits)
    assert min(later - wait for wait, later in itertools.pairwise(waits)) == pytest.approx(1 / RATE.per_s)
    assert max(said(where) for _ in range(20_000)) == LONGEST_AWAY_S


def test_no_more_hellos_are_under_way_than_allowed() -> None:
    """A slow database gets no longer a queue than it can work off before the agents give up."""
    where, away = reception(Clock(), at_once=2)
    with where.hello(holds=True), where.hello(holds=True):
        assert said(where, holds=True) > 0
    assert said(where, holds=True) == 0
    assert len(away) == 1


def test_a_session_whose_hello_never_comes_ends_by_itself() -> None:
    """A stream that is opened and says nothing costs memory for as long as it is there."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing()).running() as replica:

            async def silent() -> AsyncIterator[pb.SessionRequest]:
                await asyncio.Event().wait()
                yield pb.SessionRequest()

            sessions = AgentSessions(replica.dispatch, reception(Clock())[0], version="1")
            with pytest.raises(TooLate, match="no Hello came within 10 s"):
                await anext(sessions.serve(silent()))
            assert asyncio.get_running_loop().time() == 10

    simulate(main, 1)
