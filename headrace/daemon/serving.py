"""Serving HTTP from inside a daemon: the socket is bound before anything starts, and signals stay the daemon's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

_STOP_S = 2.0
_SILENCE_S = 10.0
"""How long a connection may have no request under way."""
_MOST_CONNECTIONS = 2_000
"""Beyond them a request is answered with 503."""


class CannotListen(Exception):
    """The address is in use, or not ours; the message is one sentence."""


def listen(address: str, *, setting: str) -> socket.socket:
    """A socket bound to `host:port` (port 0: any). Raises CannotListen, naming the setting that mends it."""
    host, _, port = address.rpartition(":")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host.strip("[]"), int(port)))
        found.listen()  # bound alone, another program could still take the port from under us
    except (OSError, ValueError, OverflowError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise CannotListen(f"cannot listen on {address} ({said}): set {setting} to a free HOST:PORT") from error
    return found


def address_of(listening: socket.socket) -> str:
    """`host:port` as others can reach it."""
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Connection(H11Protocol):
    """One that says nothing, or a request bit by bit, is closed: the server itself looks at those that have had an
    answer alone."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the server has it
        """Begins to look."""
        super().connection_made(transport)
        self._look_again(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Looks no more."""
        self._looking.cancel()
        super().connection_lost(exc)

    def _look_again(self, seen: RequestResponseCycle | None) -> None:
        self._looking = self.loop.call_later(_SILENCE_S, self._look, seen)

    def _look(self, seen: RequestResponseCycle | None) -> None:
        """`seen`: the newest request at the last look."""
        if self.cycle is seen and (seen is None or seen.response_complete):
            self.transport.close()
        else:
            self._look_again(self.cycle)


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, listening: socket.socket) -> AsyncIterator[None]:
    """Serves until left; requests under way have two seconds then."""
    config = uvicorn.Config(
        app,
        http=_Connection,
        limit_concurrency=_MOST_CONNECTIONS,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]  # SIGTERM means drain
    task = asyncio.create_task(server.serve([listening]), name="http")
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait([task], timeout=2 * _STOP_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        listening.close()
