"""The only way to read what a job wrote, and to put files where a job can write.

The tree is hostile: any name in it may be a symbolic link, a FIFO, a device, a file of a petabyte, and may become
another between two looks. So every path is walked from an open descriptor of the root, component by component,
no link is ever followed, a thing is opened for its contents only after its descriptor has proved to be a regular
file, and sizes count while reading. All of this blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace.pipeline.globs import Patterns, State

DEEPEST = 200
"""Components of a path that is read or placed."""

_CHUNK = 1 << 20
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_REWRITE = os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class TreeProblem(Exception):
    """Something in the tree is not what may be read or written; the message is one sentence."""


class NotThere(TreeProblem):
    """No such file."""


class NotRegular(TreeProblem):
    """A link, FIFO, device, socket or folder stands where a file or a folder was asked for."""


class TooMuch(TreeProblem):
    """A bound was reached: bytes, matches, entries, depth or time."""


class Occupied(TreeProblem):
    """Something stands already where a file has to go."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom placed files and folders are given to."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far a glob may look: files found, entries seen, folders deep, seconds."""

    matches: int = 10_000
    entries: int = 2_000_000
    depth: int = DEEPEST
    seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a glob found: paths relative to the root, sorted; and what matched but is no regular file (at most 20)."""

    files: tuple[str, ...]
    passed_over: tuple[str, ...]


def components(relative: str) -> list[str]:
    """The names of a relative path, normalised; raises `TreeProblem` for one that could lead anywhere else."""
    names = [name for name in relative.split("/") if name not in {"", "."}]
    if relative.startswith("/") or ".." in names or "\0" in relative or not names:
        raise TreeProblem(f"{relative!r} is no path below the workspace.")
    if len(names) > DEEPEST or any(len(os.fsencode(name)) > 255 for name in names):
        raise TooMuch(f"The path {relative[:60]!r}… is too deep or has too long a name.")
    return names


