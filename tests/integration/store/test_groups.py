"""Groups of runs and of jobs, on both stores: who waits for whom, who takes whose place."""

from __future__ import annotations

from coordinator.core.stages import Decision
from coordinator.core.states import AttemptState
from coordinator.dispatch.port import Missing
from tests.integration.store.world import World

FAILED = AttemptState.FAILED
GROUP = "concurrency: {group: web, when_full: %s}\nstages: [{name: a, jobs: {x: {steps: [{run: x}]}}}]\n"
DEPLOYS = (GROUP % "cancel-older").replace("name: a", "name: a, environment: p")


async def test_one_run_of_a_group_goes_on_at_a_time_in_the_order_of_coming(world: World) -> None:
    """Of any depth; a run that was canceled while it waited holds nobody up."""
    made = [await world.pipeline(GROUP % "queue") for _ in range(4)]
    session = (await world.open(slots=9)).session_id
    assert await world.queued() == [made[0]["x"]]
    assert "group `web`" in (await world.jobs(made[1][""]))["x"][1]
    await world.cancel(made[1][""])
    assert await world.work(session) == ["x"] * 3
    assert [await world.state(each[""]) for each in made] == ["passed", "canceled", "passed", "passed"]
    await world.retry(made[0][""], "x")
    await world.at.release_due()
    assert await world.work(session) == ["x"]


async def test_a_newer_run_takes_the_place_of_an_older_one_unless_that_deploys(world: World) -> None:
    """Half a deployment is worse than a late one: it finishes first."""
    session = (await world.open(slots=9)).session_id
    older = await world.pipeline(GROUP % "cancel-older")
    (x,) = await world.claim(session)
    await world.start(x)
    newer = await world.pipeline(GROUP % "cancel-older")
    (order,) = await world.at.cancels([session])
    assert f"run {newer['']}" in order.sentence
    assert await world.queued() == []
    await world.end(x, AttemptState.CANCELED)
    await world.at.release_due()
    assert await world.queued() == [newer["x"]]
    await world.work(session)
    assert [await world.state(each[""]) for each in (older, newer)] == ["canceled", "passed"]

    older = await world.pipeline(DEPLOYS)
    (x,) = await world.claim(session, number=50)
    await world.start(x)
    newer = await world.pipeline(DEPLOYS)
    assert list(await world.at.cancels([session])) == []
    await world.end(x)
    await world.at.release_due()
    assert await world.state(older[""]) == "passed"
    assert await world.queued() == [newer["x"]]


async def test_a_newer_run_is_turned_away_where_the_group_says_so(world: World) -> None:
    """What runs is not disturbed, and nothing queues up behind it."""
    first = await world.pipeline(GROUP % "cancel-newer")
    second = await world.pipeline(GROUP % "cancel-newer")
    assert await world.state(second[""]) == "canceled"
    assert f"`run {first['']}` is in its group" in (await world.jobs(second[""]))["x"][1]
    await world.work((await world.open()).session_id)
    assert await world.state(first[""]) == "passed"


async def test_jobs_of_a_group_take_turns_over_all_runs_of_a_project(world: World) -> None:
    """A job enters when it is otherwise ready, and a run of another branch waits for it."""
    text = "stages: [{name: a, jobs: {x: {concurrency: {group: board}, steps: [{run: x}]}, y: {steps: [{run: y}]}}}]\n"
    made = [await world.pipeline(text, branch=branch) for branch in ("main", "dev")]
    session = (await world.open(slots=9)).session_id
    assert sorted(await world.queued()) == sorted([made[0]["x"], made[0]["y"], made[1]["y"]])
    assert sorted(await world.work(session)) == ["x", "x", "y", "y"]
    assert [await world.state(each[""]) for each in made] == ["passed", "passed"]
    assert await world.standing() == dict.fromkeys(await world.standing(), 0)


async def test_jobs_that_are_ready_at_once_enter_their_groups_in_the_order_of_the_file(world: World) -> None:
    """However many become ready with one outcome, they line up as they are written, each in its own group."""
    job = "{concurrency: {group: %s}, steps: [{run: x}]}"
    jobs = ", ".join(f"{key}: {job % group}" for key, group in zip("cabed", ("b", "a", "b", "b", "a"), strict=True))
    await world.pipeline(
        f"stages: [{{name: s, jobs: {{y: {{steps: [{{run: y}}]}}}}}}, {{name: t, jobs: {{{jobs}}}}}]\n"
    )
    begun = await world.work((await world.open(slots=9)).session_id)
    assert [key for key in begun if key in "cbe"] == ["c", "b", "e"]
    assert [key for key in begun if key in "ad"] == ["a", "d"]
    assert await world.standing() == dict.fromkeys(await world.standing(), 0)


