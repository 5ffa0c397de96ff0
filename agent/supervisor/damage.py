"""What takes the place of records that cannot be read any more. Pure.

A log counts its records and its bytes without gaps: as many records as are missing, with as many raw bytes as they
declared, so that everything behind keeps its place. The first bytes say what happened; the rest are NUL.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

import zstandard

from agent.supervisor.records import Kind, Record

FRAME_MOST: Final = 64 << 10
_SHORT: Final = b"*** damaged ***\n"


class Stand(NamedTuple):
    """How far a log has come: behind which record and byte, and in which section (0: none yet, or not known)."""

    sequence: int = 0
    offset: int = 0
    section: int = 0


class Damage(NamedTuple):
    """Records `first` to `last`, with `missing` bytes of the log in them."""

    first: int
    last: int
    missing: int


def sentence(missing: int) -> str:
    """What the log says in their place."""
    return f"*** headrace: {missing} bytes of this log were damaged on the agent's disk ***"


def length_of(text: str) -> int:
    """Bytes of the log that a text of ours takes, with the end of its line."""
    return len(text.encode()) + 1


def filled(stand: Stand, until: Stand, text: str) -> Iterator[Record]:
    """Records from behind `stand` up to `until`, that one included. `until.section`: the one that what follows is in.

    Sections that were opened in between are opened, without their titles. How the bytes are dealt depends on what is
    left alone: whoever begins anew in the middle gets the same.
    """
    missing, count = until.offset - stand.offset, until.sequence - stand.sequence
    opened = range(stand.section + 1, until.section + 1) if stand.section else range(0)
    opened = opened[: max(0, count - (1 if missing else 0))]
    frames = min(count - len(opened), missing)
    raw = _text(text, missing)
    for left in range(frames, 0, -1):
        piece, raw = raw[: -(-len(raw) // left)], raw[-(-len(raw) // left) :]
        stand = Stand(stand.sequence + 1, stand.offset, stand.section)
        payload = zstandard.ZstdCompressor(level=1).compress(piece)
        yield Record(stand.sequence, Kind.FRAME, stand.offset, 0, stand.section, len(piece), payload, ours=True)
        stand = stand._replace(offset=stand.offset + len(piece))
    for number in range(count - frames - len(opened)):
        result = json.dumps({"result": ""}).encode()
        yield Record(stand.sequence + 1 + number, Kind.CLOSED, stand.offset, 0, max(1, stand.section), 0, result)
    for number, section in enumerate(opened, until.sequence - len(opened) + 1):
        facts = {"kind": "cleanup", "title": "Damaged on the agent's disk", "step": -1, "ours": True}
        yield Record(number, Kind.OPENED, stand.offset, 0, section, 0, json.dumps(facts).encode())


def _text(text: str, size: int) -> bytes:
    whole = text.encode() + b"\n"
    fitting = whole if len(whole) <= size else _SHORT[-size:] if size else b""
    return fitting.ljust(size, b"\0")
