"""What may be stored: exactly one zstd frame of exactly the declared length, without inflating it."""

from __future__ import annotations

import contextlib
import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from agent.supervisor import records
from coordinator.logs.bounds import (
    RAW_MOST,
    SECTIONS_MOST,
    TEXT_MOST,
    BadRecord,
    check_record,
    check_stream,
    check_zstd,
)
from headrace.pipeline.language import MAX_STEPS
from headrace.v1 import log_pb2


def compressed(data: bytes, *, level: int = 1, checksum: bool = False) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=checksum).compress(data)


@given(st.binary(max_size=2_000), st.integers(1, 2_000), st.integers(1, 19), st.booleans())
def test_every_frame_that_zstd_makes_is_taken(data: bytes, times: int, level: int, checksum: bool) -> None:  # noqa: FBT001  hypothesis passes it by name
    """Bounds that refuse a true log would lose it."""
    data = (data * times)[:RAW_MOST]
    check_zstd(compressed(data, level=level, checksum=checksum), len(data))


@pytest.mark.parametrize("data", [random.Random(1).randbytes(RAW_MOST), bytes(RAW_MOST), b"", b"x"])
def test_the_largest_the_emptiest_and_the_least_compressible_are_taken(data: bytes) -> None:
    """Raw, repeated and compressed blocks all occur."""
    frame = log_pb2.Frame(raw_length=len(data), zstd=compressed(data))
    assert check_record(log_pb2.Record(sequence=1, frame=frame)) == len(data)


@given(st.binary(min_size=1, max_size=500), st.data())
def test_a_frame_cut_short_or_with_something_behind_it_is_refused(data: bytes, draw: st.DataObject) -> None:
    """In a segment it would make everything behind it unreadable."""
    whole = compressed(data)
    cut = draw.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(BadRecord):
        check_zstd(whole[:cut], len(data))
    with pytest.raises(BadRecord):
        check_zstd(whole + draw.draw(st.binary(min_size=1, max_size=30)), len(data))


@given(st.binary(max_size=300), st.integers(0, RAW_MOST))
def test_any_bytes_are_judged_without_a_crash(data: bytes, raw_length: int) -> None:
    """They come over the network: nothing but BadRecord may come of them."""
    for each in (data, b"\x28\xb5\x2f\xfd" + data):
        with contextlib.suppress(BadRecord):
            check_zstd(each, raw_length)


@given(st.binary(min_size=1, max_size=300), st.integers(0, RAW_MOST))
def test_what_is_taken_inflates_to_what_it_declares_or_not_at_all(data: bytes, raw_length: int) -> None:
    """Readers make room for the declared length and for no byte more."""
    frame = compressed(data)
    try:
        check_zstd(frame, raw_length)
    except BadRecord:
        assert raw_length != len(data)
    else:
        assert raw_length == len(data)


def test_a_bomb_is_refused_by_its_header() -> None:
    """A few bytes can inflate to gigabytes: the declared length is compared before anybody inflates."""
    bomb = compressed(bytes(100 << 20))
    with pytest.raises(BadRecord, match="another number"):
        check_zstd(bomb, RAW_MOST)


def test_a_frame_that_does_not_say_how_long_it_is_is_refused() -> None:
    """Streamed compression leaves the length out."""
    streamed = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(b"text")
    with pytest.raises(BadRecord):
        check_zstd(streamed, 4)


@pytest.mark.parametrize("name", ["", "Main", "a/b", "-x", "x" * 64, "a\n", "a b"])
def test_what_is_no_name_of_a_stream_is_refused(name: str) -> None:
    """Names of streams become parts of keys."""
    with pytest.raises(BadRecord):
        check_stream(name)


def test_no_log_of_a_pipeline_that_loads_is_out_of_bounds() -> None:
    """A refused record loses all of the log: what writes it and what loads the file keep to the same bounds.

    Beside the steps there are our own sections; an agent that is restarted while it prepares opens some again.
    """
    assert records.TEXT_MOST <= TEXT_MOST
    assert MAX_STEPS + 100 <= SECTIONS_MOST
