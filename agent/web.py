"""The agent's small HTTP face: `/healthz`, `/readyz`, `/metrics`. It shows, and takes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from agent.metrics import Metrics


def pages(metrics: Metrics, ready: Callable[[], bool], refresh: Callable[[], None]) -> Starlette:
    """The application. `ready`: a coordinator has welcomed this agent. `refresh` updates gauges before a scrape."""

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        if ready():
            return PlainTextResponse("ready\n")
        return PlainTextResponse("no coordinator has welcomed this agent\n", status_code=503)

    async def scrape(_: Request) -> Response:
        refresh()
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", scrape)])


class CannotListen(Exception):
    """The address is in use or not ours; the message is one sentence."""


def listen(address: str) -> socket.socket:
    """A listening socket at `host:port`; port 0: any. Raises `CannotListen`."""
    host, _, port = address.rpartition(":")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host.strip("[]"), int(port)))
    except (OSError, ValueError, OverflowError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise CannotListen(f"cannot listen on {address} for /metrics ({said}): set HEADRACE_METRICS_LISTEN") from error
    return found


@contextlib.asynccontextmanager
async def serving(app: Starlette, listening: socket.socket) -> AsyncIterator[None]:
    """Serves until left. Signals stay the agent's own."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]  # SIGTERM is drain here
    task = asyncio.create_task(server.serve([listening]), name="web")
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.wait([task], timeout=2.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        listening.close()
