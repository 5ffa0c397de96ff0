"""The wire of the simulation: one stream between an agent and a replica, in memory, that can do what wires do."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from agent.wire import WireClosed
from headrace.v1 import log_pb2
from tests.chaos.simulation.freezing import Process

KEEPALIVE = 15.0
"""Seconds after which a coordinator notices that nobody is at the other end."""


class _End:
    """Nothing more comes, in good order."""


Item = Message | WireClosed | _End


class Clog:
    """Nodes that nothing reaches or leaves for now: what is under way waits, in order, and is not lost."""

    def __init__(self) -> None:
        self._closed: set[str] = set()
        self._waiting: list[tuple[tuple[str, str], Callable[[], None]]] = []

    def close(self, name: str) -> None:
        self._closed.add(name)

    def open(self, name: str) -> None:
        self._closed.discard(name)
        waiting, self._waiting = self._waiting, []
        for ends, arrive in waiting:
            self.passing(ends, arrive)

    def open_all(self) -> None:
        for name in list(self._closed):
            self.open(name)

    def holds(self, *ends: str) -> bool:
        return not self._closed.isdisjoint(ends)

    def passing(self, ends: tuple[str, str], arrive: Callable[[], None]) -> None:
        """Lets something arrive, now or when both ends are free."""
        if self.holds(*ends):
            self._waiting.append((ends, arrive))
        else:
            arrive()


class Direction:
    """Messages in order, each after a delay of its own. `lost`: they go nowhere."""

    def __init__(self, rng: random.Random, clog: Clog, ends: tuple[str, str]) -> None:
        self._clog, self._ends = clog, ends
        self.slow = 0.02
        self.lost = False
        self._rng = rng
        self._last = 0.0
        self._queue: asyncio.Queue[Item] = asyncio.Queue()

    def put(self, item: Item) -> None:
        loop = asyncio.get_running_loop()
        if not self.lost:
            # Timers of the same moment fire in any order: a stream keeps its own.
            self._last = max(self._last + 1e-6, loop.time() + self._rng.uniform(0.0005, self.slow))
            loop.call_at(self._last, self._clog.passing, self._ends, functools.partial(self._arrive, item))

    def _arrive(self, item: Item) -> None:
        if not self.lost:
            self._queue.put_nowait(item)

    def break_off(self, end: WireClosed) -> None:
        """The end is seen at once, before what is under way."""
        self.lost = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(end)

    async def get(self) -> Item:
        item = await self._queue.get()
        if isinstance(item, WireClosed | _End):
            self._queue.put_nowait(item)  # whoever reads on sees it again
        return item


class Line:
    """Both ends of one stream, of a session or of logs."""

    def __init__(self, rng: random.Random, agent: str, replica: str, say: Callable[[str], None], clog: Clog) -> None:
        self.agent, self.replica = agent, replica
        self._say = say
        self.up, self.down = Direction(rng, clog, (agent, replica)), Direction(rng, clog, (agent, replica))
        self.over = False
        self.server: asyncio.Task[None] | None = None
        self.host = Process()
        """The coordinator's process."""
        self.pings = False
        """Whether the agent's end is told when the other one is silent."""
        self._rng = rng

    # The agent's end: agent.wire.Wire

    async def send(self, message: Message) -> None:
        await asyncio.sleep(0)
        if self.over:
            raise WireClosed(grpc.StatusCode.UNAVAILABLE, "the connection was cut")
        self._say(f"{self.agent} > {self.replica}: {_short(message)}")
        self.up.put(type(message).FromString(message.SerializeToString()))

    async def receive(self) -> Any:
        item = await self.down.get()
        if isinstance(item, WireClosed):
            raise item
        return item

    async def close(self) -> None:
        self.up.put(_End())
        self.over = True
        self._noticed_in(KEEPALIVE)

    # The coordinator's end

    async def requests(self) -> AsyncIterator[Any]:
        while True:
            item = await self.up.get()
            if isinstance(item, WireClosed | _End):
                return
            yield item

    def answer(self, message: Message) -> None:
        self._say(f"{self.agent} < {self.replica}: {_short(message)}")
        self.down.put(type(message).FromString(message.SerializeToString()))

    def end(self, code: grpc.StatusCode, sentence: str) -> None:
        """The coordinator ends the stream with a status."""
        self.down.put(WireClosed(code, sentence))

    # What can happen to it

    def cut(self) -> None:
        """Both ends see at once that it is over."""
        self.over = True
        self.down.break_off(WireClosed(grpc.StatusCode.UNAVAILABLE, "the connection was cut"))
        self.up.lost = True
        if self.server is not None:
            self.server.cancel()

    def lose(self, *, up: bool, down: bool) -> None:
        """Half open: what is sent is lost, and only time tells."""
        self.up.lost |= up
        self.down.lost |= down
        self._noticed_in(KEEPALIVE)
        if self.pings:
            asyncio.get_running_loop().call_later(KEEPALIVE, self._found_silent)

    def _found_silent(self) -> None:
        """The agent's end asks too; a session does not wait for that, its heartbeats are quicker."""
        self.over = True
        self.down.break_off(WireClosed(grpc.StatusCode.UNAVAILABLE, "the other end is silent"))

    def _noticed_in(self, seconds: float) -> None:
        """The coordinator cancels the call; one that is frozen does so a little after it runs again, and in between it
        takes what has arrived meanwhile."""
        if self.server is not None:
            asyncio.get_running_loop().call_later(seconds, self._notice, self.server)

    def _notice(self, server: asyncio.Task[None]) -> None:
        if self.host.frozen:
            self.host.when_thawed(functools.partial(self._noticed_in, self._rng.uniform(0, 0.2)))
        else:
            server.cancel()


def _short(message: Message) -> str:
    """A message as a line of the trace."""
    match message:
        case log_pb2.AppendRequest():
            return " ".join(["append", *map(_records, message.batches)])
        case log_pb2.AppendResponse():
            return " ".join(["durable", *(f"{each.attempt_id}:{each.sequence}" for each in message.durable)])
    kind = str(message.WhichOneof("message"))
    text = str(getattr(message, kind)).replace("\n", " ")
    return f"{kind} {text}".replace("attempt_id", "attempt")[:200]


def _records(batch: log_pb2.RecordBatch) -> str:
    numbers = [each.sequence for each in batch.records]
    return f"{batch.attempt_id}:{numbers[0]}-{numbers[-1]}" if numbers else f"{batch.attempt_id}:"
