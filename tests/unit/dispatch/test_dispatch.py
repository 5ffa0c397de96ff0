"""The dispatch of one replica around its sessions, over the store in memory and in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from coordinator.core.matching import Ability, Offer, Requirement
from coordinator.core.states import Cause
from coordinator.dispatch.bells import LocalBells
from coordinator.dispatch.dispatcher import Dispatch, Timing
from coordinator.dispatch.port import Held, Hello, StartedReport
from coordinator.dispatch.session import (
    Answered,
    Assign,
    Beaten,
    CancelThese,
    SendAway,
    Session,
    SessionOver,
)
from coordinator.errors import BadInput, StoreDown
from coordinator.store.new_rows import NewJob, NewRun, NewStage
from tests.harness.memory_rows import Rows
from tests.harness.memory_runs import MemoryRuns
from tests.harness.memory_store import MemoryDispatch
from tests.harness.memory_transactions import Transactions
from tests.harness.virtual_time import simulate

OFFER = Offer("default", (), (Ability("bubblewrap", frozenset({"none"})),))


class Replica:
    """A dispatch over the store in memory; calls fail as told, before or after their commit."""

    def __init__(self, timing: Timing) -> None:
        self.loop = asyncio.get_running_loop()
        self.returns = 0
        self.rows = Rows(self.loop.time)
        self.fails_before: set[str] = set()
        self.fails_after: set[str] = set()
        self.after: tuple[str, Callable[[], Awaitable[None]] | None] = ("", None)
        self.bells = LocalBells()
        rng = random.Random(1)
        transactions = Transactions(self._before, self._after)
        store = MemoryDispatch(self.rows, self.bells, lambda: rng.randbytes(16), transactions)
        self.runs = MemoryRuns(self.rows, self.bells)
        self.dispatch = Dispatch(
            store,
            self.bells,
            timing=timing,
            clock=self.loop.time,
            make_session_id=lambda: f"session-{rng.random()}",
            replica="r",
            measures=self,
        )

    async def _before(self, call: str) -> None:
        if call in self.fails_before:
            raise StoreDown("on purpose")

    async def _after(self, call: str) -> None:
        if call == self.after[0]:
            self.after, (_, body) = ("", None), self.after
            assert body is not None
            await body()
            await asyncio.sleep(0.01)  # the bell is heard, and the orders are read, before the caller goes on
        if call in self.fails_after:
            raise StoreDown("on purpose")

    def claimed(self, seconds: float) -> None: ...

    def returned(self) -> None:
        self.returns += 1

    def ended(self, outcome: str, cause: Cause) -> None: ...

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Replica]:
        loops = asyncio.create_task(self.dispatch.run())
        try:
            yield self
        finally:
            loops.cancel()
            await asyncio.wait([loops])

    async def open(self) -> Session:
        hello = Hello("a", "i", "1", "default", {}, 4, OFFER.abilities)
        return (await self.dispatch.open(hello, 4))[0]

    async def submit(self) -> int:
        run_id, (job,) = await self.runs.allocate(1)
        new = NewJob(job, "unit", 0, None, b"", Requirement("default", (), "any", "none"), "")
        facts = {"pipeline": "p", "pipeline_file": "f", "pipeline_text": b"", "source": b"", "commit": "", "event": ""}
        await self.runs.create(
            f"request-{run_id}",
            NewRun(
                id=run_id,
                repository="r",
                project="p",
                trusted=True,
                parameters={},
                priority=0,
                stages=(NewStage("s"),),
                jobs=(new,),
                **facts,  # type: ignore[arg-type]  # texts and bytes, in the order of the class
            ),
        )
        return job


def test_a_session_whose_opening_failed_half_way_is_not_kept() -> None:
    """It has no stream: it would be given jobs for ever, and never send one."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing()).running() as replica:
            replica.fails_before = {"cancels"}
            with pytest.raises(StoreDown):
                await replica.open()
            assert replica.dispatch.sessions == 0

    simulate(main, 1)


def test_a_session_ends_when_nobody_knows_what_it_was_given() -> None:
    """The commit happened, its answer was lost: only a new Hello finds out which assignments exist."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing()).running() as replica:
            opened = await replica.open()
            replica.fails_after = {"claim"}
            await replica.submit()
            with pytest.raises(SessionOver, match="does not know"):
                await opened.next_messages()
            assert len(replica.rows.leases) == 1
            await replica.dispatch.close(opened)
            again = await replica.open()
            replica.fails_after = set()
            (message,) = await again.next_messages()
            assert isinstance(message, Assign)
            assert [each.number for each in message.claimed] == [1]

    simulate(main, 1)


def test_an_assignment_that_nobody_acknowledges_goes_back_and_the_agent_is_told() -> None:
    """An agent that took it after all must drop it: another one has it now."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing()).running() as replica:
            opened = await replica.open()
            await replica.submit()
            (assign,) = await opened.next_messages()
            assert isinstance(assign, Assign)
            begun = replica.loop.time()
            messages = await opened.next_messages()
            assert 3.0 <= replica.loop.time() - begun <= 4.1
            assert isinstance(messages[0], CancelThese)
            assert messages[0].abort
            assert [each.attempt_id for each in messages[0].orders] == [assign.claimed[0].attempt_id]
            assert replica.returns == 1, "it is counted like one that was refused"

    simulate(main, 1)


