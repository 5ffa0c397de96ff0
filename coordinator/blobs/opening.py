"""From a URL to a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from coordinator.blobs.folder import ObjectFolder
from coordinator.blobs.local import LocalBlobs
from coordinator.blobs.s3 import S3Blobs, S3Settings, StoreClock
from coordinator.blobs.store import BlobError, BlobStore
from coordinator.blobs.urls import UrlSigner


@dataclass(frozen=True, slots=True)
class BlobSettings:
    """What a store needs beyond its URL: `endpoint_url` and `secret` for `file://`, `s3` for `s3://`.

    `endpoint_url` is where agents and clients reach our blob endpoint; `secret` are 32 random bytes that sign.
    """

    endpoint_url: str = ""
    secret: bytes = field(default=b"", repr=False)
    s3: S3Settings = field(default_factory=S3Settings)


def open_blob_store(
    url: str,
    settings: BlobSettings,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> BlobStore:
    """Open `file:///absolute/folder` or `s3://bucket/prefix`. Raises `BlobError`, one sentence.

    `clock`: Unix seconds, by which addresses of the `file://` store expire; those of S3 do by the store's own.
    """
    parts = urlsplit(url)
    match parts.scheme:
        case "file" if parts.path.startswith("/") and parts.netloc in {"", "localhost"}:
            if not settings.endpoint_url:
                raise BlobError("a file:// blob store needs the address of the blob endpoint")
            folder = open_folder(Path(unquote(parts.path)))
            return LocalBlobs(folder, settings.endpoint_url, UrlSigner([settings.secret]), clock)
        case "s3" if parts.netloc:
            s3 = settings.s3
            if not s3.access_key_id or not s3.secret_access_key:
                raise BlobError(f"the blob store {url} needs an access key id and a secret access key")
            store_clock = StoreClock(s3.base_url(parts.netloc), monotonic)
            return S3Blobs(parts.netloc, unquote(parts.path), s3, store_clock)
        case _:
            raise BlobError(f"not a blob store: {url!r}; use file:///absolute/folder or s3://bucket/prefix")


def open_folder(root: Path) -> ObjectFolder:
    """Open the folder of a `file://` store, for the store and for the blob endpoint, and sweep what a crash left."""
    try:
        folder = ObjectFolder(root)
        folder.sweep()
    except OSError as error:
        raise BlobError(f"cannot use {root} as blob store: {error.strerror}") from error
    return folder
