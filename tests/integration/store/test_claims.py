"""Claims, on both stores: order, numbers, who may and who may not."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.core.states import AttemptState
from coordinator.dispatch.port import Want
from coordinator.errors import BadInput
from tests.integration.store.world import J, PostgresWorld, World


async def test_jobs_are_claimed_by_priority_and_then_by_virtual_time(world: World) -> None:
    """A project with a long queue does not starve one that comes later with a single job."""
    long = await world.run(J("l1"), J("l2"), J("l3"), repository="long")
    short = await world.run(J("s1"), repository="short")
    urgent = await world.run(J("u1"), repository="long", priority=5)
    claimed = await world.claim((await world.open(slots=9)).session_id, 9)
    order = [each.job_id for each in sorted(claimed, key=lambda each: each.number)]
    assert order == [urgent["u1"], long["l1"], short["s1"], long["l2"], long["l3"]]


async def test_a_retried_job_keeps_its_virtual_time(world: World) -> None:
    """A job that was lost does not go to the end of the line."""
    made = await world.run(J("first"), J("second"))
    opened = await world.open()
    before = await world.vt(made["first"])
    (job,) = await world.claim(opened.session_id)
    await world.start(job)
    await world.end(job, AttemptState.ERRORED)
    assert await world.vt(made["first"]) == before
    (again,) = await world.claim(opened.session_id, number=2)
    assert (again.job_id, again.attempt_try) == (made["first"], 2)


async def test_a_project_that_was_idle_begins_at_the_pools_present(world: World) -> None:
    """Nobody can save up claims for the time of which he made no use."""
    busy = await world.run(*(J(f"j{n}") for n in range(6)), repository="busy")
    opened = await world.open()
    await world.claim(opened.session_id, 4)
    late = await world.run(J("l"), repository="late")
    assert await world.vt(busy["j3"]) < await world.vt(late["l"]) <= await world.vt(busy["j4"])


async def test_assignments_are_numbered_without_gaps_and_given_to_the_freest(world: World) -> None:
    """The number says what an agent must have received."""
    await world.run(*(J(f"j{n}") for n in range(4)))
    one, two = await world.open("one"), await world.open("two")
    claimed = await world.at.claim(
        list(await world.at.classes()), [Want(one.session_id, 1, 5), Want(two.session_id, 3, 1)]
    )
    numbers = sorted((each.session_id == two.session_id, each.number) for each in claimed)
    assert numbers == [(False, 5), (True, 1), (True, 2), (True, 3)]
    assert len({each.token for each in claimed}) == 4
    assert {len(each.token) for each in claimed} == {16}
    assert {each.spec for each in claimed} == {b"j0", b"j1", b"j2", b"j3"}


async def test_claims_at_once_never_give_a_job_twice(world: World) -> None:
    """SKIP LOCKED: replicas share one queue and no memory."""
    made = await world.run(*(J(f"j{n}") for n in range(40)))
    sessions = [await world.open(f"a{n}", slots=11) for n in range(8)]
    classes = list(await world.at.classes())

    async def drink(store: object, session: str) -> list[int]:
        found: list[int] = []
        for number in range(1, 12):
            claimed = await store.claim(classes, [Want(session, 1, number)])  # type: ignore[attr-defined]
            found += [each.job_id for each in claimed]
        return found

    replicas = (world.at, world.beside)
    given = await asyncio.gather(*(drink(replicas[n % 2], each.session_id) for n, each in enumerate(sessions)))
    assert sorted(job for found in given for job in found) == sorted(key for name, key in made.items() if name)
    assert (await world.standing())["queued_without_place"] == 0


async def test_a_session_that_is_over_is_given_nothing(world: World) -> None:
    """A replica that does not know yet that its session was fenced must not take jobs into the void."""
    made = await world.run(J("unit"))
    old = await world.open()
    await world.open()
    assert await world.claim(old.session_id) == []
    assert await world.queued() == [made["unit"]]


async def test_a_paused_pool_starts_nothing(world: World) -> None:
    """`pools pause` holds the queue, and `resume` lets it go."""
    await world.run(J("unit"))
    opened = await world.open()
    await world.pause("default", paused=True)
    assert await world.claim(opened.session_id) == []
    await world.pause("default", paused=False)
    assert len(await world.claim(opened.session_id)) == 1


async def test_only_the_classes_that_were_asked_for_are_claimed(world: World) -> None:
    """A session that has refused a class, or that cannot run it, is passed by."""
    made = await world.run(J("arm", labels=(("arch", "arm64"),)), J("any"))
    opened = await world.open()
    plain = [key for key, need in (await world.at.classes()).items() if not need.labels]
    claimed = await world.at.claim(plain, [Want(opened.session_id, 4, 1)])
    assert [each.job_id for each in claimed] == [made["any"]]
    assert await world.queued() == [made["arm"]]


async def test_a_pool_that_does_not_exist_is_refused_in_one_sentence(world: World) -> None:
    """A mistyped pool would wait for ever."""
    with pytest.raises(BadInput, match="`gpu`"):
        await world.run(J("unit", pool="gpu"))
    await world.open("g", pool="gpu")
    await world.run(J("unit", pool="gpu"))


async def test_no_session_gets_more_than_its_agent_has_slots(world: World) -> None:
    """However much it wants: one agent that lies would lease all that is queued, and run none of it."""
    await world.run(*(J(f"j{n}") for n in range(9)))
    opened = await world.open(slots=3)
    first = await world.claim(opened.session_id, 2)
    second = await world.claim(opened.session_id, (1 << 32) - 1, number=3)
    assert (len(first), len(second)) == (2, 1)
    assert await world.claim(opened.session_id, 5, number=4) == []
    await world.start(first[0])
    await world.end(first[0])
    assert len(await world.claim(opened.session_id, 5, number=4)) == 1


async def test_a_job_too_large_for_a_message_is_refused_as_it_is_made(postgres: PostgresWorld) -> None:
    """No agent could ever be sent it: the session would break, each time anew."""
    with pytest.raises(BadInput, match="at most"):
        await postgres.run(J("unit"), J("x" * ((4 << 20) + 1)))
    assert (await postgres.run(J("unit")))["unit"]
