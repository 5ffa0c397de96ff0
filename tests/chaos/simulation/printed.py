"""What the commands of the simulation print: bytes that anybody can compute again. Pure."""

from __future__ import annotations

import hashlib

_SIZE = 65_521
"""A prime: no record's length divides it."""
_BLOCK = hashlib.shake_128(b"what jobs print").digest(_SIZE)
_TWICE = _BLOCK * 2
SURE = 12
"""So many bytes stand in one place alone."""


def printed(attempt: int, life: int, at: int, size: int) -> bytes:
    """Bytes `at` to `at + size` of what an attempt prints; `life`: it may begin anew after a power cut."""
    begin = (at + _shift(attempt, life)) % _SIZE
    return (_BLOCK * (2 + size // _SIZE))[begin : begin + size] if size > _SIZE else _TWICE[begin : begin + size]


def place_of(attempt: int, life: int, data: bytes, after: int, missing: int) -> int | None:
    """Where in it these bytes stand: `missing` bytes behind `after`, or less; None: not there."""
    if printed(attempt, life, after + missing, len(data)) == data:
        return after + missing
    if not missing:
        return None
    found = printed(attempt, life, after, min(missing, _SIZE) + len(data)).find(data)
    return after + found if found >= 0 else None


def _shift(attempt: int, life: int) -> int:
    return attempt * 7_919 + life * 104_729
