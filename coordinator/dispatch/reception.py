"""Who may say Hello now: by rate, and so many at once, before the database is asked anything.

After a restart a whole fleet comes back within a second. Each Hello is a transaction; were they all let in, heartbeats
would wait behind them, leases would run out, and the fleet would come again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from coordinator.core.bucket import Bucket, Rate

LONGEST_AWAY_S = 60.0
LONGEST_AWAY_HOLDING_S = 5.0
"""An agent that holds attempts has a lease to keep."""
_KEPT = 0.5
"""What part of the burst is kept for agents that hold attempts."""


class TurnedAway(Exception):
    """The agent is to come again in `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__("this coordinator is busy with other agents that connect")
        self.seconds = seconds


class Reception:
    """`rate` of Hellos, of which `at_once` may be under way. `clock` is monotonic seconds.

    Whoever is turned away is told a moment of its own: the next one in a line that goes at the rate. So they come
    back one after the other and not as a herd, whatever their number.
    """

    def __init__(
        self, rate: Rate, *, at_once: int, clock: Callable[[], float], turned_away: Callable[[], None]
    ) -> None:
        self._rate = rate
        self._at_once = at_once
        self._clock = clock
        self._turned_away = turned_away
        self._bucket = Bucket(rate, clock())
        self._under_way = 0
        self._told = {True: clock(), False: clock()}
        """The moment that the last one was told, of agents that hold attempts and of those that hold none."""

    @contextlib.contextmanager
    def hello(self, *, holds: bool) -> Iterator[None]:
        """Around the work that a Hello makes. `holds`: its agent holds attempts. Raises TurnedAway."""
        now = self._clock()
        left = 0.0 if holds else min(self._rate.burst * _KEPT, self._rate.burst - 1.0)
        if self._under_way >= self._at_once or self._bucket.wait(now, left=left):
            self._turned_away()
            raise TurnedAway(self._next(now, holds=holds))
        self._bucket.take()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def _next(self, now: float, *, holds: bool) -> float:
        longest = LONGEST_AWAY_HOLDING_S if holds else LONGEST_AWAY_S
        self._told[holds] = min(max(self._told[holds], now) + 1.0 / self._rate.per_s, now + longest)
        return self._told[holds] - now
