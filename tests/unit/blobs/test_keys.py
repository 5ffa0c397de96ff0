"""Keys: the names of objects, and the fence around the store's folder."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.blobs.keys import BadKey, artifact_key, bundle_key, check_key, log_segment_key

DIGEST = "0123456789abcdef" * 4


def test_keys_hold_what_makes_their_content_unique() -> None:
    """The layout is what clean-up by run and attempt relies on."""
    assert artifact_key(7, 9, DIGEST) == f"artifacts/7/9/{DIGEST}"
    assert bundle_key(DIGEST) == f"bundles/{DIGEST}"
    assert log_segment_key(7, 9, "main", 65536, "deadbeef") == "logs/7/9/main/000000000065536-deadbeef"


def test_segments_of_a_log_sort_by_their_offset() -> None:
    """A listing is then in the order of the log."""
    keys = [log_segment_key(1, 1, "main", offset, "deadbeef") for offset in (0, 9, 10, 99, 1 << 40)]
    assert keys == sorted(keys)


@pytest.mark.parametrize("digest", ["", DIGEST[:-1], DIGEST.upper(), DIGEST + "\n", "../" + DIGEST[3:]])
def test_what_is_not_a_digest_makes_no_key(digest: str) -> None:
    """Digests come from agents, which a hostile job may have taken over."""
    with pytest.raises(BadKey):
        artifact_key(1, 1, digest)
    with pytest.raises(BadKey):
        bundle_key(digest)


@pytest.mark.parametrize(
    ("stream", "offset", "random"),
    [("../x", 0, "deadbeef"), ("", 0, "deadbeef"), ("main", -1, "deadbeef"), ("main", 0, "x/y"), ("main", 0, "")],
)
def test_what_is_not_a_segment_makes_no_key(stream: str, offset: int, random: str) -> None:
    """A service's name is the pipeline's word, so a hostile one's too."""
    with pytest.raises(BadKey):
        log_segment_key(1, 1, stream, offset, random)


@given(st.text(alphabet="ab./_-=~A\n\0é", max_size=24) | st.text(max_size=40))
def test_a_key_that_passes_stays_below_its_folder(key: str) -> None:
    """Whatever is accepted is the path that it looks like, below the root, hidden nowhere."""
    try:
        check_key(key)
    except BadKey:
        return
    path = PurePosixPath("/root") / key
    assert str(path) == f"/root/{key}"
    assert all(part[0] != "." and part.isascii() and part.isprintable() for part in path.parts[1:])
