"""Runs that grow, on both stores: what a step adds takes its place among what was there, once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from coordinator.core.stages import Decision
from coordinator.core.states import AttemptState
from coordinator.dispatch.port import Claimed
from coordinator.errors import StaleToken
from tests.integration.store.world import PostgresWorld, World

FILE = """
stages:
  - name: make
    jobs: {gen: {steps: [{run: g}, {run: h}], artifacts: [{name: dist, paths: [d]}]}}
  - name: last
    jobs: {end: {steps: [{run: e}]}}
"""
BOTH = """
stages:
  - {name: s, jobs: {one: {steps: [{run: x}]}, two: {steps: [{run: x}]}}}
  - {name: last, jobs: {end: {steps: [{run: e}]}}}
"""
FAILS = """
stages:
  - {name: before, jobs: {wrong: {steps: [{run: x}]}}}
  - {name: make, jobs: {gen: {if: always(), steps: [{run: g}]}}}
  - {name: last, jobs: {mend: {if: failure(), steps: [{run: m}]}}}
"""
TWO = "stages: [{name: more, jobs: {a: {steps: [{use: artifact/dist}]}, b: {needs: [a], steps: [{run: x}]}}}]"


async def all_begun(world: World, text: str) -> tuple[dict[str, int], dict[str, Claimed]]:
    """A run all of whose first jobs are running: ids by key, and the claims by key."""
    made = await world.pipeline(text)
    session = (await world.open(slots=9)).session_id
    claimed = await world.claim(session, 9)
    for job in claimed:
        await world.start(job)
    keys = {job_id: key for key, job_id in made.items()}
    return made, {keys[job.job_id]: job for job in claimed}


async def began(world: World) -> tuple[dict[str, int], Claimed]:
    """A run of which `gen` is running."""
    made, claimed = await all_begun(world, FILE)
    return made, claimed["gen"]


async def states(world: World, made: dict[str, int]) -> dict[str, str]:
    return {key: state for key, (state, _) in (await world.jobs(made[""])).items()}


async def order(world: World, job: Claimed) -> list[str]:
    """Ends the job, and lets agents work: the keys in the order in which they began."""
    await world.end(job)
    return await world.work(job.session_id)


async def test_a_stage_that_a_step_adds_runs_between_its_own_and_the_next(world: World) -> None:
    """What the file has behind it waits for it, as if it had stood there from the beginning."""
    made, gen = await began(world)
    answer = await world.extend(gen, TWO)
    assert (answer.added, answer.existed, list(answer.problems)) == (2, False, [])
    assert await states(world, made) == {"gen": "running", "end": "waiting", "a": "waiting", "b": "waiting"}
    assert await order(world, gen) == ["a", "b", "end"]
    assert await world.state(made[""]) == "passed"
    assert not any((await world.standing()).values())


async def test_the_same_bytes_again_add_nothing_and_other_bytes_are_refused(world: World) -> None:
    """An agent that was killed asks again, and so does a retry of the job: both have to find what is there."""
    made, gen = await began(world)
    await world.extend(gen, TWO)
    again = await world.extend(gen, TWO)
    assert (again.added, again.existed) == (2, True)
    other = await world.extend(gen, TWO.replace("more", "others"))
    assert "this step has extended the run before, with other text" in other.problems[0]
    assert len(await states(world, made)) == 4
    await order(world, gen)
    await world.retry(made[""], "gen")
    (gen,) = await world.claim(gen.session_id, 9, number=100)
    await world.start(gen)
    assert (await world.extend(gen, TWO)).existed
    assert await order(world, gen) == ["a", "b", "end"]


async def test_what_failed_before_is_still_seen_behind_what_was_added(world: World) -> None:
    """The counters of a stage that grows keep what earlier stages have told it."""
    made, claimed = await all_begun(world, FAILS)
    wrong = claimed["wrong"]
    await world.end(wrong, AttemptState.FAILED)
    (gen,) = await world.claim(wrong.session_id, 9, number=100)
    await world.start(gen)
    assert (await world.extend(gen, "{stage: make, jobs: {a: {if: failure(), steps: [{run: x}]}}}")).added == 1
    assert await order(world, gen) == ["a", "mend"]
    assert await world.state(made[""]) == "failed"


async def test_a_mistake_adds_nothing_of_the_fragment(world: World) -> None:
    """Half of what was meant is worse than nothing."""
    made, gen = await began(world)
    answer = await world.extend(gen, TWO.replace("needs: [a]", "needs: [c]"))
    assert answer.added == 0
    assert answer.problems[0].startswith("$HEADRACE_PIPELINE:1:78: the job `b` needs `c`, which does not exist")
    assert list(await states(world, made)) == ["gen", "end"]
    assert (await world.extend(gen, TWO)).added == 2, "what was refused is not remembered"


async def test_each_step_may_add_and_added_jobs_may_add_up_to_a_depth(world: World) -> None:
    """A generator that starts itself would never end."""
    _, job = await began(world)
    for depth in range(1, 6):
        text = f"stages: [{{name: s{depth}, jobs: {{j{depth}: {{steps: [{{run: x}}]}}}}}}]"
        assert list((await world.extend(job, text)).problems) == []
        await world.end(job)
        (job,) = await world.claim(job.session_id, 9, number=depth + 10)
        await world.start(job)
    answer = await world.extend(job, "stages: [{name: s6, jobs: {j6: {steps: [{run: x}]}}}]")
    assert "this job is 5 additions away from the file" in answer.problems[0]


async def test_an_attempt_that_is_over_adds_nothing(world: World) -> None:
    """A late agent must not let a run grow that another one works on."""
    made, gen = await began(world)
    with pytest.raises(StaleToken):
        await world.extend(replace(gen, token=bytes(16)), TWO)
    await world.end(gen)
    with pytest.raises(StaleToken):
        await world.extend(gen, TWO)
    assert list(await states(world, made)) == ["gen", "end"]


async def test_two_jobs_that_add_at_once_both_get_through(world: World) -> None:
    """Each is planned on what the other has added, whichever comes first."""
    made, begun = await all_begun(world, BOTH)
    one, two = begun["one"], begun["two"]
    texts = [f"stages: [{{name: {name}, jobs: {{j{name}: {{steps: [{{run: x}}]}}}}}}]" for name in ("p", "q")]
    first, second = await asyncio.gather(world.extend(one, texts[0]), world.extend(two, texts[1]))
    assert (first.added, second.added) == (1, 1)
    await world.end(two)
    assert sorted((await order(world, one))[:2]) == ["jp", "jq"]
    assert await world.state(made[""]) == "passed"


async def test_cells_doors_and_conditions_of_added_jobs_hold_as_those_of_the_file(world: World) -> None:
    """Nothing is weaker for having come later."""
    made, gen = await began(world)
    answer = await world.extend(
        gen,
        """
