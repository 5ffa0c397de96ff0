"""The observing reaper: ends sessions that stand still, and what else only one replica at a time should do.

Nobody compares clocks. A session is expired when this reaper has itself seen its counter unchanged for a whole
lease of its own monotonic clock, without a gap; after a start, a takeover, a reconnection or a stall it begins to look
anew.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from coordinator.dispatch.bells import AGENTS, GROUPS, QUEUE, LocalBells, heard_within
from coordinator.dispatch.dispatcher import Timing
from coordinator.dispatch.port import DispatchStore, Observed
from coordinator.errors import StoreDown


class Term(Protocol):
    """The right to be the only one. See `coordinator.store.singletons`."""

    async def hold(self) -> str | None:
        """Takes the term or keeps it; returns its random id, None while another holds it."""
        ...


# What is ended in one transaction: a run that is locked holds up no more than these.
_TOGETHER = 20
# Of a lease, between two looks: what keeps a look for longer (a database that stalls, a machine that stood still) keeps
# heartbeats too, and they may arrive behind it.
_GAP = 0.5

Key = TypeVar("Key")


def _chunks(keys: Sequence[Key]) -> Iterator[Sequence[Key]]:
    for start in range(0, len(keys), _TOGETHER):
        yield keys[start : start + _TOGETHER]


class Watch:
    """What has been seen, and since when: the pure half of the reaper."""

    def __init__(self, lease: float, long_lease: float) -> None:
        self._lease = lease
        self._long_lease = long_lease
        self._counters: dict[str, tuple[int, float]] = {}
        self._orphans: dict[int, float] = {}
        self._server = ""
        self._looked = math.inf

    def forget(self) -> None:
        """Begins anew: what was seen before an outage or a takeover proves nothing."""
        self._counters.clear()
        self._orphans.clear()

    def forget_these(self, *, sessions: Iterable[str] = (), orphans: Iterable[int] = ()) -> None:
        """Begins anew with some: it is not known whether they were ended, or one of their runs was locked."""
        for session in sessions:
            self._counters.pop(session, None)
        for attempt in orphans:
            self._orphans.pop(attempt, None)

    def see(self, observed: Observed, asked: float, answered: float) -> tuple[dict[str, int], list[int]]:
        """Takes a look into account; returns sessions (with the counter seen) and attempts that are due."""
        # A failover may have lost commits: a counter that was taken back and raised again would seem to stand.
        if observed.server != self._server or answered - self._looked > self._lease * _GAP:
            self.forget()
        self._server, self._looked = observed.server, answered
        before = self._counters
        self._counters = {
            session: before[session] if session in before and before[session][0] == counter else (counter, answered)
            for session, counter in observed.counters.items()
        }
        self._orphans = {each.attempt_id: self._orphans.get(each.attempt_id, answered) for each in observed.orphans}
        still = {key: counter for key, (counter, since) in self._counters.items() if asked - since >= self._lease}
        orphans = [key for key, since in self._orphans.items() if asked - since >= self._long_lease]
        return still, orphans


class Reaper:
    """Runs beside every dispatch; acts only while it holds the term."""

    def __init__(
        self,
        store: DispatchStore,
        term: Term,
        bells: LocalBells,
        *,
        timing: Timing,
        clock: Callable[[], float],
        fleet_is_fixed: bool,
        queue_timeout_s: float,
    ) -> None:
        self._store = store
        self._term = term
        self._bells = bells
        self._timing = timing
        self._clock = clock
        self._fleet_is_fixed = fleet_is_fixed
        self._queue_timeout_s = queue_timeout_s
        self._watch = Watch(timing.lease, timing.long_lease)
        self._held: str | None = None
        self.mended = 0
        """How many jobs were found waiting for nothing: it must stay 0."""

    async def run(self) -> None:
        """Runs until it is cancelled."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._reap(), name="reaper")
            loops.create_task(self._judge(), name="reaper: schedulable")
            loops.create_task(self._mend(), name="reaper: mend")
            loops.create_task(self._release(), name="reaper: pauses and approvals")

    async def _reap(self) -> None:
        while True:
            try:
                await self._reap_once()
            except StoreDown:
                self._held = None
                self._watch.forget()
            await asyncio.sleep(self._timing.look)

    async def _reap_once(self) -> None:
        term = await self._term.hold()
        if term != self._held:
            self._watch.forget()
            self._held = term
        if term is None:
            return
        asked = self._clock()
        observed = await self._store.observe()
        still, orphans = self._watch.see(observed, asked, self._clock())
        for some in _chunks(list(still)):
            try:
                await self._store.expire({key: still[key] for key in some}, term)
            except StoreDown:
                self._watch.forget_these(sessions=some)
        for few in _chunks(orphans):
            try:
                await self._store.expire_orphans(few, term)
            except StoreDown:
                self._watch.forget_these(orphans=few)

    async def _judge(self) -> None:
        """Says on queued jobs why nobody can take them: soon after agents or the queue changed."""
        with self._bells.listening(AGENTS, QUEUE) as changed:
            while True:
                await heard_within(changed, self._timing.poll * 2)
                if self._held is not None:
                    try:
                        await self._store.judge_schedulable(fail=self._fleet_is_fixed)
                    except StoreDown:
                        continue
                await asyncio.sleep(0.2)

    async def _release(self) -> None:
        with self._bells.listening(GROUPS) as changed:
            while True:
                await heard_within(changed, self._timing.poll)
                if self._held is not None:
                    try:
                        await self._store.release_due()
                    except StoreDown:
                        continue

    async def _mend(self) -> None:
        while True:
            await asyncio.sleep(self._timing.lease)
            if self._held is not None:
                try:
                    self.mended += await self._store.mend(self._queue_timeout_s)
                except StoreDown:
                    continue
