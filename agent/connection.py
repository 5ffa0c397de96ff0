"""Keeps one session alive: dials one address after another, backs off, and knows which refusals are final."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import grpc

from agent.clock import Clock
from agent.session import GoneAway, Identity, Jobs, Outbox, Session
from agent.wire import SessionDialer, WireClosed

FIRST_PAUSE = 0.3
LONGEST_PAUSE = 8.0
"""Seconds: well below the lease, so that one lost try costs no attempt."""
LONGEST_AWAY = 60.0
"""Seconds that an address which sent us away is left alone, at most, while no attempt is held."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why the agent itself ends. `exit_code` as in the command line's contract; one sentence for a person."""

    exit_code: int
    sentence: str


FINAL: Mapping[grpc.StatusCode, Ending] = MappingProxyType(
    {
        # The token is wrong: asking again only fills the coordinator's log.
        grpc.StatusCode.UNAUTHENTICATED: Ending(
            3,
            "The coordinator does not accept this agent's token: set HEADRACE_TOKEN, or HEADRACE_TOKEN_FILE to a file"
            " that holds it, to what stands in the coordinator's tokens/agent",
        ),
        # An operator has barred the agent or its pool, or its version cannot be served: only a person can mend it.
        grpc.StatusCode.PERMISSION_DENIED: Ending(3, "The coordinator does not take this agent"),
        # Two agents under one name would take each other's jobs: the first one stays.
        grpc.StatusCode.ALREADY_EXISTS: Ending(3, "The coordinator refuses a second agent under one name"),
        # Name, pool, labels or slots can never be right: a person has to change them.
        grpc.StatusCode.INVALID_ARGUMENT: Ending(2, "The coordinator refuses what this agent says of itself"),
    }
)
"""The status codes that end the agent. Every other one ends the connection alone."""
_SAY_ALL = frozenset({grpc.StatusCode.UNAUTHENTICATED})
"""Our sentence of these has the mend: the coordinator's, for clients too, has another. All others are its to tell."""


class Listener(Protocol):
    """Told of what happens to the connection, for logs, metrics and readiness."""

    def welcomed(self, address: str, session_id: str) -> None:
        """A session has begun."""
        ...

    def parted(self, address: str, sentence: str) -> None:
        """A session, or the try to have one, has ended; another try follows."""
        ...


class Connection:
    """The agent's connection to its coordinator, through any number of sessions."""

    def __init__(
        self,
        dialer: SessionDialer,
        addresses: Sequence[str],
        identity: Identity,
        jobs: Jobs,
        outbox: Outbox,
        *,
        clock: Clock,
        rng: random.Random,
        listener: Listener,
        generation: int | None = None,
    ) -> None:
        """`generation`: grows with every start of the agent on this data directory, so that each Hello has a number
        above all before it; None: they are not counted."""
        self._generation = generation
        self._hellos = 0
        self._away: dict[str, float] = {}
        """Until when an address that sent us away is left alone."""
        self._dialer = dialer
        self._addresses = list(addresses)
        self._identity = identity
        self._jobs = jobs
        self._outbox = outbox
        self._clock = clock
        self._rng = rng
        self._listener = listener

    async def run(self, stop: asyncio.Event) -> Ending | None:
        """Stays connected until `stop` is set (None) or a coordinator refuses for good (why)."""
        talking = asyncio.create_task(self._talk(), name="connection")
        stopping = asyncio.create_task(stop.wait(), name="connection stop")
        try:
            await asyncio.wait((talking, stopping), return_when=asyncio.FIRST_COMPLETED)
            return talking.result() if talking.done() else None
        finally:
            for task in (talking, stopping):
                task.cancel()
            await asyncio.gather(talking, stopping, return_exceptions=True)

    async def _talk(self) -> Ending:
        failures = 0
        at = self._rng.randrange(len(self._addresses))
        while True:
            address = self._addresses[at % len(self._addresses)]
            answered, ending = await self._once(address)
            if ending is not None:
                return ending
            failures = 0 if answered else failures + 1
            at, pause = self._next(at + 1)
            await asyncio.sleep(max(pause, self._backoff(failures)))

    def _next(self, at: int) -> tuple[int, float]:
        """Which address is tried next: the first, from this one on, that is to be left alone no longer, else the one
        that is so the soonest. And how long to wait for it."""
        now = asyncio.get_running_loop().time()
        order = range(at, at + len(self._addresses))
        waits = [max(0.0, self._away.get(self._addresses[each % len(self._addresses)], now) - now) for each in order]
        best = waits.index(min(waits))
        return order[best], waits[best]

    async def _once(self, address: str) -> tuple[bool, Ending | None]:
        """One try: whether somebody answered as a coordinator does, and the end of the agent, if it is that."""
        answered = False
        try:
            wire = await self._dialer.dial(address)
            try:
                self._hellos += 1
                number = 0 if self._generation is None else (self._generation << 32) + self._hellos
                session = Session(wire, self._identity, self._jobs, self._outbox, self._clock, number=number)
                welcome = await session.greet()
                answered = True
                self._listener.welcomed(address, welcome.session_id)
                await session.run()
            finally:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2.0):
                        await wire.close()
        except WireClosed as over:
            if (final := FINAL.get(over.code)) is not None:
                sentence = final.sentence if over.code in _SAY_ALL else f"{final.sentence}: {over.sentence}"
                return answered, Ending(final.exit_code, sentence)
            sentence = over.sentence
        except GoneAway as away:
            answered, sentence = True, away.sentence
            longest = LONGEST_PAUSE if self._jobs.held() else LONGEST_AWAY
            pause = min(max(away.seconds, 0.0), longest) * self._rng.uniform(1.0, 1.25)
            self._away[address] = asyncio.get_running_loop().time() + pause
        self._listener.parted(address, sentence)
        return answered, None

    def _backoff(self, failures: int) -> float:
        """Jittered, so that a fleet does not come back as one; another address is tried soon."""
        rounds = failures // len(self._addresses)
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(rounds, 10)) * self._rng.uniform(0.5, 1.0)
