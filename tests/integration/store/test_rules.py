"""What a pipeline's rules make of its runs, on both stores: conditions, cells, retries, approvals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from coordinator.core.stages import Decision
from coordinator.core.states import AttemptState, Cause
from coordinator.errors import Conflict
from tests.integration.store.world import World, ended

FAILED, LOST = AttemptState.FAILED, AttemptState.LOST


def yes(person: str = "ana") -> Decision:
    return Decision(person, approved=True)


async def states(world: World, made: dict[str, int]) -> dict[str, str]:
    return {key: state for key, (state, _) in (await world.jobs(made[""])).items()}


async def test_conditions_see_how_dependencies_ended_and_what_they_said(world: World) -> None:
    """The values come from the rows of the jobs that are needed, in the very transaction that decides."""
    made = await world.pipeline("""
stages:
  - name: s
    jobs:
      look: {outputs: {what: x}, steps: [{run: look}]}
      docs: {needs: [look], if: "needs.look.outputs.what == 'docs'", steps: [{run: d}]}
      code: {needs: [look], if: "needs.look.outputs.what == 'code' && branch == 'main'", steps: [{run: c}]}
      mend: {needs: [look], if: failure(), steps: [{run: m}]}
""")
    session = (await world.open(slots=9)).session_id
    (look,) = await world.claim(session)
    await world.start(look)
    await world.at.report([replace(ended(look), outputs=json.dumps({"what": "code"}))])
    assert await world.work(session) == ["code"]
    assert await states(world, made) == {"look": "passed", "docs": "skipped", "code": "passed", "mend": "skipped"}
    assert "needs.look.outputs.what = 'code'" in (await world.jobs(made[""]))["docs"][1]
    assert await world.state(made[""]) == "passed"


async def test_an_agent_is_given_the_needs_that_it_evaluates(world: World) -> None:
    """As they were when the job was queued; a later try sees the same."""
    await world.pipeline("""
stages:
  - name: s
    jobs:
      a: {outputs: {v: x}, steps: [{run: a}]}
      b: {needs: [a], env: {V: "${{ needs.a.outputs.v }}"}, steps: [{run: b}]}
""")
    session = (await world.open(slots=9)).session_id
    (a,) = await world.claim(session)
    await world.start(a)
    await world.at.report([replace(ended(a), outputs=json.dumps({"v": [1, "two"]}))])
    (b,) = await world.claim(session, number=2)
    assert json.loads(b.needs) == {"a": {"outcome": "passed", "outputs": {"v": [1, "two"]}}}
    assert a.needs == b""


async def test_cells_run_as_many_at_a_time_as_they_may(world: World) -> None:
    """A place that a cell leaves goes to the next one, whatever became of it."""
    made = await world.pipeline("""
stages: [{name: s, jobs: {unit: {matrix: {n: [1, 2, 3, 4, 5], max_parallel: 2}, steps: [{run: x}]}}}]
""")
    session = (await world.open(slots=9)).session_id
    seen = []
    while claimed := await world.claim(session, 9, number=len(seen) + 1):
        seen.append(len(claimed))
        for job in claimed:
            await world.start(job)
        for job in claimed:
            await world.end(job, FAILED)
    assert seen == [2, 2, 1]
    assert await world.state(made[""]) == "failed"
    await world.retry(made[""])
    assert len(await world.claim(session, 9, number=20)) == 2


async def test_the_first_failed_cell_ends_the_others_wherever_they_are(world: World) -> None:
    """One that an agent works on is canceled by its agent, one that is queued or held at once."""
    made = await world.pipeline("""
stages: [{name: s, jobs: {u: {matrix: {n: [1, 2, 3, 4], max_parallel: 3, fail_fast: true}, steps: [{run: x}]}}}]
""")
    session = (await world.open(slots=2)).session_id
    one, two = await world.claim(session, 2)
    await world.start(one)
    await world.start(two)
    await world.end(one, FAILED)
    found = await states(world, made)
    assert [found[f"u[n={n}]"] for n in (1, 2, 3, 4)] == ["failed", "running", "canceled", "canceled"]
    (order,) = await world.at.cancels([session])
    assert (order.attempt_id, order.kill, "`u[n=1]` failed" in order.sentence) == (two.attempt_id, False, True)
    await world.end(two, AttemptState.CANCELED)
    assert await world.state(made[""]) == "failed"


async def test_a_rule_tries_again_after_a_pause_that_grows(world: World) -> None:
    """The pause is a time of the database: it is over for whichever replica looks."""
    made = await world.pipeline("""
