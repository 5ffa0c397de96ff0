"""What only one replica at a time should do: a term with a random id, which all writes of its holder repeat.

A term is taken over by whoever has itself seen its counter stand still for a whole lease of its own monotonic
clock; nobody compares clocks. A holder that was only slow notices when it renews, and its late writes change
nothing, because they name a term that is over.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from coordinator.errors import StoreDown
from coordinator.store.database import Database
from coordinator.store.sql import statements

SQL = statements("singletons")

LEASE_S = 30.0
"""How long a counter must stand still before the term is taken over, in seconds, where nobody waits for it. Holders
renew far more often."""


class Singleton:
    """The right of one replica to do `name`. `clock`: monotonic seconds; `make_id`: random uuids."""

    def __init__(
        self,
        database: Database,
        name: str,
        clock: Callable[[], float],
        *,
        lease_s: float = LEASE_S,
        make_id: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._database = database
        self._name = name
        self._clock = clock
        self._lease_s = lease_s
        self._make_id = make_id
        self._replica = make_id()
        self._held: uuid.UUID | None = None
        self._seen: tuple[uuid.UUID, int] | None = None
        self._since = 0.0

    async def hold(self) -> str | None:
        """Take the term or keep it; return its id, None while another holds it. Call every few seconds.

        Raises StoreDown; what was observed before counts for nothing then.
        """
        try:
            return await self._hold()
        except StoreDown:
            self._seen = None
            raise

    async def leave(self) -> None:
        """Give the term up, so that another replica need not wait for it."""
        if self._held is not None:
            async with self._database.connection() as db:
                await db.execute(SQL.leave, self._name, self._held)
            self._held = None

    async def _hold(self) -> str | None:
        async with self._database.connection() as db:
            if self._held is not None:
                if await db.fetchval(SQL.renew, self._name, self._held) is not None:
                    return str(self._held)
                self._held = self._seen = None
            row = await db.fetchrow(SQL.look, self._name)
            if row is None:
                self._held = await db.fetchval(SQL.take, self._name, self._make_id(), self._replica)
            elif self._stands_still((row["term"], row["counter"])):
                term, counter = row["term"], row["counter"]
                self._held = await db.fetchval(SQL.take_over, self._name, term, counter, self._make_id(), self._replica)
        return None if self._held is None else str(self._held)

    def _stands_still(self, now: tuple[uuid.UUID, int]) -> bool:
        if now != self._seen:
            self._seen, self._since = now, self._clock()
            return False
        return self._clock() - self._since >= self._lease_s


async def clear_terms(database: Database) -> None:
    """Ends all terms. Only for whoever knows that no other replica lives."""
    async with database.connection() as db:
        await db.execute(SQL.clear)
