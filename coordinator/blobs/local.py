"""The `file://` store: objects are files, and others reach them through our own blob endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

import obstore
from obstore.store import LocalStore

from coordinator.blobs.folder import ObjectFolder
from coordinator.blobs.keys import check_digest, check_key
from coordinator.blobs.reading import read_range, stat_object
from coordinator.blobs.store import URL_SECONDS, BlobInfo, SignedRequest
from coordinator.blobs.urls import Grant, UrlSigner, upload_headers


class LocalBlobs:
    """Files below a folder. `base_url` is the blob endpoint's address as agents and clients reach it.

    Reading and deleting are obstore's; writing is ours, for obstore makes neither bytes nor names durable.
    """

    def __init__(self, folder: ObjectFolder, base_url: str, signer: UrlSigner, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._base = base_url.rstrip("/")
        self._signer = signer
        self._clock = clock
        self._store = LocalStore(folder.objects)

    async def put(self, key: str, data: bytes | AsyncIterator[bytes], *, sha256_hex: str | None = None) -> None:
        """Write an object; see `BlobStore.put`."""
        size = len(data) if isinstance(data, bytes) else None
        await self._folder.write(key, _once(data) if isinstance(data, bytes) else data, size, sha256_hex)

    def get(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield an object's bytes; see `BlobStore.get`."""
        return read_range(self._store, check_key(key), start, end)

    async def head(self, key: str) -> BlobInfo | None:
        """Return what is known of an object; see `BlobStore.head`."""
        return await stat_object(self._store, check_key(key))

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; see `BlobStore.delete`."""
        for key in keys:
            try:
                await obstore.delete_async(self._store, check_key(key))
            except FileNotFoundError:
                continue

    async def sign_put(self, key: str, size: int, sha256_hex: str, now: float | None = None) -> SignedRequest:
        """Sign an upload; see `BlobStore.sign_put`."""
        grant = Grant("PUT", check_key(key), self._expiry(now), size, check_digest(sha256_hex))
        return SignedRequest(
            "PUT", self._base + self._signer.sign(grant), upload_headers(size, sha256_hex), URL_SECONDS
        )

    async def sign_get(self, key: str, filename: str, now: float | None = None) -> SignedRequest:
        """Sign a download; see `BlobStore.sign_get`."""
        grant = Grant("GET", check_key(key), self._expiry(now), name=filename)
        return SignedRequest("GET", self._base + self._signer.sign(grant), {}, URL_SECONDS)

    async def close(self) -> None:
        """Nothing is held."""

    def _expiry(self, now: float | None) -> int:
        return int(self._clock() if now is None else now) + URL_SECONDS


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
