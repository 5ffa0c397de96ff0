"""How long a client keeps trying, and how long it waits in between."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from headrace.errors import Busy, HeadraceError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds throughout. Waits grow from `first` by `factor` up to `most`, each with half of it left to chance.

    `patience`: how long after the first failure of a row one keeps trying. `patience_at_first` is that of a client
    that has never been answered, from its first try on: a wrong address should be said soon.
    """

    first: float = 0.1
    factor: float = 2.0
    most: float = 5.0
    patience: float = 120.0
    patience_at_first: float = 5.0


class Pace:
    """The state of one client's patience: whether it was ever answered. Clock (monotonic) and chance come in."""

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float], rng: random.Random) -> None:
        self.policy = policy
        self.clock = clock
        self.rng = rng
        self.answered = False

    def trial(self) -> Trial:
        """A new row of tries."""
        return Trial(self)


class Trial:
    """One row of tries: begun, counted, and begun anew by every sign of life."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._since = pace.clock()
        self._failures = 0

    def succeeded(self) -> None:
        """Somebody answered: patience and waits begin anew."""
        self._pace.answered = True
        self._since = self._pace.clock()
        self._failures = 0

    def wait_after(self, error: HeadraceError) -> float:
        """Seconds to wait before the next try.

        Raises:
            HeadraceError: `error` itself, when trying again does not help or the patience is over.

        """
        policy = self._pace.policy
        if not error.retry:
            raise error
        if self._failures == 0 and self._pace.answered:
            self._since = self._pace.clock()  # a stream that was silent for an hour has not failed for an hour
        wait = min(policy.most, policy.first * policy.factor**self._failures)
        wait *= 0.5 + 0.5 * self._pace.rng.random()
        if isinstance(error, Busy):  # it answered, and said when
            self._pace.answered = True
            wait += error.after
        patience = policy.patience if self._pace.answered else policy.patience_at_first
        if self._pace.clock() + wait - self._since > patience:
            raise error
        self._failures = min(self._failures + 1, 32)
        return wait
