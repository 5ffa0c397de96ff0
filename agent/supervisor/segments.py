"""The files of a spool, in order: `spool.SEQUENCE.OFFSET.SEED`.

The name says where in the log the file begins, so that what is damaged in one can be counted without the one before,
and with which seed its checksums are made. A file of the version before has its sequence number alone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, NamedTuple

_NAME: Final = "spool"


class Segment(NamedTuple):
    """One file."""

    first: int
    """Sequence number of its first record."""
    offset: int | None
    """Raw offset of the log where it begins; None: of the version before."""
    seed: int
    path: Path


def segments(folder: Path) -> list[Segment]:
    """All of a folder, in order; none where it is gone."""
    with contextlib.suppress(FileNotFoundError):
        found = [_segment(folder, name) for name in os.listdir(folder)]  # noqa: PTH208 - names alone
        return sorted((each for each in found if each is not None), key=lambda each: (each.first, each.path.name))
    return []


def named(folder: Path, first: int, offset: int, seed: int) -> Segment:
    """A new one."""
    return Segment(first, offset, seed, folder / f"{_NAME}.{first:020}.{offset:020}.{seed:08x}")


def _segment(folder: Path, name: str) -> Segment | None:
    match name.split("."):
        case [word, first] if word == _NAME and first.isdecimal():
            return Segment(int(first), None, 0, folder / name)
        case [word, first, offset, seed] if word == _NAME and first.isdecimal() and offset.isdecimal():
            with contextlib.suppress(ValueError):
                return Segment(int(first), int(offset), int(seed, 16), folder / name)
    return None
