"""What only two connections at once can show: rows held against each other, in one order, and never for nothing."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest
import pytest_asyncio

from coordinator.core.states import AttemptState
from coordinator.dispatch.port import Answer, Beat, StartedReport, Want
from coordinator.dispatch.recording import recorded
from coordinator.errors import StoreDown
from coordinator.store import attempts as attempts_module
from coordinator.store.settle import lock_runs
from coordinator.store.sql import statements
from tests.integration.store.world import J, PostgresWorld, ended, started

DISPATCH = statements("dispatch")


@pytest_asyncio.fixture
async def hand(postgres: PostgresWorld) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own, to hold a lock with."""
    connection = await asyncpg.connect(postgres.dsn)
    yield connection
    await connection.close()


async def blocked(world: PostgresWorld, count: int) -> None:
    """Waits until so many backends wait for a lock of another one."""
    while await world.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") < count:  # noqa: ASYNC110 - inside the server
        await asyncio.sleep(0.01)


async def test_the_last_two_jobs_of_a_stage_end_at_once_and_the_next_stage_always_starts(
    postgres: PostgresWorld,
) -> None:
    """Without the run's row lock each of the two sees the other still running, and the run hangs for ever."""
    world = postgres
    opened = await world.open(slots=1000)
    for round_number in range(200):
        made = await world.run(J("a"), J("b"), J("next", 1), J("named", 1, needs=("a", "b")))
        first, second = await world.claim(opened.session_id, 2, number=1 + 10 * round_number)
        await world.start(first)
        await world.start(second)
        await asyncio.gather(world.at.report([ended(first)]), world.beside.report([ended(second)]))
        assert await world.queued() == [made["next"], made["named"]], f"round {round_number}"
        for job in await world.claim(opened.session_id, 2, number=3 + 10 * round_number):
            await world.start(job)
            await world.end(job)
        assert await world.state(made[""]) == "passed"


async def test_a_claim_under_way_keeps_the_session_of_an_agent_that_leaves(
    postgres: PostgresWorld, hand: asyncpg.Connection
) -> None:
    """Else the new lease hangs on a session that is not there: nobody expires it, and the job is lost for ever."""
    world = postgres
    await world.run(J("unit"))
    opened = await world.open(leaving=True)
    async with hand.transaction():
        (job,) = await attempts_module.claim(
            hand, list(await world.at.classes()), [_want(opened.session_id)], lambda: b"t" * 16
        )
        leaving = asyncio.create_task(world.at.close_session(opened.session_id))
        await blocked(world, 1)
    await leaving
    assert (await world.standing())["lost_sight"] == 0
    assert await world.expire(opened.session_id) == [opened.session_id]
    assert await world.attempts(job.job_id) == ["returned"]


def _want(session_id: str) -> Want:
    return Want(session_id, 1, 1)


async def test_a_hello_and_a_claim_of_the_same_agent_do_not_wait_for_each_other_in_a_circle(
    postgres: PostgresWorld, hand: asyncpg.Connection
) -> None:
    """A claim holds the session and then refers to the agent; a Hello holds the agent and then takes the session."""
    world = postgres
    made = await world.run(J("unit"))
    opened = await world.open()
    classes = list(await world.at.classes())
    async with hand.transaction():
        await hand.fetch(DISPATCH.share_sessions, [opened.session_id])
        hello = asyncio.create_task(world.open())
        await blocked(world, 1)
        (job,) = await attempts_module.claim(hand, classes, [_want(opened.session_id)], lambda: b"t" * 16)
    await hello
    assert await world.attempts(made["unit"]) == ["returned"]
    assert job.job_id == made["unit"]


async def test_heartbeats_and_the_reaper_lock_sessions_in_one_order(
    postgres: PostgresWorld, hand: asyncpg.Connection
) -> None:
    """A deadlock here would cut all agents of a replica."""
    world = postgres
    sessions = sorted([uuid.UUID((await world.open(f"a{n}")).session_id) for n in range(6)])
    async with hand.transaction():
        await hand.execute("SELECT 1 FROM session WHERE id = $1 FOR UPDATE", sessions[0])
        # Written in another order, and in another one in the heap: the statement must sort them itself.
        beat = asyncio.create_task(
            world.at.heartbeat([beat_of(str(key)) for key in (*reversed(sessions[1:]), sessions[0])])
        )
        await blocked(world, 1)
        await hand.execute("SELECT 1 FROM session WHERE id = ANY($1) FOR UPDATE NOWAIT", sessions[1:])
    assert len((await beat).alive) == 6


def beat_of(session_id: str) -> Beat:
    return Beat(session_id, 0, frozenset())


