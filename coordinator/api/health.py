"""The standard gRPC health service, which says what /readyz says: of the server, and of each of its services."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from grpc_health.v1 import health, health_pb2

_POLL_S = 0.5
_LEAVE_S = 1.0


class Health:
    """`why_not_ready`: one sentence while work cannot flow here, else empty. `services`: full names."""

    def __init__(self, why_not_ready: Callable[[], Awaitable[str]], services: Sequence[str]) -> None:
        self._why_not_ready = why_not_ready
        self._names = ("", *services)
        self.servicer = health.aio.HealthServicer()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await self.tell()
            await asyncio.sleep(_POLL_S)

    async def tell(self) -> None:
        """Says how it is now."""
        answer = health_pb2.HealthCheckResponse
        status = answer.NOT_SERVING if await self._why_not_ready() else answer.SERVING
        for name in self._names:
            await self.servicer.set(name, status)

    async def leave(self) -> None:
        """Says for good that nothing is served here any more; one who watches and does not read holds up nobody."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await self.servicer.enter_graceful_shutdown()
