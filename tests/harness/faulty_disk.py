"""A disk that loses its power, or fails: real files, and what of them was synced."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from agent.supervisor.disk import Disk


class FaultyDisk(Disk):
    """Stands between the spool and its files."""

    def __init__(self) -> None:
        self.fails: dict[str, int] = {}
        """The errno of a call by its name, until it is taken out."""
        self.calls: list[tuple[str, int]] = []
        """Syncs, in order, with their file."""
        self._paths: dict[int, Path] = {}
        self._synced: dict[Path, int] = {}
        self._named: set[Path] = set()

    def begin(self, path: Path) -> int:
        """Makes a file, or opens it."""
        self._check("begin")
        file = super().begin(path)
        self._paths[file] = path
        self._synced.setdefault(path, 0)
        return file

    def append(self, file: int, data: bytes) -> int:
        """Writes; a full disk takes half of it first."""
        if self.fails.get("append") == errno.ENOSPC and len(data) > 1:
            super().append(file, data[: len(data) // 2])
        self._check("append")
        return super().append(file, data)

    def cut(self, file: int, size: int) -> None:
        """Takes off the end."""
        self._check("cut")
        super().cut(file, size)

    def sync(self, file: int) -> None:
        """Syncs."""
        self.calls.append(("sync", file))
        self._check("sync")
        super().sync(file)
        self._synced[self._paths[file]] = os.fstat(file).st_size

    def sync_folder(self, folder: Path) -> None:
        """Syncs the names."""
        self._check("sync_folder")
        self._named |= {path for path in self._synced if path.parent == folder}

    def remove(self, path: Path) -> None:
        """Removes."""
        super().remove(path)
        self._synced.pop(path, None)
        self._named.discard(path)

    def power_cut(self, kept: Callable[[int], int]) -> None:
        """All processes are gone by now. `kept`: how many of so many bytes that were not synced are there again."""
        for path, synced in list(self._synced.items()):
            if path not in self._named:
                self.remove(path)
                continue
            size = path.stat().st_size
            unsynced = max(0, size - synced)
            there = min(size, synced) + min(unsynced, kept(unsynced))
            os.truncate(path, there)
            self._synced[path] = there

    def _check(self, call: str) -> None:
        if (found := self.fails.get(call)) is not None:
            raise OSError(found, os.strerror(found))
