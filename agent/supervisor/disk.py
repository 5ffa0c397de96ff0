"""All that the spool asks of a disk, one call each, so that a test can stand between: it fails here, or forgets here.

What is written is there for every process at once, and for nobody after a power cut until it is synced. A sync that
failed once says nothing the second time (Linux drops what it could not write, and forgets): see spool.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""A write that fails so may be tried again once there is room. A sync that does has lost bytes like any other."""
FAILED: Final = frozenset({errno.EIO, errno.EROFS, errno.EUCLEAN, errno.ENXIO, errno.ENODEV})
"""What only a disk says that is not to be trusted any more."""
_BLOCK: Final = 4096


class Disk:
    """A plain file system."""

    def begin(self, path: Path) -> int:
        """Makes a file, or opens it, to append to."""
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def append(self, file: int, data: bytes) -> int:
        """Writes at the end; returns how much of it."""
        return os.write(file, data)

    def cut(self, file: int, size: int) -> None:
        """Takes off what stands behind `size`."""
        os.ftruncate(file, size)

    def sync(self, file: int) -> None:
        """The file's bytes are on the disk when it returns."""
        os.fdatasync(file)

    def sync_folder(self, folder: Path) -> None:
        """The names in the folder are."""
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

    def reserve(self, path: Path, size: int) -> None:
        """Takes room for later, as far as there is any."""
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file, 0, size)
        finally:
            os.close(file)

    def remove(self, path: Path) -> None:
        """Gives its room back; repeatable."""
        path.unlink(missing_ok=True)

    def close(self, file: int) -> None:
        """Closes it."""
        os.close(file)


def read_from(path: Path, at: int, most: int) -> bytes:
    """At most `most` bytes from `at` on. Blocks that the disk does not give back read as zeros: no record is made of
    them, and what stands around them is read all the same. Raises FileNotFoundError.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        most = max(0, min(most, os.fstat(file).st_size - at))  # pread takes the memory of all that it is asked for
        with contextlib.suppress(OSError):
            return os.pread(file, most, at)
        return b"".join(_block(file, begin, min(_BLOCK, at + most - begin)) for begin in range(at, at + most, _BLOCK))
    finally:
        os.close(file)


def _block(file: int, at: int, size: int) -> bytes:
    try:
        return os.pread(file, size, at).ljust(size, b"\0")
    except OSError:
        return bytes(size)