async def test_a_cancel_and_a_hello_that_lost_an_attempt_of_the_run_do_not_deadlock(
    postgres: PostgresWorld, hand: asyncpg.Connection
) -> None:
    """A cancel locks the run and then its leases; whoever takes leases first would wait in a circle."""
    world = postgres
    made = await world.run(J("kept"), J("gone"))
    opened = await world.open()
    jobs = {each.spec: each for each in await world.claim(opened.session_id, 2)}
    async with hand.transaction():
        await lock_runs(hand, [made[""]])
        hello = asyncio.create_task(world.open(held=[jobs[b"kept"]]))
        await blocked(world, 1)
        await hand.execute("UPDATE lease SET cancel = 'cancel' WHERE run_id = $1", made[""])
    assert (await hello).verdicts[0].resume
    assert await world.attempts(made["gone"]) == ["returned"]


async def test_an_expiry_waits_for_a_permit_under_way_and_keeps_the_deployment(
    postgres: PostgresWorld, hand: asyncpg.Connection
) -> None:
    """The permit was given: the deployment has its long lease, however close the reaper was."""
    world = postgres
    made = await world.run(J("ship", environment="production"))
    opened = await world.open()
    (job,) = await world.claim(opened.session_id)
    await world.start(job)
    async with hand.transaction():
        permit = await attempts_module.permit(hand, job.attempt_id, job.token, "nonce")
        expiry = asyncio.create_task(world.expire(opened.session_id))
        await blocked(world, 1)
    assert permit.granted
    await expiry
    assert await world.state(made[""], "ship") == "running"
    assert [each.attempt_id for each in (await world.at.observe()).orphans] == [job.attempt_id]


@pytest.mark.parametrize("outcome", [AttemptState.PASSED, AttemptState.ERRORED])
async def test_a_report_and_a_cancel_at_once_settle_the_run(postgres: PostgresWorld, outcome: AttemptState) -> None:
    """Whichever comes first, the run ends and nothing stays queued."""
    world = postgres
    opened = await world.open(slots=100)
    for number in range(1, 20):
        made = await world.run(J("a"), J("b", 1))
        (job,) = await world.claim(opened.session_id, number=number)
        await world.start(job)
        await asyncio.gather(world.end(job, outcome), world.cancel(made[""]))
        assert await world.state(made[""]) == "canceled"
        assert await world.queued() == []


async def test_many_agents_reports_and_expiries_at_once_leave_the_books_straight(postgres: PostgresWorld) -> None:
    """A storm over two replicas: every count that must be 0 is 0, and no transaction fails by deadlock."""
    world = postgres
    made = [await world.run(J("a"), J("b"), J("c", 1), J("d", 1)) for _ in range(6)]
    sessions = [(await world.open(f"a{n}", slots=4)).session_id for n in range(4)]

    async def work(session: str, number: int) -> None:
        store = (world.at, world.beside)[number % 2]
        for turn in range(8):
            claimed = await store.claim(list(await store.classes()), [Want(session, 2, 1 + 2 * turn)])
            reports = [StartedReport(f"s{e.attempt_id}", e.attempt_id, e.token) for e in claimed]
            await store.report([*reports, *(ended(each) for each in claimed)])
            await store.heartbeat([beat_of(each) for each in sessions])

    async with AsyncExitStack():
        await asyncio.gather(*(work(session, number) for number, session in enumerate(sessions)))
    assert await world.standing() == {"lost_sight": 0, "waiting_for_nothing": 0, "queued_without_place": 0}
    assert {await world.state(each[""]) for each in made} == {"passed"}


async def test_a_run_that_is_held_does_not_hold_up_heartbeats(
    postgres: PostgresWorld, hand: asyncpg.Connection
) -> None:
    """They are those of all agents: a fleet would connect anew because of one run."""
    world = postgres
    made = await world.run(J("unit"))
    opened = await world.open()
    (job,) = await world.claim(opened.session_id)
    async with hand.transaction():
        await lock_runs(hand, [made[""]])
        async with asyncio.timeout(2):
            pulse = await world.at.heartbeat([Beat(opened.session_id, 1, frozenset())])
        settling = asyncio.create_task(world.at.settle_missing(pulse.missing))
        await blocked(world, 1)
    await settling
    assert await world.attempts(job.job_id) == ["returned"]


async def test_a_run_that_is_held_fails_its_own_reports_alone(
    postgres: PostgresWorld, hand: asyncpg.Connection
) -> None:
    """They come in one batch with those of everybody, and would fail them again and again."""
    world = postgres
    held, free = await world.run(J("unit")), await world.run(J("unit"))
    one, other = await world.claim((await world.open()).session_id, 2)
    if one.run_id != held[""]:
        one, other = other, one
    async with hand.transaction():
        await lock_runs(hand, [held[""]])
        first, second, third = await recorded(world.at, [started(one), started(other), ended(other)])
    assert isinstance(first, StoreDown)
    assert [isinstance(each, Answer) and not each.abort for each in (second, third)] == [True, True]
    assert await world.state(free[""]) == "passed"
