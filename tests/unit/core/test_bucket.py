"""Token buckets, under any clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.bucket import Bucket, Buckets, Rate

rates = st.builds(Rate, st.floats(0.1, 1000), st.floats(1, 1000))
pauses = st.lists(st.floats(0, 5), min_size=1, max_size=200)


def taken(rate: Rate, times: list[float], left: float = 0.0) -> list[float]:
    """When something was let through, of a caller who asks at these times."""
    bucket, found = Bucket(rate, 0.0), []
    for now in times:
        if not bucket.wait(now, left=left):
            bucket.take()
            found.append(now)
    return found


def times_of(pauses: list[float]) -> list[float]:
    return [sum(pauses[: index + 1]) for index in range(len(pauses))]


@given(rates, pauses)
def test_no_stretch_of_time_sees_more_than_the_burst_and_what_came_in_by_rate(rate: Rate, pauses: list[float]) -> None:
    """This is what an operator reads off the two numbers."""
    found = taken(rate, times_of(pauses))
    for first, since in enumerate(found):
        for last in range(first, len(found)):
            assert last - first + 1 <= rate.burst + (found[last] - since) * rate.per_s + 1e-6


@given(rates, pauses)
def test_whoever_comes_back_when_told_is_let_in(rate: Rate, pauses: list[float]) -> None:
    """A wait that is too short makes callers come twice."""
    bucket, now = Bucket(rate, 0.0), 0.0
    for pause in pauses:
        now += pause
        now += bucket.wait(now)
        assert bucket.wait(now) < 1e-6
        bucket.take()


@given(rates, pauses, st.floats(0, 500))
def test_what_is_to_be_left_is_left(rate: Rate, pauses: list[float], left: float) -> None:
    """The part that is kept for others is there for them at every moment."""
    bucket, now = Bucket(rate, 0.0), 0.0
    for pause in pauses:
        now += pause
        while left + 1 <= rate.burst and not bucket.wait(now, left=left):
            bucket.take()
    could = 0
    while not bucket.wait(now):
        bucket.take()
        could += 1
    assert could >= int(min(left, rate.burst - 1) - 1e-6)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    """Nor does it take anything away: the bucket waits until it is where it was."""
    bucket = Bucket(Rate(1, 1), 100.0)
    bucket.take()
    assert bucket.wait(50.0) == 1
    assert bucket.wait(100.5) == 0.5
    assert bucket.wait(101.0) == 0


def test_each_key_has_its_own_bucket_and_no_more_are_kept_than_allowed() -> None:
    """A caller who invents keys must not fill the memory."""
    buckets = Buckets(Rate(1, 2), most=3)
    buckets.of("a", 0).take()
    buckets.of("a", 0).take()
    assert buckets.of("a", 0).wait(0) == 1
    assert buckets.of("b", 0).wait(0) == 0
    for number in range(100):
        buckets.of(f"k{number}", 0)
    assert len(buckets) == 3