class Tree:
    """A folder that a job could write to, held open. Use as a context manager."""

    def __init__(self, descriptor: int, shown: str) -> None:
        self._root = descriptor
        self._shown = shown
        self._device = os.fstat(descriptor).st_dev

    @classmethod
    def open(cls, folder: Path) -> Tree:
        """Opens a folder. The path to it is the agent's own; the last component may not be a link."""
        return cls(os.open(folder, _FOLDER), folder.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._root)

    @contextlib.contextmanager
    def file(self, relative: str) -> Iterator[int]:
        """A descriptor of a regular file, to be read. Raises `NotThere`, `NotRegular`."""
        names = components(relative)
        with self._folder(names[:-1], relative) as folder:
            descriptor = self._open_regular(folder, names[-1], relative)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def rewritten(self, relative: str) -> Iterator[int]:
        """A descriptor of a regular file that is there, emptied, to be written anew under the same mode."""
        names = components(relative)
        with self._folder(names[:-1], relative) as folder:
            descriptor = self._open_regular(folder, names[-1], relative, _REWRITE)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, relative: str, limit: int) -> bytes:
        """The whole file, if it has at most `limit` bytes; else raises `TooMuch`."""
        return b"".join(self.chunks(relative, limit))

    def chunks(self, relative: str, limit: int) -> Iterator[bytes]:
        """The file piece by piece (at most 1 MiB each); raises `TooMuch` as soon as it has over `limit` bytes."""
        with self.file(relative) as descriptor:
            if os.fstat(descriptor).st_size > limit:
                raise TooMuch(f"{relative} has over {limit} bytes.")
            left = limit
            while chunk := os.read(descriptor, min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise TooMuch(f"{relative} has over {limit} bytes.")
                yield chunk

    def facts(self, relative: str) -> os.stat_result:
        """`lstat` of a path, with no link followed on the way to it either. Raises `NotThere`, `NotRegular`."""
        names = components(relative)
        with self._folder(names[:-1], relative) as folder:
            try:
                return os.stat(names[-1], dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError as error:
                raise NotThere(f"{relative} does not exist.") from error

    def glob(self, patterns: Patterns, bounds: Bounds, clock: Callable[[], float]) -> Found:
        """The regular files that the patterns mean. Raises `TooMuch` when a bound is reached.

        `clock` counts seconds. Each folder is opened anew from the root: however deep the tree, no more than two
        descriptors are held, and a folder swapped for a link in mid-walk is passed over.
        """
        files: list[str] = []
        passed_over: list[str] = []
        pending: list[tuple[list[str], State]] = [([], patterns.start())]
        seen, end = 0, clock() + bounds.seconds
        while pending:
            names, state = pending.pop()
            for entry, kind in self._entries(names):
                seen += 1
                if seen > bounds.entries or clock() > end:
                    raise TooMuch(
                        f"Over {min(seen, bounds.entries)} names were looked at for these patterns: name fewer folders."
                    )
                at_root = not names
                path = "/".join((*names, entry))
                if kind == stat.S_IFDIR:
                    inside = patterns.below(state, entry, at_root=at_root)
                    if inside is None:
                        continue
                    if len(names) + 1 >= bounds.depth:
                        raise TooMuch(f"The folders at {path[:60]}… are over {bounds.depth} deep.")
                    pending.append(([*names, entry], inside))
                elif patterns.takes(state, entry, at_root=at_root):
                    if kind == stat.S_IFREG:
                        files.append(path)
                        if len(files) > bounds.matches:
                            raise TooMuch(f"The patterns match over {bounds.matches} files: pack them into one.")
                    elif len(passed_over) < 20:
                        passed_over.append(path)
        return Found(tuple(sorted(files)), tuple(sorted(passed_over)))

    def _entries(self, names: list[str]) -> Iterator[tuple[str, int]]:
        """Names and kinds in a folder; none if it is gone, is no folder any more or may not be read."""
        try:
            with self._folder(names, "/".join(names)) as folder, os.scandir(folder) as listing:
                for entry in listing:
                    yield entry.name, _kind(entry)
        except (TreeProblem, PermissionError):
            return

    def check_free(self, relative: str) -> None:
        """Raises `Occupied` if anything stands at the path, or if anything but a folder stands on the way to it."""
        try:
            self.facts(relative)
        except NotThere:
            return
        except NotRegular as error:
            raise Occupied(str(error)) from error
        raise Occupied(f"{relative} exists already.")

    @contextlib.contextmanager
    def place(self, relative: str, *, mode: int, owner: Owner | None) -> Iterator[int]:
        """Makes a new file, and the folders to it, and gives a descriptor to write to.

        Permission bits beyond 0777 are dropped. Raises `Occupied` rather than overwrite anything or follow a link;
        if the body fails, the file is gone again.
        """
        names = components(relative)
        with self._folder(names[:-1], relative, make=True, owner=owner) as folder:
            try:
                descriptor = os.open(names[-1], _CREATE, 0o600, dir_fd=folder)
            except OSError as error:
                if isinstance(error, FileExistsError):
                    raise Occupied(f"{relative} exists already.") from error
                raise
            try:
                yield descriptor
                if owner is not None:
                    os.fchown(descriptor, owner.uid, owner.gid)
                os.fchmod(descriptor, mode & 0o777)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(names[-1], dir_fd=folder)
                raise
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def _folder(self, names: list[str], shown: str, *, make: bool = False, owner: Owner | None = None) -> Iterator[int]:
        """A descriptor of the folder, reached name by name; never a link, never another file system."""
        here = os.dup(self._root)
        try:
            for name in names:
                below = self._enter(here, name, shown, make=make, owner=owner)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    def _enter(self, here: int, name: str, shown: str, *, make: bool, owner: Owner | None) -> int:
        try:
            below = os.open(name, _FOLDER, dir_fd=here)
        except FileNotFoundError as error:
            if not make:
                raise NotThere(f"{shown} does not exist.") from error
            try:
                os.mkdir(name, 0o755, dir_fd=here)
            except FileExistsError:
                owner = None  # somebody else's
            below = self._enter(here, name, shown, make=False, owner=None)
            if owner is not None:
                os.fchown(below, owner.uid, owner.gid)
            return below
        except OSError as error:  # ELOOP, ENOTDIR: a link, or no folder
            if isinstance(error, PermissionError):
                raise
            kind = Occupied if make else NotRegular
            raise kind(f"{name} on the way to {shown} is no folder.") from error
        if os.fstat(below).st_dev != self._device:
            os.close(below)
            raise NotRegular(f"{name} on the way to {shown} is another file system.")
        return below

    def _open_regular(self, folder: int, name: str, shown: str, how: int = _READ) -> int:
        """Looks before it opens: opening a device or FIFO for its contents can act, or hang."""
        try:
            look = os.open(name, _LOOK, dir_fd=folder)
        except FileNotFoundError as error:
            raise NotThere(f"{shown} does not exist.") from error
        try:
            facts = os.fstat(look)
            if not stat.S_ISREG(facts.st_mode) or facts.st_dev != self._device:
                raise NotRegular(f"{shown} is no regular file.")
            return os.open(f"/proc/self/fd/{look}", how)  # the very file that was looked at
        except (BlockingIOError, PermissionError) as error:
            raise NotRegular(f"{shown} cannot be read: {error.strerror}.") from error
        finally:
            os.close(look)


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0
