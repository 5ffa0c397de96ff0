"""What ends by itself, on both stores: silent sessions, orphans, jobs nobody can take, and the sweep that mends."""

from __future__ import annotations

import pytest

from coordinator.errors import Conflict
from tests.integration.store.world import J, World

DEPLOY = J("ship", environment="production")


async def test_a_session_is_expired_only_with_the_counter_that_was_seen(world: World) -> None:
    """A heartbeat that came while the reaper made up its mind saves the session."""
    opened = await world.open()
    term = await world.term()
    counters = dict((await world.at.observe()).counters)
    await world.beat(opened.session_id, 0)
    assert list(await world.at.expire(counters, term)) == []
    assert await world.beat(opened.session_id, 0)


async def test_a_reaper_whose_term_is_over_expires_nothing(world: World) -> None:
    """Two reapers must not count the same silence."""
    opened = await world.open()
    counters = (await world.at.observe()).counters
    await world.term()
    assert list(await world.at.expire(dict(counters), world.session_id())) == []
    assert await world.beat(opened.session_id, 0)


async def test_an_expired_session_leaves_its_jobs_to_others(world: World) -> None:
    """Begun: lost, and tried again; not begun: returned."""
    made = await world.run(J("begun"), J("fresh"))
    opened = await world.open()
    first, _ = await world.claim(opened.session_id, 2)
    await world.start(first)
    assert list(await world.expire(opened.session_id)) == [opened.session_id]
    assert await world.attempts(made["begun"]) == ["lost"]
    assert await world.attempts(made["fresh"]) == ["returned"]
    assert await world.queued() == sorted([made["begun"], made["fresh"]])
    assert not await world.beat(opened.session_id, 0)


async def permitted(world: World) -> tuple[dict[str, int], object, str]:
    made = await world.run(DEPLOY)
    opened = await world.open()
    (job,) = await world.claim(opened.session_id)
    await world.start(job)
    assert (await world.at.permit(job.attempt_id, job.token, "nonce")).granted
    return made, job, opened.session_id


async def test_a_permitted_deployment_outlives_its_session_and_is_resumed(world: World) -> None:
    """Its own, long lease is running: the agent may come back within it."""
    made, job, session = await permitted(world)
    await world.expire(session)
    (orphan,) = (await world.at.observe()).orphans
    assert orphan.attempt_id == job.attempt_id  # type: ignore[attr-defined]
    assert await world.state(made[""], "ship") == "running"
    again = await world.open(held=[job])
    assert again.verdicts[0].resume
    assert (await world.at.observe()).orphans == ()
    await world.end(job)  # type: ignore[arg-type]
    assert await world.state(made[""]) == "passed"


async def test_a_permitted_deployment_that_nobody_resumes_is_blocked_and_never_queued(world: World) -> None:
    """It may have happened, or happen still: only a person can know."""
    made, job, session = await permitted(world)
    await world.expire(session)
    attempt = job.attempt_id  # type: ignore[attr-defined]
    assert list(await world.at.expire_orphans([attempt], world.session_id())) == []
    assert list(await world.at.expire_orphans([attempt], await world.term())) == [attempt]
    assert await world.state(made[""], "ship") == "blocked"
    assert await world.state(made[""]) == "blocked"
    assert await world.queued() == []
    assert (await world.end(job)).abort  # type: ignore[arg-type]


async def test_an_orphan_that_was_resumed_meanwhile_is_left_alone(world: World) -> None:
    """The reaper's look may be older than the agent's return."""
    made, job, session = await permitted(world)
    await world.expire(session)
    await world.open(held=[job])
    attempt = job.attempt_id  # type: ignore[attr-defined]
    assert list(await world.at.expire_orphans([attempt], await world.term())) == []
    assert await world.state(made[""], "ship") == "running"


async def test_a_permitted_deployment_missing_from_hello_is_blocked(world: World) -> None:
    """The machine is new, the deployment is not."""
    made, _, _ = await permitted(world)
    await world.open()
    assert await world.state(made[""], "ship") == "blocked"
    assert await world.queued() == []


async def test_a_retry_of_a_lost_deployment_starts_it_again(world: World) -> None:
    """A person has looked, and asks for it; but not beside one that may still be running out of contact."""
    made, _, _ = await permitted(world)
    await world.open()
    with pytest.raises(Conflict, match=r"retry it in (600|599) s"):
        await world.retry(made[""], "ship")
    assert await world.state(made[""], "ship") == "blocked"
    await world.age(601)
    await world.retry(made[""], "ship")
    assert await world.state(made[""], "ship") == "queued"


async def test_what_waits_for_nothing_is_mended_and_counted(world: World) -> None:
    """The sweep behind a defect: it must never find anything, and when it does somebody has to know."""
    made = await world.run(J("a"), J("b", 1))
    assert await world.at.mend(3600) == 0
    await world.forget(made["b"])
    assert (await world.standing())["waiting_for_nothing"] == 1
    assert await world.at.mend(3600) == 1
    assert await world.queued() == sorted([made["a"], made["b"]])
    assert await world.standing() == {"lost_sight": 0, "waiting_for_nothing": 0, "queued_without_place": 0}


