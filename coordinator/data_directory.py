"""The coordinator's data directory: who may use it, which version wrote it, and the secrets it keeps.

```
<data>/            0700
    lock           flock held by the living owner; the text is its process id
    version        the layout's number; a newer one is refused
    tokens/client  what a client shows, 43 characters of base64, 0600
    tokens/agent   what an agent shows, likewise
    secrets/NAME   32 random bytes for a purpose of the coordinator's own (signed URLs, say), 0600
    postgres/      the embedded PostgreSQL
    blobs/         the `file://` blob store
```
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace.daemon.folders import sync_folder

LAYOUT = 1
"""The number of the layout above. A change that an older coordinator could not read raises it."""

RandomBytes = Callable[[int], bytes]


class DataDirectoryError(Exception):
    """The data directory cannot be used; the message is one sentence with its mend."""


class FolderInUse(DataDirectoryError):
    """Somebody alive holds the folder's lock. `pid` is 0 when it did not say who it is."""

    def __init__(self, folder: Path, pid: int) -> None:
        by = f"process {pid}" if pid else "another process"
        super().__init__(f"{folder} is in use by {by}: stop that one, or choose another data directory")
        self.folder = folder
        self.pid = pid


class FolderLock:
    """An flock on `<folder>/lock`. The kernel drops it when its holder dies, however that happens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None

    def __enter__(self) -> Self:
        """Take the lock at once or raise `FolderInUse`."""
        file = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            text = os.pread(file, 32, 0).strip()
            os.close(file)
            raise FolderInUse(self._folder, int(text) if text.isdigit() else 0) from None
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def make_private_folder(folder: Path) -> None:
    """Make the folder and its parents; it is 0700 afterwards, also when it was there with another mode."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def write_once(file: Path, content: bytes) -> bytes:
    """Write a 0600 file unless it is there, and return what it holds then: the first writer wins.

    Whole or not at all: a crash leaves no half of it, and two that race see the same content.
    """
    with contextlib.suppress(FileNotFoundError):
        return file.read_bytes()
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, file)
    finally:
        temporary.unlink()
    sync_folder(file.parent)
    return file.read_bytes()


class DataDirectory:
    """A data directory in use: a context manager that holds its lock from entry to exit.

    Entering raises `FolderInUse` when another coordinator lives in it, and `DataDirectoryError` when a newer
    version wrote it or it cannot be made.
    """

    def __init__(self, path: Path, random_bytes: RandomBytes = secrets.token_bytes) -> None:
        self.path = path
        self._random = random_bytes
        self._lock = FolderLock(path)

    def __enter__(self) -> Self:
        try:
            make_private_folder(self.path)
            self._lock.__enter__()
        except OSError as error:
            raise DataDirectoryError(f"cannot use the data directory {self.path}: {error.strerror}") from error
        try:
            self._check_layout()
            for name in ("tokens", "secrets"):
                make_private_folder(self.path / name)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)

    @property
    def postgres(self) -> Path:
        """Where the embedded PostgreSQL lives."""
        return self.path / "postgres"

    @property
    def blobs(self) -> Path:
        """Where the `file://` blob store lives."""
        return self.path / "blobs"

    def client_token(self) -> str:
        """The token that a client shows, the same as long as the directory lives."""
        return self._token("client")

    def agent_token(self) -> str:
        """The token that an agent shows, the same as long as the directory lives."""
        return self._token("agent")

    def secret(self, name: str) -> bytes:
        """Return 32 random bytes kept under a name (`[a-z-]+`), the same as long as the directory lives."""
        if not re.fullmatch(r"[a-z-]+", name):
            raise ValueError(f"not a secret's name: {name!r}")
        secret = write_once(self.path / "secrets" / name, self._random(32))
        if len(secret) != 32:
            raise DataDirectoryError(
                f"{self.path / 'secrets' / name} is damaged: remove it and start again, a new one is made then"
            )
        return secret

    def _token(self, name: str) -> str:
        fresh = base64.urlsafe_b64encode(self._random(32)).rstrip(b"=")
        file = self.path / "tokens" / name
        token = write_once(file, fresh + b"\n").decode("ascii", "replace").strip()
        if not re.fullmatch(r"[A-Za-z0-9_-]{32,}", token):
            raise DataDirectoryError(f"{file} is damaged: remove it and start again, a new token is made then")
        return token

    def _check_layout(self) -> None:
        file = self.path / "version"
        text = write_once(file, f"{LAYOUT}\n".encode()).decode("ascii", "replace").strip()
        if not text.isdigit() or not int(text):
            raise DataDirectoryError(f"{file} does not hold a version: is {self.path} a data directory of Headrace?")
        if int(text) > LAYOUT:
            raise DataDirectoryError(
                f"the data directory {self.path} has layout {text}, newer than {LAYOUT} which this Headrace knows: "
                "install the newer Headrace again, or choose another data directory"
            )
