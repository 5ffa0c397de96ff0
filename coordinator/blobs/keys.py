"""The names of objects: which there are, and which are names at all.

Every object is written once. So a key holds what makes its content unique: a digest, or an attempt and something
random, and nobody who comes late can overwrite anything.
"""

from __future__ import annotations

import re

KEY_MAX = 512
"""Bytes of the longest key."""

_COMPONENT = re.compile(r"[a-z0-9_=-][a-z0-9_.=-]{0,199}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_STREAM = re.compile(r"[a-z0-9_][a-z0-9_-]{0,62}")
_RANDOM = re.compile(r"[a-z0-9]{8,64}")


class BadKey(ValueError):
    """Not a key of ours; the message is one sentence."""


def check_key(key: str) -> str:
    """Return the key if it is one: components of `[a-z0-9_.=-]`, none empty or with a dot in front, no `..`."""
    if len(key) > KEY_MAX or ".." in key or not all(_COMPONENT.fullmatch(part) for part in key.split("/")):
        raise BadKey(f"not a blob's key: {key[:KEY_MAX]!r}")
    return key


def check_digest(sha256: str) -> str:
    """Return the digest if it is 64 lower-case hexadecimal digits."""
    if not _DIGEST.fullmatch(sha256):
        raise BadKey(f"not a SHA-256 in lower-case hexadecimal: {sha256[:80]!r}")
    return sha256


def artifact_key(run: int, attempt: int, sha256: str) -> str:
    """A file of an artifact: two attempts that make the same bytes have an object each."""
    return f"artifacts/{_number(run)}/{_number(attempt)}/{check_digest(sha256)}"


def log_segment_key(run: int, attempt: int, stream: str, offset: int, random: str) -> str:
    """A compacted segment of a log that begins at `offset`; `random` tells two compactions of it apart."""
    if not _STREAM.fullmatch(stream):
        raise BadKey(f"not a stream's name: {stream[:80]!r}")
    if not _RANDOM.fullmatch(random):
        raise BadKey("the random part of a segment's key is 8 to 64 characters of [a-z0-9]")
    return f"logs/{_number(run)}/{_number(attempt)}/{stream}/{_number(offset):015d}-{random}"


def bundle_key(sha256: str) -> str:
    """A git bundle that a client brought: the same bytes are one object, whoever brings them."""
    return f"bundles/{check_digest(sha256)}"


def _number(value: int) -> int:
    if value < 0:
        raise BadKey(f"not a number of a run, an attempt or a byte: {value}")
    return value
