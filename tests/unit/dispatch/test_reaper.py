"""The observing reaper: it believes only what it has itself seen, for a whole lease, without a gap."""

from __future__ import annotations

import asyncio
import random

import pytest

from coordinator.dispatch.bells import LocalBells
from coordinator.dispatch.dispatcher import Timing
from coordinator.dispatch.port import Beat, Hello, Observed, Orphan
from coordinator.dispatch.reaper import Reaper, Watch
from coordinator.errors import StoreDown
from tests.harness.memory_rows import Rows
from tests.harness.memory_runs import MemoryTerm
from tests.harness.memory_store import MemoryDispatch
from tests.harness.memory_transactions import Transactions
from tests.harness.virtual_time import simulate


def look(**counters: int) -> Observed:
    return Observed(counters, ())


def looks(watch: Watch, observed: Observed, first: float, last: float) -> tuple[dict[str, int], list[int]]:
    """Looks every three seconds between two moments, each answered at once; returns what is due at the last."""
    now = first
    while now < last:
        assert watch.see(observed, now, now) == ({}, [])
        now += 3
    return watch.see(observed, last, last)


def test_a_session_is_due_when_its_counter_stood_still_for_a_whole_lease() -> None:
    """And is named with the counter that was seen: the database is asked whether it is still that."""
    watch = Watch(30, 600)
    assert looks(watch, look(s=1), 0, 29.9) == ({}, [])
    assert watch.see(look(s=1), 30, 30) == ({"s": 1}, [])


def test_a_heartbeat_begins_the_lease_anew() -> None:
    """However small the step."""
    watch = Watch(30, 600)
    looks(watch, look(s=1), 0, 28)
    assert looks(watch, look(s=2), 29, 58.9) == ({}, [])
    assert watch.see(look(s=2), 59, 59) == ({"s": 2}, [])


def test_what_was_seen_before_a_gap_proves_nothing() -> None:
    """During an outage nobody's heartbeat could be committed."""
    watch = Watch(30, 600)
    looks(watch, look(s=1), 0, 29)
    watch.forget()
    assert looks(watch, look(s=1), 31, 60) == ({}, [])
    assert watch.see(look(s=1), 61, 61) == ({"s": 1}, [])


@pytest.mark.parametrize("asked", [30.0, 40.0], ids=["the database stalls", "the reaper stood still"])
def test_a_look_long_after_the_one_before_proves_nothing(asked: float) -> None:
    """Whatever held it up has held up the heartbeats too: they come behind it."""
    watch = Watch(30, 600)
    looks(watch, look(s=1), 0, 27)
    assert watch.see(look(s=1), asked, 43) == ({}, [])
    assert looks(watch, look(s=1), 44, 72.9) == ({}, [])
    assert watch.see(look(s=1), 73, 73) == ({"s": 1}, [])


def test_a_look_that_was_answered_late_counts_from_when_it_was_asked() -> None:
    """When between the two it was true, nobody knows."""
    watch = Watch(30, 600)
    looks(watch, look(s=1), 0, 27)
    assert watch.see(look(s=1), 29, 35) == ({}, [])
    assert watch.see(look(s=1), 36, 36) == ({"s": 1}, [])


def test_a_session_that_went_away_and_came_again_is_looked_at_anew() -> None:
    """Its counter may be the same by chance."""
    watch = Watch(30, 600)
    looks(watch, look(s=1), 0, 9)
    watch.see(look(), 10, 10)
    assert looks(watch, look(s=1), 13, 35) == ({}, [])


def test_a_counter_of_another_server_is_looked_at_anew() -> None:
    """A failover that lost commits takes counters back: raised again, a living one would seem to stand."""
    watch = Watch(30, 600)
    looks(watch, Observed({"s": 5}, (), "the first"), 0, 29)
    assert looks(watch, Observed({"s": 5}, (), "the standby"), 32, 61) == ({}, [])
    assert watch.see(Observed({"s": 5}, (), "the standby"), 62, 62) == ({"s": 5}, [])


def test_an_orphan_has_its_own_long_lease() -> None:
    """A deployment out of contact is not given up with its session."""
    watch = Watch(30, 600)
    alone = Observed({}, (Orphan(5),))
    assert looks(watch, alone, 0, 599) == ({}, [])
    assert watch.see(alone, 600, 600) == ({}, [5])


