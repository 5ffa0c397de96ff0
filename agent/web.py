"""The agent's small HTTP face: `/healthz`, `/readyz`, `/metrics`. It shows, and takes nothing."""

from __future__ import annotations

from collections.abc import Callable

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
