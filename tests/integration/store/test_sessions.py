"""Sessions, on both stores: who is let in, what is fenced, and what a Hello or a heartbeat settles."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.dispatch.port import Beat
from coordinator.errors import IdentityTaken, LateHello
from coordinator.store.views import Views
from tests.integration.store.world import J, PostgresWorld, World


async def test_the_same_instance_again_fences_its_older_session(world: World) -> None:
    """A reconnect must not wait for a lease to end, and the old stream must not speak for the agent any more."""
    old = await world.open()
    new = await world.open()
    assert new.agent_id == old.agent_id
    assert not await world.beat(old.session_id, 0)
    assert await world.beat(new.session_id, 0)


async def test_another_instance_is_refused_while_a_session_lives_and_the_first_goes_on(world: World) -> None:
    """Two machines under one name would take each other's jobs."""
    first = await world.open()
    with pytest.raises(IdentityTaken, match="`a`"):
        await world.open(instance="a copy of the machine")
    assert await world.beat(first.session_id, 0)


async def test_another_instance_takes_the_name_when_the_session_is_over(world: World) -> None:
    """A machine that was replaced under its name is let in once the old one's lease has ended."""
    first = await world.open()
    assert await world.expire(first.session_id) == [first.session_id]
    second = await world.open(instance="the new machine")
    assert second.agent_id == first.agent_id


async def test_of_two_hellos_at_once_one_session_is_left(world: World) -> None:
    """An agent that dials two replicas at the same moment has one session in the end."""
    opened = await asyncio.gather(*(world.open() for _ in range(4)))
    alive = [await world.beat(each.session_id, 0) for each in opened]
    assert alive.count(True) == 1


async def test_of_two_instances_at_once_one_is_let_in(world: World) -> None:
    """Nobody may slip in between the look and the insert, also under a name that was never seen."""
    opened = await asyncio.gather(*(world.open(instance=f"i{n}") for n in range(4)), return_exceptions=True)
    assert sum(isinstance(each, IdentityTaken) for each in opened) == 3


async def test_an_attempt_that_hello_names_with_its_token_is_resumed(world: World) -> None:
    """A reconnect costs no job."""
    made = await world.run(J("unit"))
    (job,) = await world.claim((await world.open()).session_id)
    await world.start(job)
    again = await world.open(held=[job])
    assert [(each.attempt_id, each.resume) for each in again.verdicts] == [(job.attempt_id, True)]
    assert await world.beat(again.session_id, 0, job)
    await world.end(job)
    assert await world.state(made[""]) == "passed"


async def test_an_attempt_that_is_over_is_aborted_in_hello(world: World) -> None:
    """What was given to somebody else is dropped with the first message, not with the last."""
    await world.run(J("unit"))
    opened = await world.open()
    (job,) = await world.claim(opened.session_id)
    await world.expire(opened.session_id)
    (verdict,) = (await world.open(held=[job])).verdicts
    assert not verdict.resume
    assert verdict.sentence


async def test_an_attempt_named_with_a_wrong_token_is_not_resumed(world: World) -> None:
    """The token is what proves a lease, not the number."""
    made = await world.run(J("unit"))
    (job,) = await world.claim((await world.open()).session_id)
    from dataclasses import replace

    (verdict,) = (await world.open(held=[replace(job, token=b"x" * 16)])).verdicts
    assert not verdict.resume
    assert await world.attempts(made["unit"]) == ["returned"]


async def test_what_hello_does_not_name_is_settled_at_once(world: World) -> None:
    """An agent that lost its disk must not hold its jobs for a whole lease: lost if begun, else returned."""
    made = await world.run(J("begun"), J("fresh"))
    opened = await world.open()
    first, _ = await world.claim(opened.session_id, 2)
    await world.start(first)
    await world.open()
    assert await world.attempts(made["begun"]) == ["lost"]
    assert await world.attempts(made["fresh"]) == ["returned"]
    assert await world.queued() == sorted([made["begun"], made["fresh"]])


async def test_a_heartbeat_settles_what_the_agent_had_received_and_does_not_name(world: World) -> None:
    """An assignment under way is not missing: only what is numbered up to the highest received one is."""
    made = await world.run(J("a"), J("b"))
    opened = await world.open()
    jobs = await world.claim(opened.session_id, 2)
    assert [each.number for each in jobs] == [1, 2]
    assert await world.beat(opened.session_id, 0)
    assert await world.attempts(made["a"]) == ["leased"]
    await world.beat(opened.session_id, 1)
    assert [await world.attempts(made[key]) for key in "ab"] == [["returned"], ["leased"]]
    await world.start(jobs[1])
    await world.beat(opened.session_id, 2)
    assert await world.attempts(made["b"]) == ["lost"]


