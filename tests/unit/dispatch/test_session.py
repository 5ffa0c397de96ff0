"""A session as a replica holds it, and the dispatch around it, over the store in memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import ValidationError

from coordinator.api.agent_messages import hello_of, report_of
from coordinator.core.matching import Ability, Offer, Requirement
from coordinator.core.states import Cause
from coordinator.dispatch.bells import LocalBells
from coordinator.dispatch.dispatcher import Dispatch, Timing
from coordinator.dispatch.port import CancelOrder, Claimed, Hello, StartedReport, Wake
from coordinator.dispatch.session import (
    MOST_UNSENT,
    Answered,
    Assign,
    Beaten,
    CancelThese,
    SendAway,
    Session,
    SessionOver,
)
from coordinator.errors import BadInput, StoreDown
from coordinator.settings import Settings
from coordinator.store.runs import NewJob, NewRun
from headrace.v1 import agent_pb2 as pb
from headrace.v1 import common_pb2
from tests.harness.memory_rows import Rows
from tests.harness.memory_runs import MemoryRuns
from tests.harness.memory_store import MemoryDispatch, Transactions
from tests.harness.virtual_time import simulate

OFFER = Offer("default", (), (Ability("bubblewrap", frozenset({"none"})),))


def session(credit: int = 4) -> Session:
    return Session("s", 1, "a", OFFER, slots=4, credit=credit, drained=False, leaving=False)


def claimed(number: int, attempt_id: int = 5, *, spec: bytes = b"") -> Claimed:
    return Claimed("s", number, attempt_id, b"t" * 16, 1, 1, 7, 1, spec, 0.0)


def order(attempt_id: int = 5, *, kill: bool = False) -> CancelOrder:
    return CancelOrder(attempt_id, "s", kill, "enough")


async def test_a_cancel_that_overtook_its_assignment_is_sent_again_behind_it() -> None:
    """An agent ignores a cancel of what it does not know: the job would run to its end, canceled by nobody."""
    mine = session()
    mine.cancel([order()])
    mine.assign([claimed(1)], deadline=3.0)
    cancel, assign, again = await mine.next_messages()
    assert isinstance(cancel, CancelThese)
    assert isinstance(assign, Assign)
    assert again == CancelThese((order(),))


async def test_a_cancel_is_told_once_and_again_only_when_it_has_become_a_kill() -> None:
    """The loop reads all orders again and again."""
    mine = session()
    mine.assign([claimed(1)], deadline=3.0)
    for kill in (False, False, True, True):
        mine.cancel([order(kill=kill)])
    _, *told = await mine.next_messages()
    assert told == [CancelThese((order(),)), CancelThese((order(kill=True),))]


async def test_a_class_that_was_refused_is_left_to_others_for_a_while() -> None:
    """Else the same job goes to the same agent in a circle."""
    mine = session()
    mine.assign([claimed(1)], deadline=3.0)
    refused = mine.acknowledged(1, accepted=False, barred_until=10.0)
    assert refused == claimed(1)
    assert not mine.may_take(7, 9.9)
    assert mine.may_take(8, 9.9)
    assert mine.may_take(7, 10.0)


async def test_an_assignment_is_overdue_once_and_only_when_nobody_took_it() -> None:
    """Taken back twice, it would be taken from somebody else."""
    mine = session()
    mine.assign([claimed(1, 5), claimed(2, 6)], deadline=3.0)
    mine.acknowledged(1, accepted=True, barred_until=0.0)
    assert mine.overdue(2.9) == []
    assert mine.overdue(3.0) == [claimed(2, 6)]
    assert mine.overdue(9.0) == []
    assert (mine.credit, mine.next_number) == (2, 3)


async def test_an_agent_that_does_not_read_is_given_up() -> None:
    """Its messages would fill the memory of the coordinator."""
    mine = session()
    for _ in range(MOST_UNSENT + 1):
        mine.send(Beaten(1))
    with pytest.raises(SessionOver, match="does not read"):
        await mine.next_messages()
    assert not mine.wants_work


def test_an_agent_that_grants_more_than_it_has_is_refused() -> None:
    """Four billion free slots would be asked of the database at once, and every claim would fail."""
    mine = session(credit=3)
    mine.grant(1)
    with pytest.raises(BadInput, match="4 slots"):
        mine.grant(1)
    assert mine.credit == 4


@pytest.mark.parametrize(("highest", "attempts"), [((1 << 64) - 1, 0), (2, 0), (0, 1005)])
def test_a_heartbeat_that_cannot_be_meant_is_refused_alone(highest: int, attempts: int) -> None:
    """In the statement of all heartbeats it would end every session of the replica."""
    mine = session()
    mine.assign([claimed(1)], deadline=3.0)
    mine.check_beat(1, range(1004))
    with pytest.raises(BadInput):
        mine.check_beat(highest, range(attempts))


class Replica:
    """A dispatch over the store in memory; calls fail as told, before or after their commit."""

    def __init__(self, timing: Timing) -> None:
        self.loop = asyncio.get_running_loop()
        self.rows = Rows(self.loop.time)
        self.fails_before: set[str] = set()
        self.fails_after: set[str] = set()
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
        if call in self.fails_after:
            raise StoreDown("on purpose")

    def claimed(self, seconds: float) -> None: ...

    def returned(self) -> None: ...

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
                stages=(("s", ""),),
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
            await asyncio.sleep(15)
            assert not replica.dispatch.healthy
            while not isinstance((await opened.next_messages())[0], SendAway):
                pass
            replica.fails_before = set()
            await replica.dispatch.heartbeat(opened, 1, 0, ())
            assert replica.dispatch.healthy

    simulate(main, 1)


def test_a_bell_of_another_replica_is_not_passed_on() -> None:
    """Two replicas would ring each other for ever."""
    passed: list[Wake] = []
    bells = LocalBells(passed.append)
    with bells.listening("queue") as heard:
        bells.heard(Wake(queue=True))
        assert heard.is_set()
        assert passed == []
        bells.ring(Wake(queue=True))
        assert passed == [Wake(queue=True)]


@pytest.mark.parametrize("field", ["sentence", "id", "instance_id", "version", "label"])
def test_a_text_that_the_database_cannot_hold_does_not_reach_it(field: str) -> None:
    """PostgreSQL knows no NUL in a text: one report with it would fail the batch of everybody, again and again."""
    bad = "a\0b"
    if field in ("sentence", "id"):
        ended = pb.Ended(state=common_pb2.ATTEMPT_STATE_FAILED, sentence=bad if field == "sentence" else "")
        report = pb.Report(id=bad if field == "id" else "r", attempt_id=1, token=b"t" * 16, ended=ended)
        if field == "id":
            with pytest.raises(BadInput):
                report_of(report)
            return
        assert "\0" not in report_of(report).sentence  # type: ignore[union-attr]  # it has ended
        return
    hello = pb.Hello(name="a", instance_id="i", version="1", pool="default", slots=1)
    if field == "label":
        hello.labels["arch"] = bad
    else:
        setattr(hello, field, bad)
    with pytest.raises(BadInput):
        hello_of(hello)


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
            assert replica.dispatch.timing.silence == 50.0
            for _ in range(20):
                await asyncio.sleep(10)
                assert replica.dispatch.healthy

    simulate(main, 1)


def test_a_lease_that_ends_between_two_heartbeats_is_refused() -> None:
    """Every job would be lost, again and again, and nothing would say why."""
    with pytest.raises(ValidationError, match="HEADRACE_LEASE_S"):
        Settings(lease_s=10, heartbeat_s=5)
    assert Settings(lease_s=15, heartbeat_s=5).lease_s == 15


async def test_large_jobs_are_assigned_in_messages_that_the_wire_takes() -> None:
    """One too large breaks the stream, and the same jobs are in the next session's first message again."""
    mine = session()
    mine.assign(
        [claimed(n, n, spec=b"x" * size) for n, size in enumerate((3 << 20, 600_000, 600_000, 5), 1)], deadline=3
    )
    messages = await mine.next_messages()
    assert [[each.number for each in message.claimed] for message in messages if isinstance(message, Assign)] == [
        [1],
        [2],
        [3, 4],
    ]
