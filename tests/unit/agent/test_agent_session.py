"""The session's protocol under a virtual clock and a simulated wire."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.connection import FINAL, Connection, Ending
from agent.session import Outbox, batches
from agent.wire import WireClosed
from headrace.v1 import agent_pb2 as pb
from tests.harness.virtual_time import VirtualClock, simulate
from tests.unit.agent.simulated import Coordinator, Job, SleepingJobs, Told, identity


class World:
    """One agent and one simulated coordinator."""

    def __init__(self, rng: random.Random, jobs: int, slots: int, addresses: tuple[str, ...] = ("a:1", "b:2")) -> None:
        self.rng, self.slots, self.addresses = rng, slots, addresses
        self.coordinator = Coordinator(rng, jobs)
        self.disk: dict[int, pb.HeldAttempt] = {}
        self.told = Told()
        self.stop = asyncio.Event()
        self.boot()

    def boot(self) -> None:
        self.outbox = Outbox()
        self.jobs = SleepingJobs(self.outbox, self.slots, self.disk, self.rng)
        self.connection = Connection(
            self.coordinator,
            self.addresses,
            identity(self.slots),
            self.jobs,
            self.outbox,
            clock=VirtualClock(),
            rng=self.rng,
            listener=self.told,
        )
        self.task = asyncio.create_task(self.connection.run(self.stop))

    async def crash(self) -> None:
        """The agent is killed: its tasks and memory are gone, its disk is not."""
        for task in (self.task, *self.jobs.tasks.values()):
            task.cancel()
        await asyncio.gather(self.task, *self.jobs.tasks.values(), return_exceptions=True)

    async def until(self, condition: Callable[[], bool], seconds: float = 3600.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - nothing tells of it, and waiting costs nothing here
                await asyncio.sleep(0.05)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        try:
            yield self
        finally:
            self.stop.set()
            await asyncio.gather(self.task, return_exceptions=True)
            rest = [*self.coordinator.tasks, *self.jobs.tasks.values()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)


def test_jobs_flow_by_credit_and_the_coordinator_is_never_told_of_more_slots_than_there_are() -> None:
    """Credit is the only brake: one increment too many and a sandbox starts beside a full machine."""

    async def main(rng: random.Random) -> None:
        async with World(rng, jobs=40, slots=3).running() as world:
            await world.until(lambda: all(job.accepted for job in world.coordinator.jobs.values()))
            assert world.coordinator.complaints == []
            assert world.jobs.most == 3
            assert all(job.accepted == 1 for job in world.coordinator.jobs.values())

    simulate(main, seed=1)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1 << 32))
def test_whatever_is_cut_or_killed_every_job_ends_once(seed: int) -> None:
    """A session is nothing but a conversation: cuts, stalls and crashes of the agent cost time, never a job."""

    async def main(rng: random.Random) -> None:
        async with World(rng, jobs=12, slots=2).running() as world:
            for _ in range(12):
                await asyncio.sleep(rng.expovariate(1 / 15))
                match rng.randrange(3):
                    case 0 if world.coordinator.wires:
                        world.coordinator.wires[-1].cut()
                    case 1 if world.coordinator.wires:
                        world.coordinator.wires[-1].stalled = True
                    case 2:
                        await world.crash()
                        await asyncio.sleep(rng.uniform(0, 20))
                        world.boot()
            await world.until(lambda: all(job.accepted for job in world.coordinator.jobs.values()))
            assert world.coordinator.complaints == []
            assert world.jobs.most <= 2
            assert [job.accepted for job in world.coordinator.jobs.values()] == [1] * 12

    simulate(main, seed)


def test_a_coordinator_that_answers_no_heartbeat_for_ten_seconds_is_left_for_another_address() -> None:
    """A replica that hangs still holds the connection open: only the missing answer gives it away."""

    async def main(rng: random.Random) -> None:
        async with World(rng, jobs=0, slots=1).running() as world:
            await world.until(lambda: len(world.told.sessions) == 1)
            (first, _) = world.told.sessions[0]
            world.coordinator.wires[-1].stalled = True
            since = asyncio.get_running_loop().time()
            await world.until(lambda: len(world.told.sessions) == 2)
            assert asyncio.get_running_loop().time() - since < 10 + 5 + 2
            assert world.told.sessions[1][0] != first
            assert "heartbeat" in world.told.partings[0][1]

    simulate(main, seed=2)


def test_the_boot_time_told_to_leases_is_that_of_the_sending() -> None:
    """A deadline counted from the answer would let a sandbox outlive its lease by the round trip."""

    async def main(rng: random.Random) -> None:
        async with World(rng, jobs=0, slots=1).running() as world:
            await world.until(lambda: len(world.jobs.beats) >= 3)
            first, second, third = world.jobs.beats[:3]
            assert (second - first, third - second) == pytest.approx((5000, 5000), abs=5)
            assert third < asyncio.get_running_loop().time() * 1000

    simulate(main, seed=3)


def test_a_coordinator_that_goes_away_is_left_at_once() -> None:
    """GOAWAY means that this replica's leases are in doubt: the next one must hear of the agent soon."""

    async def main(rng: random.Random) -> None:
        async with World(rng, jobs=0, slots=1).running() as world:
            await world.until(lambda: len(world.told.sessions) == 1)
            world.coordinator.wires[-1].answer(go_away=pb.GoAway(sentence="moving", retry_after_ms=5000))
            since = asyncio.get_running_loop().time()
            await world.until(lambda: len(world.told.sessions) == 2)
            assert asyncio.get_running_loop().time() - since < 3
            assert world.told.sessions[0][0] != world.told.sessions[1][0]

    simulate(main, seed=4)


