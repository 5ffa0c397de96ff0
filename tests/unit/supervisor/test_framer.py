"""Frames are full, or soon."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.supervisor.framer import Framer


@given(st.lists(st.binary(max_size=300)), st.integers(1, 64))
def test_frames_are_full_and_hold_every_byte_in_order(parts: list[bytes], most: int) -> None:
    """A reader relies on the bound; a person on the bytes."""
    framer = Framer(most)
    frames = [frame for part in parts for frame in framer.feed(part, 0)]
    rest = framer.flush()
    assert all(len(frame) == most for frame in frames)
    assert len(rest) < most
    assert b"".join(frames) + rest == b"".join(parts)
    assert framer.due is None


def test_first_byte_of_a_frame_waits_100_ms_and_no_longer() -> None:
    """Someone is watching: later bytes must not put off the earlier ones."""
    framer = Framer()
    framer.feed(b"a", 1000)
    framer.feed(b"b", 1090)
    assert framer.due == 1100
    assert framer.flush() == b"ab"
