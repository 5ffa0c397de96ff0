"""Disks of their own for an agent: a small one, and one that takes what it cannot keep."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def thin(folder: Path, below: Path) -> Iterator[Path]:
    """A file system at `folder` that says it has 256 MiB, on a disk at `below` that has 24: what does not fit there is
    taken by `write`, refused by the first `fsync`, and forgotten by the second, as on a disk that goes bad.
    """
    with small(below, "24m"):
        image = below / "image"
        with image.open("wb") as file:
            file.truncate(256 << 20)
        make = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        subprocess.run([make, "-q", "-O", "^has_journal", "-E", "nodiscard", image], check=True)
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-R", "-l", folder], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves so many bytes free on a small disk, or less where others fill it too."""
    ballast = disk / "ballast"
    found = subprocess.run(["df", "-B1", "--output=avail", disk], check=True, capture_output=True, text=True).stdout
    free = int(found.splitlines()[1])
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        file.write(bytes(max(0, free - leave)))
    return ballast
