"""The connection to PostgreSQL: one pool, bounded statements, errors translated at this edge."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeAlias

import asyncpg

from coordinator.errors import BadInput, StoreDown
from coordinator.store.pooler import NOT_AN_ADDRESS, OneByOne, bounded

# A connection of the pool, inside or outside a transaction. The driver ships no types.
Connection: TypeAlias = Any

# What a statement may take. A claim or heartbeat that waits longer than this is better failed and tried again:
# nothing is lost by it, for no lease ends while the database does not answer.
STATEMENT_TIMEOUT_MS = 10_000
LOCK_TIMEOUT_MS = 5_000
_SESSION = {
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "lock_timeout": str(LOCK_TIMEOUT_MS),
    "idle_in_transaction_session_timeout": str(STATEMENT_TIMEOUT_MS),
    "jit": "off",
}


# What heartbeats may still do on a full disk, for they need no more room than they have: so they do not tell of it.
_CANNOT_WRITE = (asyncpg.DiskFullError, asyncpg.ReadOnlySQLTransactionError)
_REFUSED_FOR_S = 10.0


class Database:
    """A pool of connections. All of the store goes through `transaction` or `connection`."""

    def __init__(
        self, pool: asyncpg.Pool, *, pooler: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._pooler = pooler
        self._clock = clock
        self._refused: tuple[float, str] | None = None

    @property
    def refusal(self) -> str:
        """The server's sentence if in the last 10 s it had no room for something, or might only be read; else empty."""
        if self._refused is None or self._clock() - self._refused[0] > _REFUSED_FOR_S:
            return ""
        return self._refused[1]

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            with translated():
                yield
        except StoreDown as error:
            if isinstance(error.__cause__, _CANNOT_WRITE):
                self._refused = self._clock(), str(error.__cause__).splitlines()[0]
            raise

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, dsn: str, *, size: int, pooler: bool = False) -> AsyncIterator[Database]:
        """Connects with at most `size` connections. Raises StoreDown when it cannot.

        `pooler`: the address is that of a pooler in transaction mode. It refuses settings at the start of a connection
        and gives each transaction another session: so each has its own limits, and no statement is kept by a name.
        """
        try:
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=size,
                reset=_as_it_is,
                command_timeout=STATEMENT_TIMEOUT_MS / 1000 + 5,
                server_settings={"application_name": "headrace", **({} if pooler else _SESSION)},
                **({"statement_cache_size": 0} if pooler else {}),
            )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreDown(f"the database cannot be reached: {error}") from error
        except ValueError as error:  # the driver's sentence may hold the password
            raise BadInput(NOT_AN_ADDRESS) from error
        try:
            yield cls(pool, pooler=pooler)
        finally:
            with contextlib.suppress(TimeoutError):
                await _close(pool)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection without a transaction: each statement commits by itself."""
        with self._watched():
            async with self._pool.acquire() as connection:
                yield OneByOne(connection, _SESSION) if self._pooler else connection

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A read-committed transaction; what the body raises rolls it back."""
        with self._watched():
            async with self._pool.acquire() as connection, self._begun(connection):
                yield connection

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """A transaction whose statements all see the same moment. It only reads."""
        with self._watched():
            async with (
                self._pool.acquire() as connection,
                self._begun(connection, isolation="repeatable_read", readonly=True),
            ):
                yield connection

    def _begun(self, connection: Connection, **options: object) -> contextlib.AbstractAsyncContextManager[Any]:
        transaction: contextlib.AbstractAsyncContextManager[Any] = connection.transaction(**options)
        return bounded(connection, _SESSION, snapshot=bool(options)) if self._pooler else transaction


async def _as_it_is(connection: Connection) -> None:
    """Resets nothing between two users of a connection.

    No statement on the pool leaves anything behind (no SET, LISTEN, cursor or advisory lock), and the driver has
    rolled back what was open: the default's four statements would be another round trip a transaction.
    """
    del connection


async def _close(pool: asyncpg.Pool) -> None:
    """Closes the pool; connections still in use after 5 s are cut."""
    try:
        async with asyncio.timeout(5):
            await pool.close()
    except TimeoutError:
        pool.terminate()
        raise


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turns what the driver raises about the connection or the server into StoreDown.

    What is wrong with a statement or a constraint of ours is a defect and passes through as it is.
    """
    try:
        yield
    except (
        OSError,
        TimeoutError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,  # of a connection that broke while the driver was still at something else
        asyncpg.PostgresConnectionError,
        asyncpg.OperatorInterventionError,
        asyncpg.InsufficientResourcesError,
        asyncpg.LockNotAvailableError,
        asyncpg.QueryCanceledError,
        asyncpg.DeadlockDetectedError,
        asyncpg.SerializationError,
        asyncpg.ReadOnlySQLTransactionError,
        asyncpg.IdleInTransactionSessionTimeoutError,
    ) as error:
        raise StoreDown(f"the database did not do it: {error}") from error
