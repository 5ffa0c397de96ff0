"""What people ask for, on both stores: runs made once, canceled at any moment, retried."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.core.states import AttemptState
from coordinator.dispatch.port import CancelOrder
from coordinator.errors import Conflict, NotFound
from tests.integration.store.world import J, World


async def test_two_creates_at_once_with_one_request_id_make_one_run(world: World) -> None:
    """A CreateRun retried because its answer was lost must not build twice."""
    made = await asyncio.gather(*(world.run(J("unit"), request="the-same-request") for _ in range(5)))
    assert len({each[""] for each in made}) == 1
    assert len(await world.queued()) == 1
    assert await world.runs.run_of_request("the-same-request") == made[0][""]


async def test_a_run_goes_through_its_stages(world: World) -> None:
    """The whole way of a run, and `needs` that goes past a stage."""
    made = await world.run(J("a"), J("b"), J("early", 1, needs=("a",)), J("c", 1), J("d", 2))
    opened = await world.open(slots=9)
    order = []
    for number in range(10):
        for job in await world.claim(opened.session_id, 1, number=number + 1):
            order.append(job.spec.decode())
            await world.start(job)
            await world.end(job)
    assert order == ["a", "b", "early", "c", "d"]
    assert await world.state(made[""]) == "passed"


async def test_what_follows_a_failure_is_skipped(world: World) -> None:
    """And the run has failed, not hung."""
    made = await world.run(J("a"), J("b", 1), J("c", 2))
    (job,) = await world.claim((await world.open()).session_id)
    await world.start(job)
    await world.end(job, AttemptState.FAILED)
    states = {key: state for key, (state, _) in (await world.jobs(made[""])).items()}
    assert states == {"a": "failed", "b": "skipped", "c": "skipped"}
    assert await world.state(made[""]) == "failed"


async def test_a_run_is_canceled_before_anything_has_begun(world: World) -> None:
    """Nothing is left to be claimed."""
    made = await world.run(J("a"), J("b", 1))
    await world.cancel(made[""])
    assert await world.queued() == []
    assert await world.state(made[""]) == "canceled"
    assert await world.claim((await world.open()).session_id) == []


async def test_a_cancel_reaches_what_an_agent_holds_and_the_second_one_kills(world: World) -> None:
    """First Ctrl-C: with grace; second: at once."""
    made = await world.run(J("a"), J("b", 1))
    opened = await world.open()
    (job,) = await world.claim(opened.session_id)
    await world.start(job)
    await world.cancel(made[""])
    assert await world.at.cancels([opened.session_id]) == [
        CancelOrder(job.attempt_id, opened.session_id, kill=False, sentence="enough")
    ]
    await world.cancel(made[""])
    (order,) = await world.at.cancels([opened.session_id])
    assert order.kill
    assert await world.state(made[""]) == "running"
    await world.end(job, AttemptState.CANCELED)
    assert await world.state(made[""]) == "canceled"
    assert await world.at.cancels([opened.session_id]) == []


async def test_the_same_cancel_sent_again_does_not_kill(world: World) -> None:
    """A retry of the request is not a second Ctrl-C."""
    made = await world.run(J("a"))
    opened = await world.open()
    await world.claim(opened.session_id)
    for _ in range(3):
        await world.runs.cancel("one-request", made[""], "enough")
    (order,) = await world.at.cancels([opened.session_id])
    assert not order.kill


async def test_a_job_that_was_assigned_and_comes_back_is_not_queued_again_after_a_cancel(world: World) -> None:
    """Refused, lost or errored: whoever canceled the run does not want to see it begin again."""
    made = await world.run(J("refused"), J("lost"), J("errored"))
    opened = await world.open()
    jobs = {each.spec: each for each in await world.claim(opened.session_id, 3)}
    await world.start(jobs[b"lost"])
    await world.start(jobs[b"errored"])
    await world.cancel(made[""])
    await world.give_up(jobs[b"refused"])
    await world.end(jobs[b"errored"], AttemptState.ERRORED)
    await world.expire(opened.session_id)
    assert await world.state(made[""]) == "canceled"
    assert {state for state, _ in (await world.jobs(made[""])).values()} == {"canceled"}
    assert await world.queued() == []


async def test_a_job_that_passed_before_the_cancel_reached_it_has_passed(world: World) -> None:
    """What happened, happened; the run was canceled all the same."""
    made = await world.run(J("a"))
    (job,) = await world.claim((await world.open()).session_id)
    await world.start(job)
    await world.cancel(made[""])
    await world.end(job)
    assert await world.state(made[""], "a") == "passed"


async def test_cancels_and_claims_at_once_leave_nothing_behind(world: World) -> None:
    """Each job is either canceled in the queue or leased with the order to stop: never both, never neither."""
    opened = await world.open(slots=9)
    for round_number in range(30):
        made = await world.run(J("a"), J("b"), J("c", 1))
        claimed, _ = await asyncio.gather(
            world.claim(opened.session_id, 2, number=1 + 2 * round_number), world.cancel(made[""])
        )
        told = {order.attempt_id for order in await world.beside.cancels([opened.session_id])}
        assert told == {each.attempt_id for each in claimed}
        for job in claimed:
            await world.give_up(job)
        assert await world.state(made[""]) == "canceled"
        assert await world.queued() == []


async def test_a_run_that_is_not_there_cannot_be_canceled(world: World) -> None:
    """One sentence, and the request may be made again."""
    with pytest.raises(NotFound, match="no run 999999"):
        await world.cancel(999_999)


async def test_a_retry_runs_what_failed_and_what_was_skipped_because_of_it(world: World) -> None:
    """And leaves alone what passed."""
    made = await world.run(J("a"), J("b"), J("c", 1))
    opened = await world.open()
    for number, job in enumerate(await world.claim(opened.session_id, 2)):
        await world.start(job)
        await world.end(job, AttemptState.FAILED if number else AttemptState.PASSED)
    assert await world.state(made[""]) == "failed"
    await world.retry(made[""])
    assert await world.state(made[""]) == "running"
    for number in (5, 6):
        (job,) = await world.claim(opened.session_id, number=number)
        await world.start(job)
        await world.end(job)
    assert await world.state(made[""]) == "passed"
    assert [await world.attempts(made[key]) for key in "abc"] == [["passed"], ["failed", "passed"], ["passed"]]


async def test_a_retry_sent_again_retries_once(world: World) -> None:
    """Its answer was lost, not its effect."""
    made = await world.run(J("a"))
    (job,) = await world.claim((await world.open()).session_id)
    await world.start(job)
    await world.end(job, AttemptState.FAILED)
    for _ in range(2):
        await world.runs.retry("retry-once-only", made[""], "a")
    assert await world.queued() == [made["a"]]
    with pytest.raises(Conflict):
        await world.retry(made[""], "a")
