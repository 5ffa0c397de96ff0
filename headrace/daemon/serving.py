"""Serving HTTP from inside a daemon: the socket is bound before anything starts, and signals stay the daemon's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.types import ASGIApp

_STOP_S = 2.0


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


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, listening: socket.socket) -> AsyncIterator[None]:
    """Serves until left; requests under way have two seconds then."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", server_header=False, timeout_graceful_shutdown=2
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
