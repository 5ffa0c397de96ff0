"""Artifacts in PostgreSQL: which files a name stands for, who made them, and who may have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from coordinator.errors import Conflict, NotFound, StaleToken
from coordinator.store.database import Connection, Database
from coordinator.store.sql import statements

SQL = statements("artifacts")


@dataclass(frozen=True, slots=True)
class File:
    """A file of an artifact. `path` is relative, with `/`; `size` in bytes."""

    path: str
    sha256: bytes
    size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class Artifact:
    """Files that an attempt published under a name."""

    id: int
    name: str
    run_id: int
    job_id: int
    attempt_id: int
    job: str
    attempt_try: int
    published_at: datetime
    expires_at: datetime | None
    expired: bool
    """Its time is over: it has no files any more."""
    files: tuple[File, ...]


@dataclass(frozen=True, slots=True)
class LiveAttempt:
    """An attempt that proved by its token that it is not over."""

    id: int
    run_id: int
    job_id: int


class Artifacts:
    """Artifacts of one database. Everything raises StoreDown; what bears a token, StaleToken."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def live(self, attempt_id: int, token: bytes) -> LiveAttempt:
        """The attempt, if the token is good. Raises StaleToken."""
        async with self._database.connection() as db:
            return await _live(db, attempt_id, token)

    async def publish(
        self, attempt_id: int, token: bytes, name: str, files: Sequence[File], keep: timedelta | None
    ) -> None:
        """Publishes files under a name; the same again changes nothing. `keep` None: for ever.

        Raises StaleToken, and Conflict when the name stands for other files or belongs to another job.
        """
        files = sorted(files, key=lambda file: file.path.encode())
        async with self._database.transaction() as db:
            await db.execute(SQL.hold_run, attempt_id)
            attempt = await _live(db, attempt_id, token)
            producer = await db.fetchval(SQL.claim_name, attempt.run_id, name, attempt.job_id)
            if producer != attempt.job_id:
                other = await db.fetchval(SQL.job_key, producer)
                raise Conflict(f"artifact `{name}` of this run is made by job `{other}`: give this one another name")
            made = await db.fetchval(SQL.publish, attempt.run_id, attempt.job_id, attempt.id, name, keep)
            if made is None:
                made = await db.fetchval(SQL.published, attempt.id, name)
                if list((await _files(db, [made])).get(made, ())) != files:
                    raise Conflict(f"artifact `{name}` was published by this attempt already, with other files")
                return
            await db.execute(
                SQL.publish_files,
                made,
                [file.path for file in files],
                [file.sha256 for file in files],
                [file.size for file in files],
                [file.executable for file in files],
            )

    async def fetch(self, attempt_id: int, token: bytes, name: str) -> Artifact:
        """The artifact of a job among the dependencies of the attempt's own.

        Raises StaleToken, NotFound (also for one that has expired), and Conflict when its producer is not among them.
        """
        async with self._database.connection() as db:
            attempt = await _live(db, attempt_id, token)
            found = await _newest(db, attempt.run_id, name)
            if not await db.fetchval(SQL.depends_on, attempt.job_id, found.job_id):
                raise Conflict(
                    f"artifact `{name}` is made by job `{found.job}`, on which this job does not depend: "
                    "add it to `needs`"
                )
        return _unexpired(found)

    async def newest(self, run_id: int, name: str) -> Artifact:
        """The newest attempt's artifact of that name. Raises NotFound, also for one that has expired."""
        async with self._database.connection() as db:
            return _unexpired(await _newest(db, run_id, name))

    async def of_run(self, run_id: int) -> list[Artifact]:
        """The newest attempt's artifact of each name. Raises NotFound for an unknown run."""
        async with self._database.connection() as db:
            if await db.fetchval(SQL.run_exists, run_id) is None:
                raise NotFound(f"there is no run {run_id}")
            rows = await db.fetch(SQL.newest_of_run, run_id)
            files = await _files(db, [row["id"] for row in rows])
        return [_artifact(row, files) for row in rows]

    async def hand_in(self, bundle_sha256: str) -> None:
        """Notes that somebody comes with a git bundle: its object is kept for a week from now."""
        async with self._database.connection() as db:
            await db.execute(SQL.hand_in, bytes.fromhex(bundle_sha256))

    async def source(self, attempt: LiveAttempt) -> bytes:
        """The serialised `headrace.v1.Source` of the attempt's run."""
        async with self._database.connection() as db:
            return bytes(await db.fetchval(SQL.source, attempt.run_id))


async def _live(db: Connection, attempt_id: int, token: bytes) -> LiveAttempt:
    row = await db.fetchrow(SQL.live, attempt_id, token)
    if row is None:
        raise StaleToken(f"attempt {attempt_id} is over, or was given to somebody else")
    return LiveAttempt(attempt_id, row["run_id"], row["job_id"])


async def _newest(db: Connection, run_id: int, name: str) -> Artifact:
    row = await db.fetchrow(SQL.newest, run_id, name)
    if row is None:
        raise NotFound(f"run {run_id} has no artifact `{name}`")
    return _artifact(row, await _files(db, [row["id"]]))


def _unexpired(found: Artifact) -> Artifact:
    if found.expired:
        raise NotFound(
            f"artifact `{found.name}` of run {found.run_id} has expired: retry job `{found.job}`, which makes it"
        )
    return found


async def _files(db: Connection, artifacts: Sequence[int]) -> Mapping[int, Sequence[File]]:
    found: dict[int, list[File]] = {each: [] for each in artifacts}
    for row in await db.fetch(SQL.files, list(artifacts)):
        found[row["artifact_id"]].append(File(row["path"], row["sha256"], row["size"], row["executable"]))
    return found


def _artifact(row: asyncpg.Record, files: Mapping[int, Sequence[File]]) -> Artifact:
    return Artifact(
        id=row["id"],
        name=row["name"],
        run_id=row["run_id"],
        job_id=row["job_id"],
        attempt_id=row["attempt_id"],
        job=row["job"],
        attempt_try=row["try"],
        published_at=row["published_at"],
        expires_at=row["expires_at"],
        expired=row["expired"],
        files=() if row["expired"] else tuple(files[row["id"]]),
    )
