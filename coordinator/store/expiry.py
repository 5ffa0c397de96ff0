"""What is kept for a time only, in PostgreSQL. See `coordinator.blobs.expiry` for the order of things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.store.database import Connection
from coordinator.store.sql import statements

SQL = statements("expiry")


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


async def expired(db: Connection, artifact: Expiring, term: str) -> None:
    """Its objects are gone."""
    await db.execute(SQL.expired, artifact.id, term)
