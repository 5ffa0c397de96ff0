"""What a blob store is: objects written once, and signed requests that let others move exactly one of them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote

URL_SECONDS = 600
"""How long a signed request is good for, in seconds."""


class BlobError(Exception):
    """The store could not do it; the message is one sentence without keys, secrets or signed addresses of it."""


class BlobMissing(BlobError):
    """There is no such object."""


class BlobExists(BlobError):
    """The key is taken: objects are written once."""


class BlobCorrupt(BlobError):
    """The bytes are not those of the digest."""


class StoreFull(BlobError):
    """No room is left."""


class StoreUnavailable(BlobError):
    """The store does not answer, or refuses us; the same call may work later."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """An object as the store knows it. `size` in bytes, `modified` in unix seconds."""

    key: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """One HTTP request for one object. The headers are signed: they are sent as they are, or it is refused."""

    method: str
    url: str = field(repr=False)  # its query is a credential
    headers: Mapping[str, str]
    expires_s: int


class BlobStore(Protocol):
    """A store of objects that are written once. Every method raises `BlobError` and `BadKey`."""

    async def put(self, key: str, data: bytes | AsyncIterator[bytes], *, sha256_hex: str | None = None) -> None:
        """Write an object, visible and durable when this returns, else not at all.

        Raises `BlobExists` when the key is taken, and `BlobCorrupt` when the bytes are not those of `sha256_hex`.
        """

    def get(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` up to, not with, `end`, in chunks of at most a few MiB.

        A range past the end is cut there. Raises `BlobMissing` at the first chunk.
        """

    async def head(self, key: str) -> BlobInfo | None:
        """Return what is known of an object, None if it is not there."""

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that are not there count as deleted."""

    async def sign_put(self, key: str, size: int, sha256_hex: str, now: float | None = None) -> SignedRequest:
        """Sign an upload of exactly these bytes to a key that is free. `now`: unix seconds, else the store's own."""

    async def sign_get(self, key: str, filename: str, now: float | None = None) -> SignedRequest:
        """Sign a download as an attachment of that name."""

    async def close(self) -> None:
        """Let go of connections."""


async def verified(chunks: AsyncIterator[bytes], sha256_hex: str) -> AsyncIterator[bytes]:
    """Pass chunks on; raise `BlobCorrupt` at the end if together they do not have the digest.

    The reader must not believe what it has read until this has ended.
    """
    digest = hashlib.sha256()
    async for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != sha256_hex:
        raise BlobCorrupt("an object is damaged: its bytes do not have the digest that was recorded for it")


def content_disposition(filename: str) -> str:
    """Return the header's value that makes a browser save, never show, what comes; any name is safe here."""
    name = "".join(c for c in filename.replace("\\", "/").rsplit("/", 1)[-1] if c.isprintable())[:200] or "download"
    plain = "".join(c if c.isascii() and c not in '"\\%' else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
