"""What is different behind a pooler in transaction mode, which gives each transaction whatever session is free.

Settings of a session do not stay with us, so each transaction sets its own limits as it begins, in the same message.
A statement by itself gets a transaction too, or nothing would end it when it hangs.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

NOT_AN_ADDRESS = "the database's address is not one: postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
NOT_DIRECT = (
    "the database's address is that of a pooler: set HEADRACE_DATABASE_DIRECT_URL to an address of PostgreSQL itself,"
    " for migrations and for listening"
)


@contextlib.asynccontextmanager
async def bounded(connection: Any, limits: Mapping[str, str], *, snapshot: bool = False) -> AsyncIterator[None]:
    """A transaction with these settings; what the body raises rolls it back. `snapshot`: it sees one moment."""
    begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if snapshot else "BEGIN"
    sets = (f"SET LOCAL {name} = '{value}'" for name, value in limits.items())
    await _or_cut(connection, "; ".join((begin, *sets)))
    try:
        yield
    except BaseException:
        if not connection.is_closed():
            await _or_cut(connection, "ROLLBACK")
        raise
    await _or_cut(connection, "COMMIT")


async def _or_cut(connection: Any, statement: str) -> None:
    """A connection of which nobody knows whether a transaction is open is not used again."""
    try:
        await connection.execute(statement)
    except BaseException:
        connection.terminate()
        raise


class OneByOne:
    """A connection without a transaction, as the store uses one: each statement commits by itself."""

    def __init__(self, connection: Any, limits: Mapping[str, str]) -> None:
        self._connection = connection
        self._limits = limits

    async def fetch(self, statement: str, *values: object) -> Any:
        """All rows."""
        return await self._alone("fetch", statement, values)

    async def fetchrow(self, statement: str, *values: object) -> Any:
        """The first row, or None."""
        return await self._alone("fetchrow", statement, values)

    async def fetchval(self, statement: str, *values: object) -> Any:
        """The first value of the first row, or None."""
        return await self._alone("fetchval", statement, values)

    async def execute(self, statement: str, *values: object) -> Any:
        """No rows, but the command's tag."""
        return await self._alone("execute", statement, values)

    async def _alone(self, method: str, statement: str, values: tuple[object, ...]) -> Any:
        async with bounded(self._connection, self._limits):
            return await getattr(self._connection, method)(statement, *values)
