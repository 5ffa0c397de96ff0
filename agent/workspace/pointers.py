"""What stands in a commit instead of a large file: a pointer of git LFS. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

LARGEST = 1024
"""Bytes that a pointer has at most, by git LFS's own rule."""
SMALLEST = 100
"""And at least: its two fixed lines alone are longer."""

_VERSIONS = (b"version https://git-lfs.github.com/spec/v1\n", b"version https://hawser.github.com/spec/v1\n")
_OID = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)
_SIZE = re.compile(rb"^size ([0-9]{1,19})$", re.MULTILINE)
_EXTENSION = re.compile(rb"^ext-[0-9]+-", re.MULTILINE)


class BadPointer(Exception):
    """A pointer that cannot be followed; the message says why."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """A large file: its SHA-256 (hex) and its size in bytes."""

    oid: str
    size: int

    def text(self) -> bytes:
        """As git LFS writes it."""
        return _VERSIONS[0] + f"oid sha256:{self.oid}\nsize {self.size}\n".encode()

    def below(self) -> str:
        """Where stores of large files have it, below their folder."""
        return f"objects/{self.oid[:2]}/{self.oid[2:4]}/{self.oid}"


def pointer_of(content: bytes) -> Pointer | None:
    """The pointer that a file's content is; None: it is a file like others. Raises `BadPointer`."""
    if len(content) >= LARGEST or not content.startswith(_VERSIONS):
        return None
    if _EXTENSION.search(content):
        raise BadPointer("its pointer needs an extension of git LFS, and none is run here")
    oid, size = _OID.search(content), _SIZE.search(content)
    if oid is None or size is None:
        raise BadPointer("its pointer has no `oid sha256:` or no `size`")
    return Pointer(oid[1].decode(), int(size[1]))
