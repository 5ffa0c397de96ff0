"""The database's time, and how far this machine's clock is from it.

Nothing that decides about work compares clocks. But signed addresses expire by one, people read times, and a blob
store refuses who is 15 minutes off: so a replica goes by the clock that all replicas share, and tells when its own is
another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from coordinator.errors import StoreDown
from coordinator.store.database import Database
from coordinator.store.sql import statements

SQL = statements("clock")

_EVERY_S = 5.0
WORTH_TELLING_S = 30.0
"""More than a healthy machine is ever off, and less than what hurts."""


class DatabaseClock:
    """The time of the database, read every five seconds and carried on by this machine's monotonic clock.

    `wall`: this machine's time in Unix seconds, which may step at any moment; `monotonic`: seconds that never do.
    """

    def __init__(self, database: Database, wall: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._database = database
        self._wall = wall
        self._monotonic = monotonic
        self._offset = wall() - monotonic()

    async def learn(self) -> None:
        """Reads it anew. Raises StoreDown."""
        before = self._monotonic()
        async with self._database.connection() as db:
            told = await db.fetchval(SQL.now)
        self._offset = told - (before + self._monotonic()) / 2

    async def run(self) -> None:
        """Learns again and again, until it is cancelled; what was learned last stands while the database is away."""
        while True:
            await asyncio.sleep(_EVERY_S)
            with contextlib.suppress(StoreDown):
                await self.learn()

    def now(self) -> float:
        """Unix seconds by the database's clock; by this machine's before `learn` was called."""
        return self._monotonic() + self._offset

    @property
    def skew_s(self) -> float:
        """This machine's clock less the database's, in seconds."""
        return self._wall() - self.now()

    def warning(self) -> str:
        """One sentence for the operator where the clocks are more than 30 s apart, else empty."""
        skew = self.skew_s
        if abs(skew) <= WORTH_TELLING_S:
            return ""
        where = "ahead of" if skew > 0 else "behind"
        return (
            f"the clock of this machine is {abs(skew):.0f} s {where} the database's: no job is lost by it, but set it"
            " right (run chrony or another NTP client), for the blob store may refuse who is 15 minutes off"
        )