stages: [{name: s, jobs: {u: {retry: {max: 2, on: ["exit:75"], delay: 10s, backoff: 3}, steps: [{run: x}]}}}]
""")
    session = (await world.open()).session_id
    for number, pause in ((1, 10), (2, 30)):
        (job,) = await world.claim(session, number=number)
        await world.start(job)
        await world.at.report([replace(ended(job, FAILED), exit_code=75)])
        state, sentence = (await world.jobs(made[""]))["u"]
        assert (state, f"`exit:75`, {number} of 2" in sentence) == ("waiting", True)
        await world.age(pause - 5)
        await world.at.release_due()
        assert await world.queued() == []
        await world.age(5)
        await world.at.release_due()
        assert await world.queued() == [made["u"]]
    (job,) = await world.claim(session, number=3)
    await world.start(job)
    await world.at.report([replace(ended(job, FAILED), exit_code=75)])
    assert await world.state(made[""]) == "failed"


APPROVED = """
stages:
  - name: build
    jobs: {wheel: {outputs: {v: x}, steps: [{run: x}]}}
  - name: release
    if: "branch == 'main' && success()"
    approval: {message: "Ship ${{ outputs.wheel.v }}?", count: 2, timeout: 1h}
    jobs: {ship: {steps: [{run: x}]}, early: {needs: [], steps: [{run: x}]}}
"""


async def test_a_stage_waits_for_as_many_people_as_it_says(world: World) -> None:
    """One person counts once; `needs` replaces the wait for jobs, not the approval of the stage."""
    made = await world.pipeline(APPROVED)
    session = (await world.open(slots=9)).session_id
    (wheel,) = await world.claim(session, 9)
    await world.start(wheel)
    await world.at.report([replace(ended(wheel), outputs='{"v": "1.2"}')])
    found = await world.jobs(made[""])
    assert found["ship"] == ("blocked", "waits for 2 approvals: Ship 1.2?")
    assert await world.state(made[""]) == "blocked"
    await world.runs.decide(world.request(), made[""], "", yes("ana"))
    with pytest.raises(Conflict, match="ana has decided"):
        await world.runs.decide(world.request(), made[""], "release", yes("ana"))
    assert await world.queued() == []
    await world.runs.decide(world.request(), made[""], "release", yes("bob"))
    assert sorted(await world.work(session)) == ["early", "ship"]
    assert await world.state(made[""]) == "passed"
    with pytest.raises(Conflict, match="waits for no approval"):
        await world.runs.decide(world.request(), made[""], "", yes("eve"))


async def test_the_same_decision_handed_in_again_counts_once(world: World) -> None:
    """Its answer may have been lost."""
    made = await world.pipeline(APPROVED)
    await world.work((await world.open(slots=9)).session_id)
    for _ in range(2):
        await world.runs.decide("the-same-request", made[""], "", yes("ana"))
    assert await world.state(made[""]) == "blocked"


async def test_an_approval_out_of_time_cancels_its_stage_and_a_retry_asks_again(world: World) -> None:
    """What was approved, or not, before something ran again was about something else."""
    made = await world.pipeline(APPROVED)
    session = (await world.open(slots=9)).session_id
    await world.work(session)
    await world.age(3601)
    await world.at.release_due()
    assert (await states(world, made))["ship"] == "canceled"
    assert await world.state(made[""]) == "canceled"
    await world.retry(made[""], "ship")
    assert (await states(world, made))["ship"] == "blocked"
    await world.runs.decide(world.request(), made[""], "", Decision("ana", approved=False, comment="no"))
    assert (await world.jobs(made[""]))["ship"] == ("canceled", "rejected by ana: no")


async def test_what_runs_although_its_run_is_canceled_is_not_ended_by_the_cancel(world: World) -> None:
    """`always()` and `canceled()` clean up; the second cancel ends them too."""
    text = """
stages:
  - {name: a, jobs: {x: {steps: [{run: x}]}}}
  - {name: b, jobs: {clean: {if: always(), steps: [{run: x}]}, ship: {steps: [{run: x}]}}}
"""
    session = (await world.open(slots=9)).session_id
    for again in (False, True):
        made = await world.pipeline(text)
        (x,) = await world.claim(session, 9, number=next(world.numbers))
        await world.start(x)
        await world.cancel(made[""])
        assert await states(world, made) == {"x": "running", "clean": "waiting", "ship": "canceled"}
        if again:
            await world.cancel(made[""])
        await world.end(x, AttemptState.CANCELED)
        assert await world.work(session) == ([] if again else ["clean"])
        assert await world.state(made[""]) == "canceled"
        assert (await states(world, made))["clean"] == ("canceled" if again else "passed")


async def test_an_expression_that_cannot_be_computed_fails_its_job_with_its_place(world: World) -> None:
    """Not the coordinator, and not in silence."""
    made = await world.pipeline("""
stages:
  - name: s
    jobs:
      a: {outputs: {n: x}, steps: [{run: a}]}
      b: {needs: [a], if: "int(needs.a.outputs.n) > 1", steps: [{run: b}]}
""")
    await world.work((await world.open()).session_id)
    state, sentence = (await world.jobs(made[""]))["b"]
    assert state == "failed"
    assert "headrace.yml:6:28: " in sentence
    assert Cause.EXPRESSION_FAILED
