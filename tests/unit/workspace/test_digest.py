"""What `hash()` of an expression means."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest

from agent.workspace.digest import digest_of
from agent.workspace.tree import TooMuch, Tree
from headrace.pipeline.globs import BadPattern


def hashed(folder: Path, *globs: str, **bounds: int) -> str:
    with Tree.open(folder) as tree:
        return digest_of(tree, globs, time.monotonic, **bounds)


def test_the_hash_changes_with_a_name_or_a_byte_and_with_nothing_else(tmp_path: Path) -> None:
    """A cache key: too few changes restore what is stale, too many restore nothing."""
    found = []
    for names in (
        {"a": b"1", "b": b"2"},
        {"a": b"12", "b": b""},
        {"a": b"2", "b": b"1"},
        {"c": b"1", "b": b"2"},
        {"ab": b"12"},
    ):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        for name, content in names.items():
            (folder / name).write_bytes(content)
        found.append(hashed(folder, "*"))
    assert all(len(each) == 64 for each in found)
    assert all(one != other for one, other in itertools.combinations(found, 2))
    (tmp_path / "0" / "a").chmod(0o755)
    os.utime(tmp_path / "0" / "b", (1, 1))
    assert hashed(tmp_path / "0", "b", "a") == found[0]


def test_links_are_passed_over_and_no_match_is_the_empty_text(tmp_path: Path) -> None:
    """A job could link to what it may not read; and `hash('*.lock') != ''` asks whether there is a file."""
    (tmp_path / "link.lock").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.lock")
    assert hashed(tmp_path, "*.lock") == ""


def test_too_much_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """A hash of all of a large workspace would hold the job for minutes."""
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "b").write_bytes(b"x" * 10)
    with pytest.raises(TooMuch, match="have over 15 bytes: name fewer"):
        hashed(tmp_path, "**", most_bytes=15)
    with pytest.raises(BadPattern, match="leads out of the workspace"):
        hashed(tmp_path, "../*")
