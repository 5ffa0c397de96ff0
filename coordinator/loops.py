"""The loops of a replica, as one thing to wait for."""

from __future__ import annotations

import asyncio


class Loops:
    """The loops of a replica. One that fails is a defect: the coordinator ends, and is started anew."""

    def __init__(self, tasks: list[asyncio.Task[None]]) -> None:
        self._tasks = tasks

    async def wait(self, stop: asyncio.Event) -> None:
        """Waits for `stop`, or for the first loop that fails, and raises what it raised."""
        asked = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([asked, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
        for task in self._tasks:
            if task.done():
                task.result()
