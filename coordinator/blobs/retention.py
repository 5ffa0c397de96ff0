"""Deletes runs whose time is over, with all that is theirs.

First the run's row says that there is no such run, for good. An hour later its objects are deleted, and after each bite
of them the rows that name them; its logs are closed before that, so that no compaction makes new ones. Then go its hot
records and its jobs, a bite at a time, and at last the run. What breaks off anywhere is taken up by the next sweep: an
object's row outlives the object, never the other way round.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from coordinator.blobs.keys import artifact_key
from coordinator.blobs.store import BlobStore
from coordinator.store import retention
from coordinator.store.database import Connection, Database
from coordinator.store.singletons import Singleton


class Retention:
    """`keep_s`: how long a run is kept after its end, in seconds; 0: for ever."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        term: Singleton,
        *,
        keep_s: float,
        deleted: Callable[[str, int], object],
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._term = term
        self._keep_s = keep_s
        self._deleted = deleted

    async def once(self, term: str) -> bool:
        """One round. Returns whether there may be more to do at once. Raises StoreDown, BlobError."""
        if not self._keep_s:
            return False
        async with self._database.connection() as db:
            begun = await retention.forget(db, term, older_s=self._keep_s)
            runs = await retention.forgotten(db)
        for run_id in runs:
            if not await self._delete(run_id, term):
                return False
        return bool(begun or runs)

    async def _delete(self, run_id: int, term: str) -> bool:
        """Deletes one run. False: the term is over, and another goes on."""
        for bite in (self._files, self._closed, self._segments, self._records, self._jobs):
            while await bite(run_id, term):
                if await self._term.hold() != term:
                    return False
        if not await self._counted(retention.delete_run, run_id, term):
            return False
        self._deleted("runs", 1)
        return True

    async def _files(self, run_id: int, term: str) -> int:
        async with self._database.connection() as db:
            rows = await retention.files(db, run_id)
        if rows:
            keys = {artifact_key(run_id, row.attempt_id, row.sha256) for row in rows}
            await self._blobs.delete(keys)
            async with self._database.connection() as db:
                await retention.delete_files(db, rows, term)
            self._deleted("objects", len(keys))
        return len(rows)

    async def _closed(self, run_id: int, term: str) -> int:
        return await self._counted(retention.close_logs, run_id, term)

    async def _segments(self, run_id: int, term: str) -> int:
        async with self._database.connection() as db:
            rows = await retention.segments(db, run_id)
        if rows:
            await self._blobs.delete([row.key for row in rows])
            async with self._database.connection() as db:
                await retention.delete_segments(db, rows, term)
            self._deleted("objects", len(rows))
        return len(rows)

    async def _records(self, run_id: int, term: str) -> int:
        return await self._counted(retention.delete_records, run_id, term)

    async def _jobs(self, run_id: int, term: str) -> int:
        return await self._counted(retention.delete_jobs, run_id, term)

    async def _counted(self, delete: Callable[[Connection, int, str], Awaitable[int]], run_id: int, term: str) -> int:
        async with self._database.connection() as db:
            return await delete(db, run_id, term)
