"""Small disks of memory, which are soon full, and room on them again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.integration.agent.disks import fill, small

__all__ = ["full", "small"]


@contextlib.contextmanager
def full(disk: Path, leave: int = 0) -> Iterator[None]:
    """While inside, only so many bytes are free on a small disk; afterwards there is room again."""
    ballast = fill(disk, leave)
    try:
        yield
    finally:
        ballast.unlink()
