"""Reports, permits and what is given back, on both stores."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from coordinator.core.states import AttemptState
from tests.integration.store.world import J, PostgresWorld, World, ended, started

DEPLOY = J("ship", environment="production")


async def test_a_report_may_come_twice(world: World) -> None:
    """The answer may be lost: the agent hands it in again, and it counts once."""
    made = await world.run(J("unit"), J("after", needs=("unit",)))
    (job,) = await world.claim((await world.open()).session_id)
    for _ in range(2):
        assert not (await world.start(job)).abort
    for _ in range(2):
        assert not (await world.end(job)).abort
    assert await world.attempts(made["unit"]) == ["passed"]
    assert await world.queued() == [made["after"]]


async def test_a_start_told_again_after_the_end_is_answered_alike(world: World) -> None:
    """A report from the spool may be older than what is known."""
    await world.run(J("unit"))
    (job,) = await world.claim((await world.open()).session_id)
    await world.start(job)
    await world.end(job)
    assert not (await world.start(job)).abort


async def test_a_second_outcome_changes_nothing(world: World) -> None:
    """One attempt has one outcome, whatever its agent says later."""
    made = await world.run(J("unit"))
    (job,) = await world.claim((await world.open()).session_id)
    await world.start(job)
    await world.end(job)
    assert (await world.end(job, AttemptState.FAILED, "another")).abort
    assert await world.state(made[""], "unit") == "passed"


async def test_a_report_with_a_stale_token_changes_nothing_and_is_answered_with_abort(world: World) -> None:
    """The late word of an attempt that was given to somebody else must not end the new one."""
    made = await world.run(J("unit"))
    opened = await world.open()
    (job,) = await world.claim(opened.session_id)
    await world.start(job)
    assert (await world.end(replace(job, token=b"y" * 16))).abort
    assert await world.state(made[""], "unit") == "running"
    await world.expire(opened.session_id)
    assert (await world.end(job)).abort
    (again,) = await world.claim((await world.open("b")).session_id)
    assert await world.attempts(made["unit"]) == ["lost", "leased"]
    await world.start(again)
    await world.end(again)
    assert await world.attempts(made["unit"]) == ["lost", "passed"]


async def test_a_report_about_what_nobody_knows_is_answered_with_abort(world: World) -> None:
    """A database that was set up anew does not know the attempts of the old one."""
    await world.run(J("unit"))
    (job,) = await world.claim((await world.open()).session_id)
    assert (await world.start(replace(job, attempt_id=10**9))).abort


async def test_start_and_end_of_a_quick_job_come_in_one_batch(world: World) -> None:
    """A burst is one transaction: also two reports of one attempt, and the last two jobs of a stage."""
    made = await world.run(J("a"), J("b"), J("next", 1))
    jobs = await world.claim((await world.open()).session_id, 2)
    batch = [report for job in jobs for report in (started(job), ended(job))]
    answers = await world.at.report([*batch, *batch])
    assert not any(answer.abort for answer in answers)
    assert [answer.report_id for answer in answers] == [report.id for report in batch] * 2
    assert await world.queued() == [made["next"]]


async def test_what_fails_by_the_machinery_is_tried_again_within_its_budget(world: World) -> None:
    """Two more tries, then the job says so itself; the user's own failure is never tried again."""
    made = await world.run(J("unit"), J("tests"))
    opened = await world.open()
    for number in range(1, 4):
        for job in await world.claim(opened.session_id, 4, number=number * 10):
            outcome = AttemptState.ERRORED if job.job_id == made["unit"] else AttemptState.FAILED
            await world.start(job)
            await world.end(job, outcome)
    assert await world.attempts(made["unit"]) == ["errored"] * 3
    assert await world.attempts(made["tests"]) == ["failed"]
    assert await world.state(made[""]) == "failed"


async def test_an_assignment_that_was_refused_is_claimed_by_the_next(world: World) -> None:
    """Returned is no try: `HEADRACE_ATTEMPT` counts what started."""
    made = await world.run(J("unit"))
    (job,) = await world.claim((await world.open()).session_id)
    assert await world.give_up(job, token=b"z" * 16) == frozenset()
    assert await world.give_up(job) == {job.attempt_id}
    assert await world.give_up(job) == frozenset()
    (again,) = await world.claim((await world.open("b")).session_id)
    assert again.attempt_try == 1
    assert await world.attempts(made["unit"]) == ["returned", "leased"]


async def test_a_replica_that_lost_its_agent_cannot_take_back_what_another_session_resumed(world: World) -> None:
    """Half open: the old replica waits for an acknowledgement that went to the new one."""
    made = await world.run(J("unit"))
    old = await world.open()
    (job,) = await world.claim(old.session_id)
    await world.open(held=[job])
    assert await world.give_up(job) == frozenset()
    assert await world.attempts(made["unit"]) == ["leased"]