async def test_runs_that_are_not_trusted_wait_for_no_trusted_one(world: World) -> None:
    """Whoever may send a pull request must not hold up, or cancel, what the project itself does."""
    trusted = await world.pipeline(GROUP % "cancel-older")
    foreign = await world.pipeline(GROUP % "cancel-older", trusted=False)
    assert sorted(await world.queued()) == sorted([trusted["x"], foreign["x"]])


async def test_a_job_asked_for_again_leaves_the_queue_of_its_group(world: World) -> None:
    """Its turn must not come before that of its need."""
    text = """
stages:
  - name: s
    jobs: {a: {steps: [{run: a}]}, b: {needs: [a], concurrency: {group: g}, steps: [{run: b}]}}
"""
    session = (await world.open(slots=9)).session_id
    first = await world.pipeline(text)
    await world.work(session, but=[first["b"]])
    second = await world.pipeline(text)
    await world.work(session)
    assert await world.state(second[""], "b") == "waiting"
    await world.retry(second[""], "a")
    await world.cancel(first[""])
    await world.cancel(first[""])
    (lease,) = await world.at.cancels([session])
    await world.at.settle_missing([Missing(lease.attempt_id, first[""], session)])
    await world.at.release_due()
    assert await world.queued() == [second["a"]]
    assert await world.work(session) == ["a", "b"]


async def test_a_lost_deployment_enters_its_group_anew_when_a_person_starts_it(world: World) -> None:
    """Its old place must not stand in its way."""
    text = "stages: [{name: p, environment: p, jobs: {d: {concurrency: {group: g}, steps: [{run: d}]}}}]\n"
    made = await world.pipeline(text)
    await world.at.release_due()
    session = (await world.open()).session_id
    (d,) = await world.claim(session)
    await world.start(d)
    await world.expire(session)
    assert await world.state(made[""], "d") == "blocked"
    other = await world.pipeline(text)
    await world.at.release_due()
    assert await world.queued() == []
    await world.retry(made[""], "d")
    await world.at.release_due()
    assert await world.queued() == [other["d"]]
    assert await world.work((await world.open(instance="another")).session_id) == ["d", "d"]


async def test_a_run_canceled_before_its_turn_ends_whole(world: World) -> None:
    """What runs despite a cancel cleans up after what has begun, and nothing has. A newer run must not wait for it."""
    text = (GROUP % "cancel-older").replace("x: {", "x: {if: always(), ").replace("name: a", "name: a, environment: p")
    first = await world.pipeline(text)
    session = (await world.open(slots=9)).session_id
    (x,) = await world.claim(session)
    await world.start(x)
    second, third = await world.pipeline(text), await world.pipeline(text)
    assert await world.state(second[""]) == "canceled"
    await world.end(x)
    await world.at.release_due()
    assert await world.queued() == [third["x"]]
    assert await world.state(first[""]) == "passed"


async def test_a_deployment_between_two_tries_is_let_finish(world: World) -> None:
    """Its pause is no reason to leave it half done."""
    text = DEPLOYS.replace("x: {", "x: {retry: {max: 1, on: [failed], delay: 30s}, ")
    first = await world.pipeline(text)
    session = (await world.open(slots=9)).session_id
    assert await world.work(session, x=FAILED) == ["x"]
    second = await world.pipeline(text)
    assert await world.state(first[""]) == "running"
    await world.age(30)
    await world.at.release_due()
    assert await world.work(session) == ["x", "x"]
    assert [await world.state(each[""]) for each in (first, second)] == ["passed", "passed"]


async def test_what_is_retried_in_a_run_that_waits_waits_with_it(world: World) -> None:
    """A second retry is no way round the group."""
    text = (GROUP % "queue").replace("x: {", "y: {steps: [{run: y}]}, x: {")
    first = await world.pipeline(text)
    session = (await world.open(slots=9)).session_id
    await world.work(session, x=FAILED)
    second = await world.pipeline(text)
    await world.retry(first[""], "x")
    await world.retry(first[""], "y")
    assert sorted(await world.queued()) == sorted([second["x"], second["y"]])
    assert {key: state for key, (state, _) in (await world.jobs(first[""])).items()} == {"y": "waiting", "x": "waiting"}
    assert sorted(await world.work(session)) == ["x", "x", "y", "y"]
    assert await world.state(first[""]) == "passed"


async def test_what_waits_before_a_door_for_its_run_says_so(world: World) -> None:
    """Nobody is asked for a run that may not begin."""
    text = (GROUP % "queue").replace("name: a", "name: a, approval: {}")
    first, second = await world.pipeline(text), await world.pipeline(text)
    assert "group `web`" in (await world.jobs(second[""]))["x"][1]
    await world.runs.decide(world.request(), first[""], "", Decision("ana", approved=True))
    await world.work((await world.open()).session_id)
    assert (await world.jobs(second[""]))["x"] == ("blocked", "waits for an approval")
