"""Objects as files: written beside, made durable, and linked into place once.

```
<root>/objects/KEY       the objects; 0600
<root>/uploads/RANDOM    what is being written, each under an flock of its writer
```
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from coordinator.blobs.keys import check_key
from coordinator.blobs.store import BlobCorrupt, BlobError, BlobExists, StoreFull
from coordinator.data_directory import make_private_folder
from headrace.daemon.folders import sync_folder

_WRITE = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ObjectFolder:
    """The files behind the `file://` store and the blob endpoint. Blocking work runs in threads."""

    def __init__(self, root: Path) -> None:
        self.objects = root / "objects"
        self._uploads = root / "uploads"
        for folder in (root, self.objects, self._uploads):
            make_private_folder(folder)

    def path(self, key: str) -> Path:
        """Return where an object lies, or would lie."""
        return self.objects / check_key(key)

    async def write(self, key: str, data: AsyncIterator[bytes], size: int | None, sha256_hex: str | None) -> None:
        """Write an object: durable and visible when this returns, else not at all, whatever happens.

        There must be room for `size` bytes at the start.
        Raises `BlobExists`, `BlobCorrupt` (length or digest differ), `StoreFull`.
        """
        path = self.path(key)
        upload = _Upload(self._uploads / secrets.token_hex(16))
        try:
            await _in_thread(upload.open, size or 0)
            await self._receive(upload, data, size)
            if sha256_hex is not None and upload.digest.hexdigest() != sha256_hex:
                raise BlobCorrupt("the bytes do not have the announced SHA-256: send the file again")
            await _in_thread(upload.publish, path, self.objects)
        finally:
            upload.discard()

    async def same(self, key: str, size: int, sha256_hex: str) -> bool:
        """Say whether the object that is there has that size and digest."""
        return await asyncio.to_thread(_has_digest, self.path(key), size, sha256_hex)

    def sweep(self) -> int:
        """Remove what dead writers left half-written, and return how many; uploads under way are left alone."""
        removed = 0
        for file in self._uploads.iterdir():
            with contextlib.suppress(OSError):
                handle = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    file.unlink()
                    removed += 1
                finally:
                    os.close(handle)
        return removed

    async def _receive(self, upload: _Upload, data: AsyncIterator[bytes], size: int | None) -> None:
        buffer, received = bytearray(), 0
        async for chunk in data:
            received += len(chunk)
            if size is not None and received > size:
                raise BlobCorrupt(f"more than the announced {size} bytes came")
            buffer += chunk
            if len(buffer) >= _WRITE:
                full, buffer = buffer, bytearray()
                await _in_thread(upload.write, full)
        if size is not None and received != size:
            raise BlobCorrupt(f"{received} of the announced {size} bytes came")
        await _in_thread(upload.write, buffer)


class _Upload:
    """A file that is being written. It has no name among the objects until `publish`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.digest = hashlib.sha256()
        self._handle = -1

    def open(self, size: int) -> None:
        self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A full disk says so before the bytes have come. Nothing is reserved: a size is only a claim until then.
        disk = os.fstatvfs(self._handle)
        if size > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, chunk: bytearray) -> None:
        self.digest.update(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._handle, view) :]

    def publish(self, path: Path, top: Path) -> None:
        os.fsync(self._handle)
        new = [folder for folder in (path.parent, *path.parent.parents) if folder.is_relative_to(top)]
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.link(self._path, path)
        except FileExistsError:
            raise BlobExists("this object is there already, and objects are written once") from None
        for folder in new:
            sync_folder(folder)

    def discard(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


async def _in_thread(work: Callable[..., None], *arguments: object) -> None:
    """Run work on a file in a thread, and wait for its end also when cancelled: the file is closed after that."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
    except OSError as error:
        raise _translated(error) from error


def _has_digest(path: Path, size: int, sha256_hex: str) -> bool:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != size:
            return False
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256_hex


def _translated(error: OSError) -> BlobError:
    if error.errno in _FULL:
        return StoreFull("the disk of the blob store is full: free some room")
    return BlobError(f"the blob store cannot write: {error.strerror}")
