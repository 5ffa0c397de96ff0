"""The coordinator's HTTP face: `/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from coordinator.errors import StoreDown
from coordinator.metrics import Metrics

_READ_S = 2.0
"""How long a scrape waits for the gauges; Prometheus itself gives up after ten seconds."""


class _Gauges:
    """Reads the gauges, once at a time: a database that hangs is not asked again by every scrape."""

    def __init__(self, refresh: Callable[[], Awaitable[None]]) -> None:
        self._refresh = refresh
        self._reading: asyncio.Task[None] | None = None

    async def read(self) -> None:
        """Reads them anew, or gives up: /readyz says why, and a scrape with old gauges is better than none."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._once(), name="gauges")
        done, _ = await asyncio.wait([self._reading], timeout=_READ_S)
        for task in done:
            task.result()

    async def _once(self) -> None:
        with contextlib.suppress(StoreDown):
            await self._refresh()


def pages(
    metrics: Metrics,
    *,
    why_not_ready: Callable[[], Awaitable[str]],
    warning: Callable[[], str],
    refresh: Callable[[], Awaitable[None]],
) -> Starlette:
    """The application. `why_not_ready`: one sentence while work cannot flow, else empty. `warning`: one for what a
    person should see to though work flows, else empty. `refresh` reads the gauges anew before a scrape; while the
    database does not answer they keep what they said last."""
    gauges = _Gauges(refresh)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        sentence = await why_not_ready()
        said = "; ".join(each for each in (sentence or "ready", warning()) if each)
        return PlainTextResponse(f"{said}\n", status_code=503 if sentence else 200)

    async def scrape(_: Request) -> Response:
        await gauges.read()
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", scrape)])
