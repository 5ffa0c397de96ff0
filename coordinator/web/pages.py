"""The coordinator's HTTP face: `/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from coordinator.errors import StoreDown
from coordinator.metrics import Metrics


def pages(
    metrics: Metrics, *, why_not_ready: Callable[[], Awaitable[str]], refresh: Callable[[], Awaitable[None]]
) -> Starlette:
    """The application. `why_not_ready`: one sentence while work cannot flow, else empty. `refresh` reads the
    gauges anew before a scrape; without the database the counters are shown alone."""

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        sentence = await why_not_ready()
        return PlainTextResponse(f"{sentence or 'ready'}\n", status_code=503 if sentence else 200)

    async def scrape(_: Request) -> Response:
        with contextlib.suppress(StoreDown):  # /readyz says so; a scrape without gauges is better than none
            await refresh()
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", scrape)])
