"""Cuts a stream of bytes into frames of 64 KiB, or of what came within 100 ms. Pure: the time is passed in."""

from __future__ import annotations

from typing import Final

MOST: Final = 64 * 1024
"""Raw bytes in a frame, at most."""
WAIT_MS: Final = 100
"""How long the first byte of a frame may wait for others."""


class Framer:
    """Collects bytes; gives out frames as soon as they are full or due."""

    def __init__(self, most: int = MOST, wait_ms: int = WAIT_MS) -> None:
        self._most = most
        self._wait_ms = wait_ms
        self._text = bytearray()
        self.due: int | None = None
        """When `flush` is to be called, in the caller's milliseconds; None: nothing waits."""

    def feed(self, data: bytes, now_ms: int) -> list[bytes]:
        """The frames that are full now."""
        if not data:
            return []
        text, most = self._text, self._most
        if not text:
            self.due = now_ms + self._wait_ms
        text += data
        if len(text) < most:
            return []
        whole = len(text) - len(text) % most
        frames = [bytes(text[at : at + most]) for at in range(0, whole, most)]
        del text[:whole]
        self.due = now_ms + self._wait_ms if text else None
        return frames

    def flush(self) -> bytes:
        """What is there, at once; empty when there is nothing."""
        frame = bytes(self._text)
        self._text.clear()
        self.due = None
        return frame