async def test_a_job_queued_for_too_long_fails_as_unschedulable(world: World) -> None:
    """`queue_timeout`: nobody waits for ever for an agent that never comes."""
    made = await world.run(J("a"))
    await world.at.mend(3600)
    assert await world.state(made[""]) == "pending"
    await world.age(7200)
    await world.at.mend(3600)
    state, sentence = (await world.jobs(made[""]))["a"]
    assert (state, sentence) == ("failed", "no agent could take it within 1 h")
    assert await world.queued() == []


async def test_a_queued_job_says_why_nobody_takes_it_and_stops_when_somebody_can(world: World) -> None:
    """The nearest agent, and what differs."""
    made = await world.run(J("arm", labels=(("arch", "arm64"),)))
    assert await world.at.judge_schedulable(fail=False) == 1
    assert "no agent is connected" in (await world.jobs(made[""]))["arm"][1]
    await world.open("x86", labels={"arch": "x86"})
    await world.at.judge_schedulable(fail=False)
    assert (await world.jobs(made[""]))["arm"][
        1
    ] == "no agent fits; the nearest is `x86`: its `arch` is `x86`, not `arm64`"
    assert await world.at.judge_schedulable(fail=False) == 0
    await world.open("arm", labels={"arch": "arm64"})
    await world.at.judge_schedulable(fail=False)
    assert (await world.jobs(made[""]))["arm"] == ("queued", "")
    assert await world.queued() == [made["arm"]]


async def test_where_the_fleet_cannot_grow_an_unschedulable_job_fails_at_once(world: World) -> None:
    """Embedded: the one agent is there, and it cannot; but before it is there nothing is decided."""
    made = await world.run(J("arm", labels=(("arch", "arm64"),)), J("after", 1))
    await world.at.judge_schedulable(fail=True)
    assert await world.state(made[""], "arm") == "queued"
    await world.open("x86", labels={"arch": "x86"})
    await world.at.judge_schedulable(fail=True)
    assert await world.state(made[""], "arm") == "failed"
    assert await world.state(made[""]) == "failed"
    assert await world.queued() == []


async def test_a_paused_pool_is_said_on_the_job_and_fails_nothing(world: World) -> None:
    """Somebody paused it on purpose."""
    made = await world.run(J("a"))
    await world.open()
    await world.pause("default", paused=True)
    await world.at.judge_schedulable(fail=True)
    assert (await world.jobs(made[""]))["a"] == (
        "queued",
        "pool `default` is paused: `headrace pools resume default`",
    )


async def test_a_job_whose_agents_are_drained_says_so_with_the_mend_and_fails_nothing(world: World) -> None:
    """An agent that is there and free, and a job that waits without a word, is a riddle to who did not drain it."""
    made = await world.run(J("a"))
    await world.open("one")
    await world.open("far", pool="other")
    await world.drain("one", drained=True)
    await world.at.judge_schedulable(fail=True)
    sentence = "the agent that fits is draining: `headrace drain one --undo`"
    assert (await world.jobs(made[""]))["a"] == ("queued", sentence)
    await world.age(7200)
    await world.at.mend(3600)
    assert await world.queued() == [made["a"]], "who drained it may have gone home"
    await world.drain("one", drained=False)
    await world.at.judge_schedulable(fail=True)
    assert (await world.jobs(made[""]))["a"] == ("queued", "")


async def test_a_job_whose_agents_leave_says_so_and_fails_only_when_it_has_waited_too_long(world: World) -> None:
    """An agent that is restarted takes it soon."""
    made = await world.run(J("a"))
    opened = await world.open("one")
    await world.open("two")
    await world.at.leaving(opened.agent_id, "")
    await world.at.judge_schedulable(fail=True)
    assert (await world.jobs(made[""]))["a"] == ("queued", "")
    await world.open("two", leaving=True)
    await world.at.judge_schedulable(fail=True)
    assert (await world.jobs(made[""]))["a"] == ("queued", "the agents that fit are leaving: `one`, `two`")


async def test_a_deployment_lost_after_its_long_lease_can_be_retried_at_once(world: World) -> None:
    """It has stopped by itself by then: nobody waits for the same ten minutes twice."""
    made, job, session = await permitted(world)
    await world.expire(session)
    await world.age(600)
    await world.at.expire_orphans([job.attempt_id], await world.term())  # type: ignore[attr-defined]
    await world.retry(made[""], "ship")
    assert await world.state(made[""], "ship") == "queued"


async def test_a_job_that_an_agent_can_take_or_whose_pool_is_paused_waits_as_long_as_it_must(world: World) -> None:
    """The timeout is for what nobody can ever take, not for the end of a long queue."""
    made = await world.run(J("a"))
    opened = await world.open()
    await world.age(7200)
    await world.at.mend(3600)
    assert await world.queued() == [made["a"]]
    await world.pause("default", paused=True)
    await world.at.close_session(opened.session_id)
    await world.at.mend(3600)
    assert await world.queued() == [made["a"]]
