"""No secret in a log, however the job's output was cut into pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from agent.supervisor.masker import MASK, Masker

# A small alphabet, so that secrets overlap with each other and with themselves.
SECRETS = st.lists(st.binary(min_size=1, max_size=6).map(lambda b: bytes(97 + x % 3 for x in b)), max_size=4)
TEXT = st.lists(st.sampled_from(b"abcx"), max_size=60).map(bytes)


def pieces(text: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(ends)]


def masked(secrets: list[bytes], parts: list[bytes]) -> bytes:
    masker = Masker(secrets)
    return b"".join(map(masker.feed, parts)) + masker.flush()


def by_definition(secrets: list[bytes], text: bytes) -> bytes:
    """Every byte of every occurrence is covered; occurrences that overlap share one mask."""
    out, at, end = b"", 0, 0
    for start in range(len(text)):
        found = [start + len(s) for s in secrets if s and text.startswith(s, start)]
        if not found:
            continue
        if start >= end:
            out += text[at:start] + MASK if at <= start else MASK
        end = max(end, *found)
        at = end
    return out + text[at:]


@given(SECRETS, TEXT, st.lists(st.integers(0, 1000)))
def test_output_is_the_same_for_any_chunking(secrets: list[bytes], text: bytes, cuts: list[int]) -> None:
    """A job decides where its writes are cut: a secret split over any number of them is masked all the same."""
    assert masked(secrets, pieces(text, cuts)) == by_definition(secrets, text)


@given(SECRETS, TEXT, st.lists(st.integers(0, 1000)))
def test_no_secret_is_ever_in_the_output(secrets: list[bytes], text: bytes, cuts: list[int]) -> None:
    """What this is for."""
    out = masked(secrets, pieces(text, cuts))
    assert not any(secret in out for secret in secrets)


@given(SECRETS, TEXT, st.lists(st.integers(0, 1000)))
def test_text_without_a_secret_is_unchanged(secrets: list[bytes], text: bytes, cuts: list[int]) -> None:
    """A log that is altered without need misleads whoever reads it."""
    assume(not any(secret in text for secret in secrets))
    assert masked(secrets, pieces(text, cuts)) == text


@given(SECRETS, TEXT, st.lists(st.integers(0, 1000)))
def test_at_most_the_longest_secret_less_one_byte_is_held_back(
    secrets: list[bytes], text: bytes, cuts: list[int]
) -> None:
    """Memory stays flat, and people see what their job says."""
    masker, fed, out = Masker(secrets), b"", b""
    for part in pieces(text, cuts):
        fed += part
        out += masker.feed(part)
        assert masker.held <= max(map(len, secrets), default=1) - 1
        if not any(secret in fed for secret in secrets):
            assert out == fed[: len(fed) - masker.held]


def test_a_secret_that_is_told_later_is_masked_from_then_on() -> None:
    """A job may be given a secret in the middle of its life."""
    masker = Masker()
    assert masker.feed(b"hunter2 ") == b"hunter2 "
    masker.add([b"hunter2", b""])
    assert masker.feed(b"hunter2 ") == b"*** "