def test_a_leaving_agent_grants_nothing_refuses_what_was_on_its_way_and_finishes_what_it_has() -> None:
    """SIGTERM must not cost the jobs that run, nor catch new ones."""

    async def main(rng: random.Random) -> None:
        async with World(rng, jobs=6, slots=2).running() as world:
            await world.until(lambda: len(world.jobs.taken) == 2)
            world.outbox.leave()
            await world.until(lambda: not world.disk)
            done = [job.accepted for job in world.coordinator.jobs.values()]
            await asyncio.sleep(60)
            assert [job.accepted for job in world.coordinator.jobs.values()] == done
            assert sum(done) == 2
            assert world.coordinator.complaints == []

    simulate(main, seed=5)


def test_a_drained_agent_takes_work_again_after_the_undo() -> None:
    """A drain takes no credit away, so that the undo grants none twice."""

    async def main(rng: random.Random) -> None:
        async with World(rng, jobs=0, slots=2).running() as world:
            await world.until(lambda: len(world.told.sessions) == 1)
            coordinator, wire = world.coordinator, world.coordinator.wires[-1]
            coordinator.drained = True
            wire.answer(drain=pb.Drain())
            await asyncio.sleep(10)
            coordinator.drained = False
            wire.answer(drain=pb.Drain(undo=True))
            await asyncio.sleep(30)
            assert coordinator.credit == 2
            assert coordinator.complaints == []

    simulate(main, seed=6)


def test_a_report_is_handed_in_again_until_it_is_answered() -> None:
    """The answer may be lost with the connection; the outcome may not."""

    async def main(rng: random.Random) -> None:
        async with World(rng, jobs=1, slots=1).running() as world:
            await world.until(lambda: len(world.jobs.taken) == 1)
            world.coordinator.wires[-1].stalled = True
            await world.until(lambda: not world.jobs.taken)
            assert "1-ended" in world.outbox.reports or world.coordinator.jobs[0].accepted
            await world.until(lambda: world.coordinator.jobs[0].accepted == 1 and not world.outbox.reports)
            assert world.coordinator.jobs[0].attempts == 1

    simulate(main, seed=7)


def test_reports_are_handed_in_by_as_many_as_a_message_takes() -> None:
    """A coordinator that was away a while gets them all at once, and each may hold outputs of megabytes."""
    small = [pb.Report(id=str(n)) for n in range(250)]
    assert [len(batch) for batch in batches(small)] == [100, 100, 50]
    large = [pb.Report(id=str(n), ended=pb.Ended(outputs=b"x" * (3 << 20))) for n in range(5)]
    assert [[report.id for report in batch] for batch in batches(large)] == [["0", "1"], ["2", "3"], ["4"]]
    huge = [pb.Report(ended=pb.Ended(outputs=b"x" * (15 << 20))), small[0]]
    assert [len(batch) for batch in batches(huge)] == [1, 1]
    assert list(batches([])) == []


