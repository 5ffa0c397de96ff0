"""The standard gRPC health service, which says what /readyz says: of the server, and of each of its services."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from grpc_health.v1 import health, health_pb2

from coordinator.api.errors import abort
from coordinator.errors import TooMuch

_POLL_S = 0.5
_LEAVE_S = 1.0


_MOST_WATCHES = 1_000


class _Servicer(health.aio.HealthServicer):  # type: ignore[misc]  # the library has no types
    """Anyone may watch, without a token, and for ever: so there is a bound."""

    def __init__(self) -> None:
        super().__init__()
        self._watching = 0

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802 - the wire's name
        """Says how a service is whenever that changes."""
        if self._watching >= _MOST_WATCHES:
            await abort(context, TooMuch(f"{_MOST_WATCHES:,} callers watch this server's health: ask with Check"))
        self._watching += 1
        try:
            await super().Watch(request, context)
        finally:
            self._watching -= 1


class Health:
    """`why_not_ready`: one sentence while work cannot flow here, else empty. `services`: full names."""

    def __init__(self, why_not_ready: Callable[[], Awaitable[str]], services: Sequence[str]) -> None:
        self._why_not_ready = why_not_ready
        self._names = ("", *services)
        self.servicer = _Servicer()

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
