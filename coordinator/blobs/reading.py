"""Reading through obstore: the same for every store, its errors in our words."""

from __future__ import annotations

from collections.abc import AsyncIterator

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from coordinator.blobs.store import BlobInfo, BlobMissing, StoreUnavailable

_CHUNK = 1 << 20


async def read_range(store: ObjectStore, key: str, start: int, end: int | None) -> AsyncIterator[bytes]:
    """Yield the bytes of an object from `start` up to `end` (None: its end), cut at the object's end."""
    if start < 0 or (end is not None and end < start):
        raise ValueError(f"not a range of bytes: {start} to {end}")
    info = await stat_object(store, key)
    if info is None:
        raise BlobMissing("there is no such object in the blob store")
    stop = info.size if end is None else min(end, info.size)
    if start >= stop:
        return
    try:
        result = await obstore.get_async(store, key, options={"range": (start, stop)})
        async for chunk in result.stream(min_chunk_size=_CHUNK):
            yield bytes(chunk)
    except FileNotFoundError:
        raise BlobMissing("there is no such object in the blob store") from None
    except (BaseError, OSError) as error:
        raise unavailable(error) from error


async def stat_object(store: ObjectStore, key: str) -> BlobInfo | None:
    """Return what the store knows of an object, None if it is not there."""
    try:
        meta = await obstore.head_async(store, key)
    except FileNotFoundError:
        return None
    except (BaseError, OSError) as error:
        raise unavailable(error) from error
    return BlobInfo(key, meta["size"], meta["last_modified"].timestamp())


def unavailable(error: Exception) -> StoreUnavailable:
    """Put an error of the store into one sentence; its own text stays with the cause: it may quote addresses."""
    return StoreUnavailable(f"the blob store does not answer as it should ({type(error).__name__})")
