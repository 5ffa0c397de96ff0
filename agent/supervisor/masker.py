"""Masking of secrets in a stream of bytes, however it is cut.

Pure. The output is the same for any chunking: every byte that belongs to an occurrence of a secret is covered,
occurrences that overlap are covered by one `***`. A secret that holds `*` itself is masked too, but the mask can
then stand beside bytes that look like it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MASK: Final = b"***"


class Masker:
    """Replaces secrets by `***`. Holds back at most the longest secret - 1 bytes."""

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        self._secrets: tuple[bytes, ...] = ()
        self._held = b""
        self._covered = 0
        """Leading bytes of `_held` for which a mask has been given out already."""
        self.add(secrets)

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """What is masked, longest first."""
        return self._secrets

    @property
    def held(self) -> int:
        """Bytes that wait for what follows them."""
        return len(self._held)

    def add(self, secrets: Iterable[bytes]) -> None:
        """From now on these are masked as well; empty ones are ignored."""
        known = {*self._secrets, *(secret for secret in secrets if secret)}
        self._secrets = tuple(sorted(known, key=lambda secret: (-len(secret), secret)))

    def feed(self, data: bytes) -> bytes:
        """What can be given out once `data` has come."""
        if not self._secrets:
            return data
        text = self._held + data if self._held else data
        return self._give(text, len(text) - _open_end(text, self._secrets))

    def flush(self) -> bytes:
        """What was held back: nothing more will come that could complete it."""
        return self._give(self._held, len(self._held))

    def _give(self, text: bytes, end: int) -> bytes:
        """Gives out `text` before `end`, and holds the rest."""
        spans = _found(text, self._secrets)
        if not spans and not self._covered:  # nearly always
            self._held = text[end:]
            return text if end == len(text) else text[:end]
        parts: list[bytes] = []
        at = self._covered
        for start, stop in spans:
            if start >= end:
                break
            if start >= at:  # otherwise it continues the mask before it
                parts += (text[at:start], MASK)
            at = max(at, stop)
        if at < end:
            parts.append(text[at:end])
        self._held, self._covered = text[end:], max(0, at - end)
        return b"".join(parts)


def _found(text: bytes, secrets: Iterable[bytes]) -> list[tuple[int, int]]:
    """All occurrences of all secrets, overlapping ones too, in order of their start."""
    spans = []
    for secret in secrets:
        at = text.find(secret)
        while at >= 0:
            spans.append((at, at + len(secret)))
            at = text.find(secret, at + 1)
    spans.sort()
    return spans


def _open_end(text: bytes, secrets: Iterable[bytes]) -> int:
    """Length of the longest end of `text` that is the beginning of a secret, but not a whole one."""
    longest = 0
    for secret in secrets:
        at = text.find(secret[:1], max(0, len(text) - len(secret) + 1))
        while 0 <= at < len(text) - longest:
            if secret.startswith(text[at:]):
                longest = len(text) - at
                break
            at = text.find(secret[:1], at + 1)
    return longest
