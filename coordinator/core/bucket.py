"""Token buckets: how much of something may happen in a second, and how much at once. Time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` at once, and in the long run `per_s` a second. Both are positive, the burst at least 1."""

    per_s: float
    burst: float


class Bucket:
    """Full at first. `now` is seconds of any clock that does not go back; one that does is taken to stand still."""

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = rate.burst
        self._at = now

    def wait(self, now: float, *, left: float = 0.0) -> float:
        """Seconds until one can be taken that leaves `left` behind; 0: now. Takes nothing."""
        if now > self._at:
            self._tokens = min(self._rate.burst, self._tokens + (now - self._at) * self._rate.per_s)
            self._at = now
        return max(0.0, (1.0 + left - self._tokens) / self._rate.per_s)

    def take(self) -> None:
        """Takes one, after `wait` has said 0."""
        self._tokens -= 1.0


class Buckets:
    """A bucket for each key. Beyond `most` keys the one that was not asked for the longest is forgotten: then it is
    full again, which is what a bucket that nobody asks becomes by itself."""

    def __init__(self, rate: Rate, *, most: int) -> None:
        self._rate = rate
        self._most = most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: str, now: float) -> Bucket:
        """The bucket of a key."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._rate, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return bucket
