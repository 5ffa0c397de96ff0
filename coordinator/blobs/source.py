"""Bytes on their way into a store: counted, digested, and their own failures kept apart from the store's."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from coordinator.blobs.store import BlobCorrupt


class Source:
    """A stream that remembers its digest, and what broke it: a store's client turns that into an error of its own."""

    def __init__(self, data: AsyncIterator[bytes], sha256_hex: str | None) -> None:
        self._data = data
        self._announced = sha256_hex
        self._digest = hashlib.sha256()
        self._failure: Exception | None = None

    async def split(self, limit: int) -> tuple[bytes, AsyncIterator[bytes] | None]:
        """Return all bytes and None if they are at most `limit`, else nothing and a stream of all of them."""
        begin, chunks = bytearray(), self._chunks()
        async for chunk in chunks:
            begin += chunk
            if len(begin) > limit:
                return b"", _joined(bytes(begin), chunks)
        return bytes(begin), None

    def check(self) -> None:
        """Raise `BlobCorrupt` if the bytes, all read by now, are not those announced."""
        if self._announced is not None and self._digest.hexdigest() != self._announced:
            raise BlobCorrupt("the bytes do not have the announced SHA-256: send them again")

    def reraise(self) -> None:
        """Raise what broke the stream, if that is why the store failed."""
        if self._failure is not None:
            raise self._failure

    async def _chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._data:
                self._digest.update(chunk)
                yield chunk
        except Exception as error:
            self._failure = error
            raise


async def _joined(begin: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield begin
    async for chunk in rest:
        yield chunk
