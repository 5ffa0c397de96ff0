"""Deletes the files of artifacts whose time is over, git bundles and groups that no run needs, and old runs.

First an artifact's row says that it is refused for good, then its objects are deleted, then the names of its files:
nothing that is offered is ever without its object, and a sweep that breaks off anywhere is taken up by the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from coordinator.blobs.keys import artifact_key, bundle_key
from coordinator.blobs.retention import Retention
from coordinator.blobs.store import BlobError, BlobStore
from coordinator.errors import StoreDown
from coordinator.store import expiry
from coordinator.store.database import Database
from coordinator.store.singletons import Singleton

POLL_S = 60.0
_BITE = 1_000
"""Objects deleted before the term is renewed."""

_log = structlog.get_logger(__name__)


class Expiry:
    """Runs at every replica; acts only while it holds the term."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        term: Singleton,
        *,
        keep_runs_s: float = 0,
        deleted: Callable[[str, int], object] = lambda *_: None,
    ) -> None:
        self._retention = Retention(database, blobs, term, keep_s=keep_runs_s, deleted=deleted)
        self._deleted = deleted
        self._database = database
        self._blobs = blobs
        self._term = term
        self._group = 0
        """The last group that was looked at."""

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            try:
                busy = await self.once()
            except (StoreDown, BlobError) as error:
                _log.warning("what has expired is not being deleted", reason=str(error))
                busy = False
            if not busy:
                await asyncio.sleep(POLL_S)

    async def once(self) -> bool:
        """One round. Returns whether there may be more to do at once. Raises StoreDown, BlobError."""
        term = await self._term.hold()
        if term is None:
            return False
        async with self._database.connection() as db:
            begun = await expiry.expire(db, term)
            artifacts = await expiry.expiring(db)
        for artifact in artifacts:
            if not await self._delete(artifact, term):
                return False
        bundles = await self._delete_bundles(term)
        groups = await self._delete_groups(term)
        runs = await self._retention.once(term)
        return bool(begun or artifacts or bundles or groups or runs)

    async def _delete(self, artifact: expiry.Expiring, term: str) -> bool:
        """Deletes what only this artifact named. False: the term is over, and another goes on."""
        async with self._database.connection() as db:
            digests = await expiry.unneeded(db, artifact)
        for first in range(0, len(digests), _BITE):
            some = digests[first : first + _BITE]
            await self._blobs.delete([artifact_key(artifact.run_id, artifact.attempt_id, each) for each in some])
            if await self._term.hold() != term:
                return False
        async with self._database.connection() as db:
            await expiry.expired(db, artifact, term)
        self._deleted("artifacts", 1)
        self._deleted("objects", len(digests))
        return True

    async def _delete_groups(self, term: str) -> bool:
        """Looks at a bite of groups, and deletes those that nobody is in: a branch that is gone had one of its own.

        Returns whether there may be more behind it.
        """
        async with self._database.connection() as db:
            self._group, empty = await expiry.groups(db, self._group)
        if empty:
            async with self._database.transaction() as db:
                await expiry.forget_groups(db, empty, term)
        return self._group > 0

    async def _delete_bundles(self, term: str) -> int:
        """Deletes some old bundles; returns how many. Whoever hands one in meanwhile waits for the transaction, and
        finds the object gone, or its row as it was."""
        async with self._database.transaction() as db:
            bundles = await expiry.old_bundles(db, term)
            if bundles:
                await self._blobs.delete([bundle_key(each.hex()) for each in bundles])
                await expiry.forget_bundles(db, bundles)
        self._deleted("bundles", len(bundles))
        return len(bundles)