async def test_what_has_started_cannot_be_taken_back(world: World) -> None:
    """An acknowledgement that came too late came all the same: the job runs."""
    made = await world.run(J("unit"))
    (job,) = await world.claim((await world.open()).session_id)
    await world.start(job)
    assert await world.give_up(job) == frozenset()
    assert await world.attempts(made["unit"]) == ["running"]


async def test_a_start_permit_belongs_to_one_nonce_for_ever(world: World) -> None:
    """The same supervisor may ask again, its answer was lost; a second one would deploy twice."""
    await world.run(DEPLOY)
    (job,) = await world.claim((await world.open()).session_id)
    await world.start(job)
    first = await world.at.permit(job.attempt_id, job.token, "nonce-1")
    again = await world.beside.permit(job.attempt_id, job.token, "nonce-1")
    other = await world.at.permit(job.attempt_id, job.token, "nonce-2")
    assert first.granted
    assert again == first
    assert not other.granted
    assert other.sentence


async def test_of_many_nonces_at_once_one_gets_the_permit(world: World) -> None:
    """The race is what the permit is for."""
    await world.run(DEPLOY)
    (job,) = await world.claim((await world.open()).session_id)
    await world.start(job)
    asked = (world.at.permit(job.attempt_id, job.token, f"nonce-{n}") for n in range(6))
    assert [permit.granted for permit in await asyncio.gather(*asked)].count(True) == 1


async def test_the_fencing_number_grows_with_every_permitted_deployment(world: World) -> None:
    """Outside systems refuse what comes with a smaller number."""
    numbers = []
    opened = await world.open()
    for number in range(1, 4):
        await world.run(DEPLOY)
        (job,) = await world.claim(opened.session_id, number=number)
        await world.start(job)
        numbers.append((await world.at.permit(job.attempt_id, job.token, "n")).fencing_token)
        await world.end(job)
    assert numbers == sorted(set(numbers))
    assert numbers[0] > 1 << 40


async def test_no_permit_for_a_stale_token_a_job_that_may_run_twice_or_one_that_has_not_started(world: World) -> None:
    """A permit for an attempt that counts as unstarted could be returned to the queue, and deployed twice."""
    await world.run(J("unit"), J("ship", 1, needs=(), environment="production"))
    jobs = {each.spec: each for each in await world.claim((await world.open()).session_id, 2)}
    deploy = jobs[b"ship"]
    assert not (await world.at.permit(deploy.attempt_id, deploy.token, "n")).granted
    await world.start(deploy)
    await world.start(jobs[b"unit"])
    assert not (await world.at.permit(deploy.attempt_id, b"q" * 16, "n")).granted
    assert not (await world.at.permit(jobs[b"unit"].attempt_id, jobs[b"unit"].token, "n")).granted
    assert (await world.at.permit(deploy.attempt_id, deploy.token, "n")).granted


async def test_a_canceled_deployment_gets_no_permit(world: World) -> None:
    """Who cancels before the first command must be sure that nothing was deployed."""
    made = await world.run(DEPLOY)
    (job,) = await world.claim((await world.open()).session_id)
    await world.start(job)
    await world.cancel(made[""])
    assert not (await world.at.permit(job.attempt_id, job.token, "n")).granted


async def test_an_outcome_without_a_start_is_an_outcome(world: World) -> None:
    """The work was done, and only the word of its beginning was lost: it would be done twice."""
    made = await world.run(J("unit"), J("after", 1))
    (job,) = await world.claim((await world.open()).session_id)
    for _ in range(2):
        answer = await world.end(job)
        assert not answer.abort
    assert await world.attempts(made["unit"]) == ["passed"]
    assert await world.state(made[""], "after") == "queued"


async def test_a_late_outcome_of_a_lost_attempt_seals_its_log_if_the_token_is_right(postgres: PostgresWorld) -> None:
    """The outcome comes too late; how long the log is does not: nobody has to wait an hour for its end."""
    await postgres.run(J("unit"))
    opened = await postgres.open()
    (job,) = await postgres.claim(opened.session_id)
    await postgres.start(job)
    await postgres.expire(opened.session_id)
    sealed = "SELECT sealed_at IS NOT NULL FROM log WHERE attempt_id = $1"
    assert (await postgres.end(replace(job, token=b"x" * 16))).abort
    assert await postgres.value(sealed, job.attempt_id) is False
    assert (await postgres.end(job)).abort
    assert await postgres.value(sealed, job.attempt_id) is True
