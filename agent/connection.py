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
from agent.wire import Dialer, WireClosed

FIRST_PAUSE = 0.3
LONGEST_PAUSE = 8.0
"""Seconds: well below the lease, so that one lost try costs no attempt."""


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
        dialer: Dialer,
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
            sessions, pause = await self._once(address)
            if isinstance(pause, Ending):
                return pause
            failures = 0 if sessions else failures + 1
            at += 1
            await asyncio.sleep(max(pause, self._backoff(failures)))

    async def _once(self, address: str) -> tuple[int, float | Ending]:
        """One try: how many sessions it gave (0, 1), and how long to wait at least, or the end of the agent."""
        welcomed = 0
        pause = 0.0
        try:
            wire = await self._dialer.dial(address)
            try:
                self._hellos += 1
                number = 0 if self._generation is None else (self._generation << 32) + self._hellos
                session = Session(wire, self._identity, self._jobs, self._outbox, self._clock, number=number)
                welcome = await session.greet()
                welcomed = 1
                self._listener.welcomed(address, welcome.session_id)
                await session.run()
            finally:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2.0):
                        await wire.close()
        except WireClosed as over:
            if (final := FINAL.get(over.code)) is not None:
                sentence = final.sentence if over.code in _SAY_ALL else f"{final.sentence}: {over.sentence}"
                return welcomed, Ending(final.exit_code, sentence)
            sentence = over.sentence
        except GoneAway as away:
            sentence = away.sentence
            if len(self._addresses) == 1:
                pause = min(max(away.seconds, 0.0), LONGEST_PAUSE) * self._rng.uniform(1.0, 1.25)
        self._listener.parted(address, sentence)
        return welcomed, pause

    def _backoff(self, failures: int) -> float:
        """Jittered, so that a fleet does not come back as one; another address is tried soon."""
        rounds = failures // len(self._addresses)
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(rounds, 10)) * self._rng.uniform(0.5, 1.0)