stages:
  - name: cells
    jobs: {unit: {matrix: {n: [1, 2, 3], max_parallel: 1, fail_fast: true}, steps: [{run: x}]}}
  - name: asked
    if: always()
    approval: {message: "go on?"}
    jobs:
      asked: {steps: [{run: x}]}
      never: {if: "branch == 'nowhere'", steps: [{run: x}]}
""",
    )
    assert (answer.added, list(answer.problems)) == (5, [])
    outcomes = {"unit[n=2]": AttemptState.FAILED}
    await world.end(gen)
    assert await world.work(gen.session_id, **outcomes) == ["unit[n=1]", "unit[n=2]"]
    found = await states(world, made)
    assert (found["unit[n=3]"], found["asked"], found["never"]) == ("canceled", "blocked", "skipped")
    await world.runs.decide(world.request(), made[""], "asked", Decision("ana", approved=True))
    assert await world.work(gen.session_id) == ["asked"]
    assert await world.state(made[""]) == "failed"
    assert not any((await world.standing()).values())


async def test_nothing_is_added_to_a_stage_whose_approval_was_given(world: World) -> None:
    """The person has approved the jobs as they were; the refusal stands where the stage is named."""
    made = await world.pipeline(
        "stages: [{name: prod, approval: {}, jobs: {gen: {steps: [{run: x}]}}}, "
        "{name: later, approval: {}, jobs: {end: {steps: [{run: x}]}}}]"
    )
    session = (await world.open(slots=9)).session_id
    await world.runs.decide(world.request(), made[""], "prod", Decision("ana", approved=True))
    (gen,) = await world.claim(session)
    await world.start(gen)
    answer = await world.extend(gen, "stage: prod\njobs: {x: {steps: [{run: x}]}}")
    assert answer.problems[0].startswith("$HEADRACE_PIPELINE:1:8: the approval of the stage `prod` was asked for")
    assert (await world.extend(gen, "stage: later\njobs: {x: {steps: [{run: x}]}}")).added == 1
    await world.end(gen)
    assert await world.work(session) == []
    await world.runs.decide(world.request(), made[""], "later", Decision("ana", approved=True))
    assert sorted(await world.work(session)) == ["end", "x"]


async def test_a_canceled_run_grows_no_more(world: World) -> None:
    """What would begin after a cancel is what the person did not want."""
    made, gen = await began(world)
    await world.cancel(made[""])
    assert "the run is being canceled" in (await world.extend(gen, TWO)).problems[0]
    assert list(await states(world, made)) == ["gen", "end"]


async def test_watchers_see_stages_move_and_jobs_come(postgres: PostgresWorld) -> None:
    """A job is shown by the number of its stage: whoever watches has to be told when that changes."""
    made, gen = await began(postgres)
    (before,) = await postgres.fetch("SELECT sequence, run_sequence FROM run WHERE id = $1", made[""])
    await postgres.extend(gen, TWO)
    changed = await postgres.fetch(
        "SELECT key, stage FROM job WHERE run_id = $1 AND sequence > $2 ORDER BY key", made[""], before["sequence"]
    )
    assert [(row["key"], row["stage"]) for row in changed] == [("a", 1), ("b", 1), ("end", 2)]
    assert await postgres.value("SELECT run_sequence FROM run WHERE id = $1", made[""]) > before["sequence"]
    stages = await postgres.fetch("SELECT index, name FROM stage WHERE run_id = $1 ORDER BY index", made[""])
    assert [(row["index"], row["name"]) for row in stages] == [(0, "make"), (1, "more"), (2, "last")]


async def test_a_step_may_add_before_the_start_of_its_attempt_is_recorded(world: World) -> None:
    """Reports are batched, and a quick step is over in milliseconds: it would be refused for being quick."""
    made = await world.pipeline(FILE)
    session = (await world.open(slots=9)).session_id
    (gen,) = await world.claim(session)
    assert (await world.extend(gen, TWO)).added == 2
    await world.start(gen)
    assert await order(world, gen) == ["a", "b", "end"]
    assert await world.state(made[""]) == "passed"
