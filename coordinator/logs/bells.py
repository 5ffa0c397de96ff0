"""Wakes who waits for a log to grow: by attempt for its records, by run for a job's first attempt.

A ring is a hint. Whoever is woken looks into the database, and looks there every now and then without a ring too:
a bell that was rung at another replica and not carried over costs time, never bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator


class Bell:
    """One waiter's bell. A ring between two waits is not forgotten."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake the waiter, now or as soon as it waits."""
        self._rung.set()

    async def wait(self, at_most_s: float) -> None:
        """Return at a ring, also one that came since the last wait, or after `at_most_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._rung.wait()
        self._rung.clear()


class LogBells:
    """The bells of one replica. `publish` carries to other replicas which attempts' logs grew here."""

    def __init__(self, publish: Callable[[frozenset[int]], None] | None = None) -> None:
        self._publish = publish
        self._attempts: dict[int, set[Bell]] = defaultdict(set)
        self._runs: dict[int, set[Bell]] = defaultdict(set)

    def grew(self, attempts: Iterable[int]) -> None:
        """Say that these attempts' logs grew or were sealed by a commit of this replica."""
        grown = frozenset(attempts)
        self.ring(attempts=grown)
        if self._publish is not None and grown:
            self._publish(grown)

    def ring(self, *, attempts: Iterable[int] = (), runs: Iterable[int] = ()) -> None:
        """Wake who waits for these, here. For what other replicas said, and for runs that changed."""
        for key in attempts:
            for bell in self._attempts.get(key, ()):
                bell.ring()
        for key in runs:
            for bell in self._runs.get(key, ()):
                bell.ring()

    @contextlib.contextmanager
    def hung(self, *, run: int, attempt: int | None = None) -> Iterator[Bell]:
        """A bell for changes of a run and growth of an attempt's log.

        Hung before the first look, so that no ring falls between.
        """
        bell = Bell()
        places = [(self._runs, run)] if attempt is None else [(self._runs, run), (self._attempts, attempt)]
        for bells, key in places:
            bells[key].add(bell)
        try:
            yield bell
        finally:
            for bells, key in places:
                bells[key].discard(bell)
                if not bells[key]:
                    del bells[key]