def test_a_job_goes_to_a_free_slot_without_waiting_for_a_poll() -> None:
    """No polling interval stands between a free agent and a queued job."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing(poll=1000.0)).running() as replica:
            opened = await replica.open()
            await asyncio.sleep(5)
            begun = replica.loop.time()
            await replica.submit()
            (assign,) = await opened.next_messages()
            assert isinstance(assign, Assign)
            assert replica.loop.time() - begun < 0.01

    simulate(main, 1)


def test_a_replica_whose_heartbeats_are_not_committed_sends_its_agents_away() -> None:
    """Another replica may reach the database; this one is not ready any more."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing()).running() as replica:
            opened = await replica.open()
            assert replica.dispatch.healthy
            replica.fails_before = {"heartbeat"}
            await asyncio.sleep(7)
            assert replica.dispatch.healthy, "a short outage is none"
            await asyncio.sleep(3)
            assert not replica.dispatch.healthy, "the contract says ten seconds"
            while not isinstance((await opened.next_messages())[0], SendAway):
                pass
            replica.fails_before = set()
            await replica.dispatch.heartbeat(opened, 1, 0, ())
            assert replica.dispatch.healthy

    simulate(main, 1)


def test_one_agents_senseless_heartbeat_leaves_those_of_others_alone() -> None:
    """It is refused before it is among theirs."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing()).running() as replica:
            opened = await replica.open()
            with pytest.raises(BadInput, match="never sent"):
                await replica.dispatch.heartbeat(opened, 1, (1 << 64) - 1, ())
            await replica.dispatch.heartbeat(opened, 1, 0, ())
            assert await opened.next_messages() == [Beaten(1)]

    simulate(main, 1)


def test_a_heartbeat_is_answered_although_what_it_misses_cannot_be_settled_now() -> None:
    """The next one finds it again."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing()).running() as replica:
            opened = await replica.open()
            await replica.submit()
            (assign,) = await opened.next_messages()
            assert isinstance(assign, Assign)
            await replica.dispatch.acknowledge(opened, 1, accepted=True, sentence="")
            replica.fails_before = {"settle_missing"}
            await replica.dispatch.heartbeat(opened, 1, 1, ())
            await asyncio.sleep(0.1)
            assert len(replica.rows.leases) == 1
            replica.fails_before = {"claim"}
            await replica.dispatch.heartbeat(opened, 2, 1, ())
            await asyncio.sleep(0.1)
            assert len(replica.rows.leases) == 0

    simulate(main, 1)


def test_a_report_that_can_never_be_recorded_is_answered_and_the_others_are_recorded() -> None:
    """A defect must not be handed in for ever, with everybody else's reports in its batch."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing()).running() as replica:
            opened = await replica.open()
            jobs = [await replica.submit(), await replica.submit()]
            messages = await opened.next_messages()
            given = [each for message in messages if isinstance(message, Assign) for each in message.claimed]
            while len(given) < 2:
                (message,) = await opened.next_messages()
                assert isinstance(message, Assign)
                given += message.claimed
            del replica.rows.jobs[jobs[0]]
            reports = [StartedReport(f"r-{each.job_id}", each.attempt_id, each.token) for each in given]
            await replica.dispatch.report(opened, reports)
            answered = (await opened.next_messages())[-1]
            assert isinstance(answered, Answered)
            assert {each.report_id: each.abort for each in answered.answers} == {
                f"r-{jobs[0]}": True,
                f"r-{jobs[1]}": False,
            }

    simulate(main, 1)


def test_silent_agents_are_not_taken_for_a_silent_database() -> None:
    """One agent that hangs, alone at its replica, must not make the replica unready and send it away."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing(heartbeat=20.0)).running() as replica:
            await replica.open()
            assert replica.dispatch.timing.silence == 40.0
            for _ in range(20):
                await asyncio.sleep(10)
                assert replica.dispatch.healthy

    simulate(main, 1)


def test_a_cancel_that_was_asked_for_while_a_session_opens_is_told_at_once() -> None:
    """It rang before the session was among the others, and behind what the session had read."""

    async def main(rng: random.Random) -> None:
        async with Replica(Timing(poll=1000.0)).running() as replica:
            opened = await replica.open()
            await replica.submit()
            (assign,) = await opened.next_messages()
            assert isinstance(assign, Assign)
            (given,) = assign.claimed
            await replica.dispatch.acknowledge(opened, 1, accepted=True, sentence="")
            replica.after = ("cancels", lambda: replica.runs.cancel("request-cancel", given.run_id, "enough"))
            hello = Hello("a", "i", "1", "default", {}, 4, OFFER.abilities, held=(Held(given.attempt_id, given.token),))
            again, _ = await replica.dispatch.open(hello, 3)
            begun = replica.loop.time()
            (told,) = await again.next_messages()
            assert isinstance(told, CancelThese)
            assert replica.loop.time() - begun < 1

    simulate(main, 1)