async def test_a_heartbeat_of_a_session_that_is_not_there_is_not_answered(world: World) -> None:
    """That is how a fenced or expired agent learns of it."""
    opened = await world.open()
    other = world.session_id()
    assert not await world.beat(other, 0)
    assert await world.beat(opened.session_id, 0)
    assert list((await world.at.observe()).counters) == [opened.session_id]


async def test_an_agent_that_left_with_empty_hands_is_gone_at_once(world: World) -> None:
    """A scaled-down fleet is not shown as connected for another 30 s."""
    opened = await world.open(leaving=True)
    await world.at.close_session(opened.session_id)
    assert (await world.at.observe()).counters == {}


async def test_an_agent_that_left_with_an_attempt_keeps_its_lease(world: World) -> None:
    """A stream that ends says nothing about the job."""
    made = await world.run(J("unit"))
    opened = await world.open()
    (job,) = await world.claim(opened.session_id)
    await world.start(job)
    await world.at.close_session(opened.session_id)
    assert await world.attempts(made["unit"]) == ["running"]
    assert list((await world.at.observe()).counters) == [opened.session_id]


async def test_a_drained_agent_is_told_so_in_its_welcome_and_by_its_id(world: World) -> None:
    """What a person decided outlives restarts of agent and coordinator."""
    opened = await world.open()
    await world.drain("a", drained=True)
    assert await world.at.drained([opened.agent_id]) == {opened.agent_id}
    assert (await world.open()).drained
    await world.drain("a", drained=False)
    assert not (await world.open()).drained


async def test_a_hello_that_arrives_behind_a_newer_one_is_refused_and_changes_nothing(world: World) -> None:
    """It waited out an outage in a replica that the agent had left: it knows nothing of what was given since."""
    made = await world.run(J("unit"))
    await world.open(number=1)
    newest = await world.open(number=3)
    (job,) = await world.claim(newest.session_id)
    await world.start(job)
    for late in (2, 3):
        with pytest.raises(LateHello):
            await world.open(number=late)
    assert await world.beat(newest.session_id, 1, job)
    assert await world.attempts(made["unit"]) == ["running"]
    await world.open(number=4, held=[job])
    await world.expire(*(await world.at.observe()).counters)
    await world.open(number=1, instance="the new machine counts from 1")


async def test_what_was_missing_and_has_been_resumed_meanwhile_is_left_alone(world: World) -> None:
    """The heartbeat was read without locks: by now the attempt may be in the hands of a newer session."""
    made = await world.run(J("unit"))
    old = await world.open()
    (job,) = await world.claim(old.session_id)
    await world.start(job)
    pulse = await world.at.heartbeat([Beat(old.session_id, 1, frozenset())])
    assert [each.attempt_id for each in pulse.missing] == [job.attempt_id]
    await world.open(held=[job])
    await world.at.settle_missing(pulse.missing)
    assert await world.attempts(made["unit"]) == ["running"]


async def test_an_attempt_that_the_database_does_not_know_is_named_as_a_stray(world: World) -> None:
    """After a failover that lost commits its job is queued again, or never was: nobody waits for this attempt."""
    await world.run(J("a"), J("b"), J("over"))
    mine, other = await world.open(), await world.open("b")
    (job,) = await world.claim(mine.session_id)
    (theirs,) = await world.claim(other.session_id)
    (over,) = await world.claim(mine.session_id)
    for each in (job, theirs, over):
        await world.start(each)
    await world.end(over)
    named = frozenset({job.attempt_id, theirs.attempt_id, over.attempt_id, 777_777})
    pulse = await world.at.heartbeat([Beat(mine.session_id, 2, named)])
    strays = sorted((each.attempt_id, each.session_id) for each in pulse.strays)
    assert strays == sorted([(theirs.attempt_id, mine.session_id), (777_777, mine.session_id)])
    assert not pulse.missing, "and what it has not been told to forget stays"


async def test_the_reaper_is_told_which_server_answers(world: World) -> None:
    """Of another one it believes no counter that it has seen before."""
    first = await world.at.observe()
    assert first.server
    assert (await world.beside.observe()).server == first.server


@pytest.mark.parametrize("end", ["it leaves", "it falls silent"])
async def test_an_agent_was_last_seen_when_its_session_ended(postgres: PostgresWorld, end: str) -> None:
    """Of a machine that fell silent at noon nobody wants to know when it was switched on last month."""
    opened = await postgres.open()
    long_ago = "UPDATE agent SET seen_at = 'epoch' RETURNING seen_at"
    before = await postgres.value(long_ago)
    views = Views(postgres.database, postgres.bells)
    (agent,) = await views.agents()
    assert agent["seen_at"] > before, "it is connected now"
    if end == "it leaves":
        await postgres.at.close_session(opened.session_id)
    else:
        await postgres.expire(opened.session_id)
    (agent,) = await views.agents()
    assert (agent["connected"], agent["seen_at"] > before) == (False, True)
