"""Runs that are deleted when their time is over, in PostgreSQL. See `coordinator.blobs.retention` for the order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.store.database import Connection
from coordinator.store.sql import statements

SQL = statements("retention")


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file of an artifact. `sha256` in hexadecimal: its object's."""

    artifact_id: int
    attempt_id: int
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A part of a log that is an object."""

    attempt_id: int
    stream: str
    first_sequence: int
    key: str


async def forget(db: Connection, term: str, *, older_s: float) -> int:
    """From now on there is no such run: a bite of those that have been over for so long. Returns how many."""
    return len(await db.fetch(SQL.forget, term, older_s))


async def forgotten(db: Connection) -> Sequence[int]:
    """Some runs whose objects and rows have to go."""
    return [row["id"] for row in await db.fetch(SQL.forgotten)]


async def files(db: Connection, run_id: int) -> Sequence[FileRow]:
    """A bite of the files of its artifacts."""
    rows = await db.fetch(SQL.files, run_id)
    return [FileRow(row["artifact_id"], row["attempt_id"], row["path"], row["sha256"].hex()) for row in rows]


async def delete_files(db: Connection, rows: Sequence[FileRow], term: str) -> None:
    """Their objects are gone."""
    await db.execute(SQL.delete_files, [row.artifact_id for row in rows], [row.path for row in rows], term)


async def close_logs(db: Connection, run_id: int, term: str) -> int:
    """A bite of its logs takes nothing any more, and is not compacted; returns how many."""
    return _count(await db.execute(SQL.close_logs, run_id, term))


async def segments(db: Connection, run_id: int) -> Sequence[SegmentRow]:
    """A bite of the objects of its logs."""
    rows = await db.fetch(SQL.segments, run_id)
    return [SegmentRow(row["attempt_id"], row["stream"], row["first_sequence"], row["key"]) for row in rows]


async def delete_segments(db: Connection, rows: Sequence[SegmentRow], term: str) -> None:
    """Their objects are gone."""
    columns = [row.attempt_id for row in rows], [row.stream for row in rows], [row.first_sequence for row in rows]
    await db.execute(SQL.delete_segments, *columns, term)


async def delete_records(db: Connection, run_id: int, term: str) -> int:
    """Deletes a bite of hot records; returns how many."""
    return _count(await db.execute(SQL.delete_records, run_id, term))


async def delete_jobs(db: Connection, run_id: int, term: str) -> int:
    """Deletes a bite of jobs, with all that is theirs; returns how many."""
    return _count(await db.execute(SQL.delete_jobs, run_id, term))


async def delete_run(db: Connection, run_id: int, term: str) -> int:
    """Deletes the run itself; returns how many that were."""
    return _count(await db.execute(SQL.delete_run, run_id, term))


def _count(tag: str) -> int:
    return int(tag.rpartition(" ")[2])