def test_no_two_assignments_are_taken_for_one_slot() -> None:
    """A coordinator that miscounts is told so; the machine is not overloaded."""

    async def main(rng: random.Random) -> None:
        async with World(rng, jobs=3, slots=1).running() as world:
            await world.until(lambda: len(world.jobs.taken) == 1)
            world.coordinator.credit = 2  # a defect of the coordinator
            await world.until(lambda: len(world.coordinator.given) >= 3)
            await world.until(lambda: sum(given.over for given in world.coordinator.given.values()) >= 2)
            assert world.jobs.most == 1

    simulate(main, seed=8)


def test_what_is_assigned_while_the_agent_leaves_is_refused_at_once() -> None:
    """The assignment and the SIGTERM may cross: another agent should have the job now, not after a timeout."""

    async def main(rng: random.Random) -> None:
        async with World(rng, jobs=0, slots=1).running() as world:
            await world.until(lambda: len(world.told.sessions) == 1)
            world.coordinator.jobs[0] = Job()
            world.coordinator.queued.append(0)
            world.coordinator.assign(world.coordinator.wires[-1])
            world.outbox.leave()
            await world.until(lambda: world.coordinator.given[1].acknowledged, seconds=3)
            assert world.coordinator.given[1].over
            assert world.jobs.most == 0

    simulate(main, seed=11)


def test_a_report_that_a_coordinator_lost_is_said_again_on_the_same_connection() -> None:
    """A coordinator that forgets in its own memory must not leave a job running for ever in its books."""

    async def main(rng: random.Random) -> None:
        async with World(rng, jobs=1, slots=1).running() as world:
            world.coordinator.loses_reports = 2
            await world.until(lambda: world.coordinator.jobs[0].accepted == 1, seconds=120)
            assert len(world.told.sessions) == 1

    simulate(main, seed=12)


def test_an_agent_that_has_no_room_grants_nothing_until_it_has() -> None:
    """Told of a job only to refuse it, it would be told of it again at once, and again."""

    async def main(rng: random.Random) -> None:
        world = World(rng, jobs=1, slots=1)
        world.jobs.refusal = "its disk is full of logs"
        async with world.running():
            await world.until(lambda: len(world.jobs.beats) >= 3)
            assert world.jobs.offers == 0
            world.jobs.refusal = ""
            await world.until(lambda: world.coordinator.jobs[0].accepted == 1, seconds=120)

    simulate(main, seed=13)


@pytest.mark.parametrize("code", list(FINAL))
def test_refusals_that_can_never_change_end_the_agent(code: grpc.StatusCode) -> None:
    """An agent with a wrong token that knocks for ever only fills the log of a coordinator."""

    async def main(rng: random.Random) -> Ending | None:
        world = World(rng, jobs=0, slots=1)
        world.coordinator.refuse = WireClosed(code, "says the coordinator")
        async with world.running():
            return await world.task

    ending = simulate(main, seed=9)
    assert ending is not None
    assert ending.exit_code == (2 if code is grpc.StatusCode.INVALID_ARGUMENT else 3)
    # Ours has the mend; where the coordinator knows more, it is said too.
    assert ending.sentence.startswith(FINAL[code].sentence)
    says_all = code is grpc.StatusCode.UNAUTHENTICATED
    assert ending.sentence.endswith("says the coordinator") is not says_all


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code not in FINAL])
def test_every_other_status_is_tried_again_with_a_jittered_pause(code: grpc.StatusCode) -> None:
    """A restarting coordinator must find its agents again, though not all in the same instant."""

    async def main(rng: random.Random) -> None:
        world = World(rng, jobs=0, slots=1, addresses=("a:1",))
        world.coordinator.refuse = WireClosed(code, "no")
        async with world.running():
            await asyncio.sleep(60)
            tries = len(world.told.partings)
            assert 8 <= tries <= 25
            world.coordinator.refuse = None
            await world.until(lambda: bool(world.told.sessions), seconds=10)

    simulate(main, seed=10)
