"""What is kept for a time only, in PostgreSQL. See `coordinator.blobs.expiry` for the order of things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from coordinator.store.database import Connection
from coordinator.store.sql import statements

SQL = statements("expiry")

# Whoever joins a group makes it first, if it is not there, and holds a lock on the table against this one until it is
# in: so no group goes between the two. Nobody is made to wait: where it cannot be had at once there is another sweep.
_NOBODY_JOINS = "LOCK TABLE concurrency_group IN SHARE ROW EXCLUSIVE MODE NOWAIT"


@dataclass(frozen=True, slots=True)
class Expiring:
    """An artifact that is refused for good and whose objects have to be deleted."""

    id: int
    run_id: int
    attempt_id: int


async def expire(db: Connection, term: str) -> int:
    """Refuses a bounded bite of what is due, only by the sweep of this term. Returns how many."""
    return len(await db.fetch(SQL.expire, term))


async def expiring(db: Connection) -> Sequence[Expiring]:
    """Some of those whose objects have to be deleted, oldest first."""
    return [Expiring(row["id"], row["run_id"], row["attempt_id"]) for row in await db.fetch(SQL.expiring)]


async def unneeded(db: Connection, artifact: Expiring) -> Sequence[str]:
    """The digests, in hexadecimal, of its objects that nothing else names."""
    return [row["sha256"].hex() for row in await db.fetch(SQL.unneeded, artifact.id, artifact.attempt_id)]


async def old_bundles(db: Connection, term: str) -> Sequence[bytes]:
    """Digests of bundles that nobody needs, held until the transaction ends; only for the sweep of this term."""
    return [bytes(row["sha256"]) for row in await db.fetch(SQL.old_bundles, term)]


async def forget_bundles(db: Connection, bundles: Sequence[bytes]) -> None:
    """Their objects are gone."""
    await db.execute(SQL.forget_bundles, bundles)


async def groups(db: Connection, after: int) -> tuple[int, Sequence[int]]:
    """Looks at a bite of groups behind an id: the last of them (0: there were none), and those in which nobody is."""
    rows = await db.fetch(SQL.groups, after)
    return (rows[-1]["id"] if rows else 0), [row["id"] for row in rows if not row["used"]]


async def forget_groups(db: Connection, empty: Sequence[int], term: str) -> int:
    """Deletes those in which still nobody is; in a transaction. Returns how many: 0 if somebody was just joining."""
    try:
        await db.execute(_NOBODY_JOINS)
    except asyncpg.LockNotAvailableError:
        return 0
    return int((await db.execute(SQL.forget_groups, empty, term)).rpartition(" ")[2])


async def expired(db: Connection, artifact: Expiring, term: str) -> None:
    """Its objects are gone."""
    await db.execute(SQL.expired, artifact.id, term)
