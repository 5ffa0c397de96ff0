"""Thousands of connections that say nothing, on all ports at once: they are closed, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import select
import socket
import statistics
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from importlib import metadata

import grpc.aio
import psutil
import pytest

from headrace.client import Client
from headrace.v1 import agent_pb2 as pb
from headrace.v1 import agent_pb2_grpc
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon, bearer, token

pytestmark = pytest.mark.timeout(120)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""Of HTTP/2, with settings that set nothing."""
HALF = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-"
CROWDS = {"address": ((b"", 2_000), (PREFACE, 1_000)), "http": ((b"", 750), (HALF, 750)), "blobs": ((HALF, 1_500),)}
"""By port, what so many say before they fall silent."""
ALL = sum(count for crowd in CROWDS.values() for _, count in crowd)
CLOSED_WITHIN_S = 30.0
MEMORY_EACH = 32 << 10
"""Bytes of the coordinator that a silent connection may cost."""
CALM_AT_LEAST_S = 0.05
RATIO = 8.0
"""What others may lose of their latency, on a machine where the crowd and the coordinator share a core."""


class Crowd:
    """Silent connections to a coordinator, and how many of them it has closed."""

    def __init__(self, of: Daemon) -> None:
        self._of = of
        self._process = psutil.Process(of.process.pid)
        self._poll = select.epoll()
        self._open: dict[int, socket.socket] = {}
        self.most_files = 0
        self.most_memory = 0

    def __len__(self) -> int:
        return len(self._open)

    def look(self) -> None:
        """What the coordinator has in hand now."""
        self.most_files = max(self.most_files, self._process.num_fds())
        self.most_memory = max(self.most_memory, self._process.memory_info().rss)

    def gather(self) -> None:
        for port, crowd in CROWDS.items():
            host, _, number = self._of.facts[port].rpartition(":")
            for first, count in crowd:
                for _ in range(count):
                    connection = socket.create_connection((host, int(number)), timeout=30)
                    connection.sendall(first)
                    self._open[connection.fileno()] = connection
                    self._poll.register(connection, select.EPOLLRDHUP)

    def disperse(self, within: float) -> None:
        """Waits until the other side has closed each of them, or for so many seconds."""
        end = time.monotonic() + within
        while self._open and time.monotonic() < end:
            self.look()
            for number, _ in self._poll.poll(0.1):
                self._forget(number)

    def end(self) -> None:
        for number in list(self._open):
            self._forget(number)
        self._poll.close()

    def _forget(self, number: int) -> None:
        self._poll.unregister(number)
        self._open.pop(number).close()


class Honest:
    """An agent, a client and a probe of `/readyz`, and how long each is kept waiting."""

    def __init__(self, session: grpc.aio.StreamStreamCall, person: Client, of: Daemon) -> None:
        self._session = session
        self._person = person
        self._of = of
        self._beats = 0

    async def wait(self, until: asyncio.Future[None] | None = None) -> dict[str, list[float]]:
        """Seconds of each thing: ten times, or until something is over."""
        took: dict[str, list[float]] = {}
        while len(took.get("beat", ())) < 10 or (until is not None and not until.done()):
            for name, ask in (
                ("beat", self._beat()), ("call", self._person.runs(limit=5)), ("new", self._anew()),
                ("probe", asyncio.to_thread(self._probe)),
            ):  # fmt: skip
                began = time.monotonic()
                await ask
                took.setdefault(name, []).append(time.monotonic() - began)
            await asyncio.sleep(0.05)
        return took

    async def _beat(self) -> None:
        self._beats += 1
        await self._session.write(pb.SessionRequest(heartbeat=pb.Heartbeat(sequence=self._beats)))
        answer = await self._session.read()
        assert answer.heartbeat_answer.sequence == self._beats

    async def _anew(self) -> None:
        """Somebody who connects now."""
        async with Client(self._of.facts["address"], token(self._of, "client")) as another:
            await another.runs(limit=1)

    def _probe(self) -> None:
        with urllib.request.urlopen(f"http://{self._of.facts['http']}/readyz", timeout=20) as page:
            assert page.status == 200


@contextlib.asynccontextmanager
async def honest(of: Daemon) -> AsyncIterator[Honest]:
    address = of.facts["address"]
    async with Client(address, token(of, "client")) as person, grpc.aio.insecure_channel(address) as channel:
        session = agent_pb2_grpc.AgentServiceStub(channel).Session(metadata=bearer(token(of, "agent")))
        version = metadata.version("headrace")
        hello = pb.Hello(name="a", instance_id="i", version=version, pool="default", slots=1, credit=1)
        await session.write(pb.SessionRequest(hello=hello))
        assert (await session.read()).HasField("welcome")
        yield Honest(session, person, of)
        session.cancel()


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process has the other end of each connection."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_files")
def test_thousands_of_silent_connections_are_closed_and_others_keep_their_latency(make_coordinator: Make) -> None:
    """A scanner, a broken balancer, or somebody who means harm: without a credential nobody can stop a fleet."""
    of = make_coordinator()
    of.start()

    async def main() -> None:
        async with honest(of) as people:
            calm = await people.wait()
            crowd = Crowd(of)
            crowd.look()
            memory, files = crowd.most_memory, crowd.most_files
            try:
                await asyncio.to_thread(crowd.gather)
                over = asyncio.ensure_future(asyncio.to_thread(crowd.disperse, CLOSED_WITHIN_S))
                slow = await people.wait(over)
                assert not len(crowd), f"{len(crowd)} of {ALL} are still open"
            finally:
                crowd.end()
            assert crowd.most_files > files + 0.9 * ALL, "they were never all there"
            grown = crowd.most_memory - memory
            assert grown < ALL * MEMORY_EACH, f"{grown / ALL:,.0f} bytes each"
            for name, seconds in calm.items():
                before, now = statistics.median(seconds), statistics.median(slow[name])
                assert now < RATIO * max(before, CALM_AT_LEAST_S), (name, before, now)
            assert psutil.Process(of.process.pid).num_fds() < files + 50
            assert "Too many open files" not in of.said
            assert "Traceback" not in of.said

    asyncio.run(main())
