"""Walks over a whole tree that a job wrote, from the bottom up: to remove it, or to hand it over to a uid.

However deep the tree, one folder is open at a time: the way down goes by name without following links, the way up
by `..`, proved by device and inode to be the folder that was left. Blocks: call it in a thread.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
_UNREMOVABLE = 0x10 | 0x20
"""FS_IMMUTABLE_FL and FS_APPEND_FL: `chattr +i` and `+a`."""
_REFUSED = frozenset({errno.EACCES, errno.EPERM})
_RETRIES = 5


class NotRemoved(Exception):
    """The tree could not be removed; the message says what stands in the way."""


@dataclass(slots=True)
class _Level:
    """A folder on the way down: its name in its parent, what it is, and the folders in it still to be entered."""

    name: str
    identity: tuple[int, int]
    folders: list[str] = field(default_factory=list)
    passes: int = 0


def remove_tree(folder: Path) -> None:
    """Removes a folder with all in it; one that is not there is fine.

    Links are removed, not followed. Folders without permissions and immutable files are opened up first, as far as
    the agent's uid can. Raises `NotRemoved` when a file system is mounted below (nothing is removed then), when
    the kernel refuses, or when somebody keeps adding files.
    """
    if (mounted := mounts_below(folder)) != ():
        raise NotRemoved(f"{folder} is not removed: {mounted[0]} is mounted below it.")
    try:
        parent = os.open(folder.parent, _FOLDER)
    except FileNotFoundError:
        return
    try:
        facts = os.stat(folder.name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(facts.st_mode):
            _remove_below(parent, folder.name, facts)
        else:
            _unlink(parent, folder.name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise NotRemoved(f"{folder} is not removed: {error.strerror}.") from error
    finally:
        os.close(parent)


def mounts_below(folder: Path) -> tuple[str, ...]:
    """Mount points strictly below the folder, as this process sees them."""
    prefix = os.path.realpath(folder).rstrip("/") + "/"
    points = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        raw = os.fsdecode(line.split(b" ")[4])
        point = raw.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        if point.startswith(prefix):
            points.append(point)
    return tuple(points)


def hand_over(folder: Path, uid: int, gid: int) -> None:
    """Gives a folder and all in it to a uid, links themselves rather than what they point to.

    For a tree that no job has seen yet: a fresh checkout.
    """
    root = os.open(folder, _FOLDER)
    here = root
    try:
        os.fchown(here, uid, gid)
        levels = [_Level("", _identity(os.fstat(here)), _own_entries(here, uid, gid))]
        while levels:
            if levels[-1].folders:
                name = levels[-1].folders.pop()
                below = os.open(name, _FOLDER, dir_fd=here)
                here = _swap(here, below)
                os.fchown(here, uid, gid)
                levels.append(_Level(name, _identity(os.fstat(here)), _own_entries(here, uid, gid)))
            else:
                levels.pop()
                if levels:
                    here = _up(here, levels[-1].identity)
    finally:
        os.close(here)


def _own_entries(here: int, uid: int, gid: int) -> list[str]:
    folders = []
    with os.scandir(here) as listing:
        for entry in listing:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.chown(entry.name, uid, gid, dir_fd=here, follow_symlinks=False)
    return folders


def _remove_below(parent: int, name: str, facts: os.stat_result) -> None:
    """Empties and removes the folder `name`, all on one file system."""
    top = _identity(os.fstat(parent))
    device = facts.st_dev
    here = _open_folder(parent, name, device)
    levels = [_Level(name, _identity(os.fstat(here)))]
    try:
        levels[-1].folders = _unlink_files(here)
        while levels:
            level = levels[-1]
            if level.folders:
                child = level.folders.pop()
                try:
                    here = _swap(here, _open_folder(here, child, device))
                except (FileNotFoundError, NotADirectoryError):
                    continue  # swapped for something else: the next pass over this folder sees it
                levels.append(_Level(child, _identity(os.fstat(here)), _unlink_files(here)))
                continue
            above = levels[-2].identity if len(levels) > 1 else top
            here = _up(here, above)
            if _rmdir(here, level.name):
                levels.pop()
                continue
            # Somebody added files meanwhile: once more, but not for ever.
            level.passes += 1
            if level.passes > _RETRIES:
                raise OSError(errno.ENOTEMPTY, "files keep being added in it")
            here = _swap(here, _open_folder(here, level.name, device))
            level.identity = _identity(os.fstat(here))
            level.folders = _unlink_files(here)
    finally:
        os.close(here)


def _unlink_files(here: int) -> list[str]:
    """Removes all files of a folder and returns the names of its folders."""
    folders = []
    with os.scandir(here) as listing:
        for entry in listing:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                _unlink(here, entry.name)
    return folders


def _unlink(here: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=here)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        _open_up(here)
        _clear_flags(here, name)
        os.unlink(name, dir_fd=here)


def _rmdir(here: int, name: str) -> bool:
    """False: it is not empty."""
    try:
        os.rmdir(name, dir_fd=here)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        if error.errno not in _REFUSED:
            raise
        _open_up(here)
        os.rmdir(name, dir_fd=here)
    return True


def _open_folder(here: int, name: str, device: int) -> int:
    try:
        below = os.open(name, _FOLDER, dir_fd=here)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotADirectoryError(errno.ENOTDIR, f"{name} is a link") from error
        if not isinstance(error, PermissionError):
            raise
        look = os.open(name, _LOOK | os.O_DIRECTORY, dir_fd=here)
        try:  # by its descriptor: a name could be a link by now
            Path(f"/proc/self/fd/{look}").chmod(0o700)
        finally:
            os.close(look)
        below = os.open(name, _FOLDER, dir_fd=here)
    if os.fstat(below).st_dev != device:
        os.close(below)
        raise OSError(errno.EXDEV, f"{name} is another file system")
    return below


def _up(here: int, identity: tuple[int, int]) -> int:
    """Leaves a folder for its parent, which must be the one that we came from."""
    above = os.open("..", _FOLDER, dir_fd=here)
    if _identity(os.fstat(above)) != identity:
        os.close(above)
        raise OSError(errno.ESTALE, "a folder was moved while the tree was walked")
    return _swap(here, above)


def _swap(old: int, new: int) -> int:
    os.close(old)
    return new


def _identity(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_dev, facts.st_ino


def _open_up(here: int) -> None:
    """Makes a folder of ours writable, and takes `chattr +i` and `+a` off it."""
    _clear(here)
    with contextlib.suppress(PermissionError):
        os.fchmod(here, 0o700)


def _clear_flags(here: int, name: str) -> None:
    """Takes `chattr +i` and `+a` off a regular file; other kinds have no such flags."""
    look = os.open(name, _LOOK, dir_fd=here)
    try:
        if not stat.S_ISREG(os.fstat(look).st_mode):
            return
        with contextlib.suppress(PermissionError):
            file = os.open(f"/proc/self/fd/{look}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                _clear(file)
            finally:
                os.close(file)
    finally:
        os.close(look)


def _clear(descriptor: int) -> None:
    flags = array.array("l", [0])
    with contextlib.suppress(OSError):  # file systems without flags, and agents that are not root
        fcntl.ioctl(descriptor, _GETFLAGS, flags, True)  # noqa: FBT003 - the library's own signature
        if flags[0] & _UNREMOVABLE:
            flags[0] &= ~_UNREMOVABLE
            fcntl.ioctl(descriptor, _SETFLAGS, flags, True)  # noqa: FBT003 - the library's own signature