class World:
    """One agent's session and a reaper, over rows in memory and a database that can be down."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.rows = Rows(self.loop.time)
        self.down = False
        self.bells = LocalBells()
        rng = random.Random(1)
        self.transactions = Transactions(self._before)
        self.store = MemoryDispatch(self.rows, self.bells, lambda: rng.randbytes(16), self.transactions)
        self.ids = iter(f"term-{n}" for n in range(99))

    async def _before(self, call: str) -> None:
        await asyncio.sleep(0.001)
        if self.down:
            raise StoreDown("on purpose")

    def reaper(self) -> asyncio.Task[None]:
        term = MemoryTerm(
            self.rows,
            "reaper",
            self.loop.time,
            lease_s=30.0,
            make_id=lambda: next(self.ids),
            transactions=self.transactions,
        )
        reaper = Reaper(
            self.store,
            term,
            self.bells,
            timing=Timing(),
            clock=self.loop.time,
            fleet_is_fixed=False,
            queue_timeout_s=86_400,
        )
        return asyncio.create_task(reaper.run())

    async def open(self) -> None:
        await self.store.open_session(Hello("a", "i", "1", "default", {}, 1, ()), "s", "r")

    async def beat_until(self, end: float) -> None:
        while self.loop.time() < end:
            if not self.down:
                await self.store.heartbeat([Beat("s", 0, frozenset())])
            await asyncio.sleep(5)


def test_a_silent_session_is_expired_after_one_lease_and_not_before() -> None:
    """Thirty seconds, seen by the reaper's own clock, and at most one look more."""

    async def main(rng: random.Random) -> None:
        world = World()
        await world.open()
        reaper = world.reaper()
        await asyncio.sleep(29.9)
        assert "s" in world.rows.sessions
        await asyncio.sleep(6)
        assert "s" not in world.rows.sessions
        reaper.cancel()
        await asyncio.wait([reaper])

    simulate(main, 1)


def test_an_outage_of_the_database_costs_nobody_a_lease() -> None:
    """All counters stand still while nothing can be committed; when it can again, agents have a whole lease to come."""

    async def main(rng: random.Random) -> None:
        world = World()
        await world.open()
        reaper = world.reaper()
        await world.beat_until(20)
        world.down = True
        await asyncio.sleep(300)
        world.down = False
        await asyncio.sleep(25)
        assert "s" in world.rows.sessions
        await world.beat_until(world.loop.time() + 60)
        assert "s" in world.rows.sessions
        reaper.cancel()
        await asyncio.wait([reaper])

    simulate(main, 1)


def test_a_database_that_stalls_for_longer_than_a_lease_costs_nobody_his() -> None:
    """Nothing fails: the look comes late, and before the heartbeats that were held up with it."""

    async def main(rng: random.Random) -> None:
        world = World()
        await world.open()
        reaper = world.reaper()
        await world.beat_until(20)
        flows = asyncio.Event()

        async def stalls(call: str) -> None:
            await flows.wait()

        world.transactions._before = stalls
        await asyncio.sleep(4)  # the reaper asks first
        beats = asyncio.create_task(world.beat_until(200))
        await asyncio.sleep(40)
        flows.set()
        await beats
        assert "s" in world.rows.sessions
        reaper.cancel()
        await asyncio.wait([reaper])

    simulate(main, 1)


def test_a_second_reaper_takes_over_from_one_that_died_and_looks_anew() -> None:
    """Nobody is expired by what the dead one saw: a lease to take over, and one to see the silence."""

    async def main(rng: random.Random) -> None:
        world = World()
        await world.open()
        first = world.reaper()
        await world.beat_until(5)  # it holds the term before there is another
        second = world.reaper()
        await world.beat_until(20)
        first.cancel()
        await asyncio.wait([first])
        begun = world.loop.time()
        while "s" in world.rows.sessions:  # noqa: ASYNC110 - the virtual clock jumps
            await asyncio.sleep(0.5)
        assert 60 <= world.loop.time() - begun <= 70
        second.cancel()
        await asyncio.wait([second])

    simulate(main, 1)


def test_a_session_that_cannot_be_ended_keeps_no_other_one_alive() -> None:
    """All in one transaction, one locked run would save every silent session, again and again."""

    async def main(rng: random.Random) -> None:
        world = World()
        for n in range(50):
            await world.store.open_session(Hello(f"a{n}", "i", "1", "default", {}, 1, ()), f"s{n:02}", "r")
        calls = 0

        async def locked(call: str) -> None:
            nonlocal calls
            calls += call == "expire"
            if call == "expire" and calls == 1:
                raise StoreDown("on purpose")

        world.transactions._before = locked
        reaper = world.reaper()
        await asyncio.sleep(36)
        assert sorted(world.rows.sessions) == [f"s{n:02}" for n in range(20)]
        await asyncio.sleep(36)
        assert world.rows.sessions == {}
        reaper.cancel()
        await asyncio.wait([reaper])

    simulate(main, 1)
