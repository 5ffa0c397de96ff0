"""Compacts logs: hot records become segments, 16 MiB raw or less each, and objects that nobody needs are deleted.

An object is written before the row that names it, under a key that is never used twice, and noted before it is
written: a crash at any point leaves hot records as they were and at most an object that the sweep knows of.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
from google.protobuf.message import DecodeError

from coordinator.blobs.keys import log_segment_key
from coordinator.blobs.store import BlobError, BlobStore
from coordinator.errors import StoreDown
from coordinator.logs.bells import LogBells
from coordinator.logs.segment import DamagedSegment, SegmentWriter
from coordinator.store import logs
from coordinator.store.database import Database
from coordinator.store.logs import HotLog, NewSegment

SEGMENT_RAW = 16 << 20
"""Raw bytes of a segment, at most but for one frame."""
SEGMENT_RECORDS = 8_192
"""Records of a segment, at most but for one page."""
INLINE_MOST = 16 << 10
"""A segment up to so many bytes is kept in its row: most jobs are small, and an object costs a file or a request."""
SMALL_RAW = 64 << 10
SMALL_RECORDS = 512
"""A sealed log up to so many raw bytes and records is compacted together with others like it."""
POLL_S = 5.0
_BATCH = 64

_log = structlog.get_logger(__name__)


class Term(Protocol):
    """The right to be the only compactor. See `coordinator.store.singletons`."""

    async def hold(self) -> str | None:
        """Takes the term or keeps it; returns its random id, None while another holds it."""


class Compactor:
    """Runs at every replica; acts only while it holds the term. `make_random`: 8 or more of [a-z0-9], fresh."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        term: Term,
        *,
        bells: LogBells | None = None,
        poll_s: float = POLL_S,
        make_random: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._term = term
        self._bells = bells
        self._poll_s = poll_s
        self._make_random = make_random
        self._damaged: set[tuple[int, str]] = set()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            try:
                busy = await self.once()
            except (StoreDown, BlobError) as error:
                _log.warning("logs are not being compacted", reason=str(error))
                busy = False
            if not busy:
                await asyncio.sleep(self._poll_s)

    async def once(self) -> bool:
        """One round: seal, compact, sweep. Returns whether there is more to do at once. Raises StoreDown, BlobError."""
        term = await self._term.hold()
        if term is None:
            return False
        async with self._database.connection() as db:
            sealed = await logs.seal_forsaken(db, term)
            most = _BATCH + len(self._damaged)
            picked = await logs.sealed_to_compact(db, most)
            picked += await logs.open_to_compact(db, most, raw_bytes=2 * SEGMENT_RAW, records=2 * SEGMENT_RECORDS)
            strays = await logs.stray_uploads(db)
        if sealed and self._bells is not None:
            self._bells.grew(sealed)
        picked = [log for log in picked if (log.attempt_id, log.stream) not in self._damaged]
        done, left = await self._compact_small(picked, term)
        for log in left:
            done += await self._compact_unless_damaged(log, term)
            if await self._term.hold() != term:
                return False
        if strays:
            await self._blobs.delete(strays)
            async with self._database.connection() as db:
                await logs.end_upload(db, strays)
        return bool(done or strays)

    async def _compact_small(self, picked: Sequence[HotLog], term: str) -> tuple[int, list[HotLog]]:
        """Compacts the small ones of these logs, by two statements in all.

        Returns how many it did, and the logs that have to be done one by one.
        """
        small = [log for log in picked if _is_small(log)]
        rest = [log for log in picked if not _is_small(log)]
        if not small:
            return 0, rest
        async with self._database.connection() as db:
            found = await logs.small_records(db, small)
        segments = []
        for log, records in zip(small, found, strict=True):
            segment = _small_segment(log, records)
            if segment is None:
                rest.append(log)
            else:
                segments.append(segment)
        if not segments:
            return 0, rest
        async with self._database.connection() as db:
            return await logs.swap_small(db, segments, term), rest

    async def _compact_unless_damaged(self, log: HotLog, term: str) -> bool:
        """`_compact`; a log that cannot be compacted stays as it is, and is let alone: the others must not wait."""
        try:
            return await self._compact(log, term)
        except (StoreDown, BlobError):
            raise
        except Exception:
            _log.exception("a log cannot be compacted", attempt=log.attempt_id, stream=log.stream)
            self._damaged.add((log.attempt_id, log.stream))
            return False

    async def _compact(self, log: HotLog, term: str) -> bool:
        """Makes one segment of the oldest hot records. False: somebody else was faster, or the term is over.

        Raises DamagedSegment where the records are not there though nobody has compacted them.
        """
        writer, data, sequence = SegmentWriter(), bytearray(), log.compacted_to + 1
        while writer.raw < SEGMENT_RAW and writer.count < SEGMENT_RECORDS and sequence < log.next:
            async with self._database.connection() as db:
                page = await logs.page(db, log.attempt_id, log.stream, sequence)
            if not page or page[0][0] != sequence:
                break
            for number, record in page:
                if number != sequence or number >= log.next or writer.raw >= SEGMENT_RAW:
                    break
                data += writer.add(record)
                sequence = number + 1
        if writer.count:
            return await self._store(log, writer, bytes(data), term)
        async with self._database.connection() as db:
            now = await logs.state(db, log.attempt_id, log.stream)
        if now.next and now.compacted_to == log.compacted_to:
            raise DamagedSegment(f"record {sequence} of a log is missing")
        return False

    async def _store(self, log: HotLog, writer: SegmentWriter, data: bytes, term: str) -> bool:
        key = None
        if len(data) > INLINE_MOST:
            key = log_segment_key(log.run_id, log.attempt_id, log.stream, log.compacted_bytes, self._make_random())
            async with self._database.connection() as db:
                await logs.begin_upload(db, key)
            await self._blobs.put(key, data, sha256_hex=hashlib.sha256(data).hexdigest())
        async with self._database.connection() as db:
            return await logs.swap(db, _segment(log, writer, data, key=key), term)


def _is_small(log: HotLog) -> bool:
    records = log.next - 1 - log.compacted_to
    return log.sealed and log.bytes - log.compacted_bytes <= SMALL_RAW and records <= SMALL_RECORDS


def _small_segment(log: HotLog, records: Sequence[bytes]) -> NewSegment | None:
    """The segment of a small log; None where it does not fit into a row, or is not as its row says."""
    writer = SegmentWriter()
    try:
        data = b"".join([writer.add(record) for record in records])
    except DecodeError:
        return None
    if len(data) > INLINE_MOST or (writer.count, writer.raw) != (
        log.next - 1 - log.compacted_to,
        log.bytes - log.compacted_bytes,
    ):
        return None
    return _segment(log, writer, data, key=None)


def _segment(log: HotLog, writer: SegmentWriter, data: bytes, *, key: str | None) -> NewSegment:
    """The segment of the oldest hot records of a log; without a key it is kept in its row."""
    return NewSegment(
        attempt_id=log.attempt_id,
        stream=log.stream,
        first_sequence=log.compacted_to + 1,
        last_sequence=log.compacted_to + writer.count,
        bytes_from=log.compacted_bytes,
        bytes_to=log.compacted_bytes + writer.raw,
        key=key,
        data=data if key is None else None,
        size=len(data),
        sha256=hashlib.sha256(data).digest(),
        index=writer.index(),
    )
