"""The agent's unary calls of a coordinator: fenced by the attempt's token, safe to repeat."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
import grpc.aio

from agent.problems import Cause, JobProblem
from agent.wire import Access

Answer = TypeVar("Answer")
CALL_S = 30.0
"""Seconds that one call may take."""
_PATIENCE_S = 300.0
_AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNKNOWN,
    }
)
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


class Calls:
    """Asks a coordinator. Waits for one that is away until the attempt is stopped or out of time; one that is there and
    cannot answer is asked for five minutes.
    """

    def __init__(self, access: Callable[[str], Access], addresses: Sequence[str], rng: random.Random) -> None:
        self._access = access
        self._addresses = list(addresses)
        self._rng = rng

    async def call(self, ask: Callable[[grpc.aio.Channel], Awaitable[Answer]], what: str) -> Answer:
        """One call, tried again while nobody answers. `what`: cannot be done, in a problem. Raises `JobProblem`."""
        loop = asyncio.get_running_loop()
        end, failures = loop.time() + _PATIENCE_S, 0
        while True:
            address = self._addresses[failures % len(self._addresses)]
            async with self._access(address).channel(address) as channel:
                try:
                    return await ask(channel)
                except grpc.aio.AioRpcError as error:
                    patient = error.code() in _AWAY or loop.time() < end
                    if error.code() not in _AGAIN or not patient:
                        raise _problem(error, what) from error
            failures += 1
            await asyncio.sleep(min(10.0, 0.2 * 2 ** min(failures, 8)) * self._rng.uniform(0.5, 1.0))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The agent's credential."""
        return self._access(self._addresses[0]).metadata()


def _problem(error: grpc.aio.AioRpcError, what: str) -> JobProblem:
    """What the coordinator refuses is the job's, what it cannot do is the machinery's."""
    ours = error.code() in _AGAIN or error.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAUTHENTICATED}
    sentence = f"{what}: {error.details() or error.code().name.lower()}"
    return JobProblem(Cause.ERRORED if ours else Cause.REFUSED, sentence)
