"""Matrices that become known while a run goes on, on both stores: their cells come once, whatever else happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from coordinator.api.expansions import Expansions, ExpansionStore
from coordinator.api.extensions import Extensions
from coordinator.api.run_messages import run_message
from coordinator.api.run_service import _changes
from coordinator.core.states import AttemptState
from coordinator.dispatch.bells import LocalBells
from coordinator.dispatch.port import Claimed, Wake
from coordinator.errors import StoreDown
from coordinator.store.expanding import DueMatrix
from coordinator.store.new_rows import NewCells, NewFragment
from coordinator.store.views import Views
from headrace.pipeline.fragments import Expanded
from headrace.v1 import agent_pb2
from tests.integration.store.world import PostgresWorld, World

FILE = """
stages:
  - name: build
    jobs:
      list: {steps: [{id: l, run: x}], outputs: {all: "${{ steps.l.outputs.all }}"}}
      gen: {steps: [{run: g}]}
  - name: test
    jobs:
      unit: {needs: [list], matrix: {part: "${{ json(needs.list.outputs.all) }}"}, steps: [{run: x}]}
      report: {needs: [unit], steps: [{run: x}]}
  - name: last
    jobs: {end: {steps: [{run: x}]}}
"""


class Between:
    """A store that something happens before: what a replica has planned is older than it when it is written."""

    def __init__(self, store: ExpansionStore, happens: Callable[[], Awaitable[object]]) -> None:
        self._store = store
        self._happens: Callable[[], Awaitable[object]] | None = happens

    async def due(self) -> Sequence[int]:
        return await self._store.due()

    async def matrix(self, job_id: int) -> DueMatrix | None:
        return await self._store.matrix(job_id)

    async def allocate(self, jobs: int) -> Sequence[int]:
        return await self._store.allocate(jobs)

    async def expand(self, run_id: int, new: NewCells) -> None:
        happens, self._happens = self._happens, None
        if happens is not None:
            await happens()
        await self._store.expand(run_id, new)


async def begun(world: World, text: str = FILE) -> tuple[int, dict[str, Claimed]]:
    """A run whose first jobs are running: its id, and their claims by key."""
    made = await world.pipeline(text)
    session = (await world.open(slots=99)).session_id
    claimed = await world.claim(session, 9)
    for each in claimed:
        await world.start(each)
    keys = {job_id: key for key, job_id in made.items()}
    return made[""], {keys[each.job_id]: each for each in claimed}


async def listed(world: World, claimed: Claimed, *values: object) -> None:
    """`list` ends with these values."""
    await world.end(claimed, outputs=json.dumps({"all": json.dumps(values)}))


async def again(world: World, run_id: int, before: Claimed, *values: object) -> None:
    """`list` is retried, and ends with these values."""
    await world.retry(run_id, "list")
    (found,) = [job for job in await world.claim(before.session_id, 9, number=100) if job.job_id == before.job_id]
    await world.start(found)
    await listed(world, found, *values)


async def states(world: World, run_id: int) -> dict[str, str]:
    return {key: state for key, (state, _) in (await world.jobs(run_id)).items()}


def beside(world: World, happens: Callable[[], Awaitable[object]]) -> Expansions:
    return Expansions(Between(world.expanding, happens), LocalBells(), run_url="")


async def test_cells_come_when_their_values_are_known_and_all_that_follows_waits_for_them(world: World) -> None:
    """Counters of followers, of the stage and of the run are those of a file that had the cells from the beginning."""
    run_id, claimed = await begun(world)
    assert await world.expand() == 0
    await listed(world, claimed["list"], "a", 2)
    assert (await world.jobs(run_id))["unit"] == ("waiting", "its matrix is being worked out")
    assert await world.expand() == 1
    assert await world.expand() == 0
    found = await states(world, run_id)
    assert found == {
        "list": "passed", "gen": "running", "unit": "passed", "report": "waiting", "end": "waiting",
        "unit[part=a]": "queued", "unit[part=2]": "queued",
    }  # fmt: skip
    await world.end(claimed["gen"])
    assert await world.work(claimed["gen"].session_id) == ["unit[part=a]", "unit[part=2]", "report", "end"]
    assert await world.state(run_id) == "passed"
    assert not any((await world.standing()).values())


async def test_a_retry_with_other_values_keeps_adds_and_cancels(world: World) -> None:
    """None of the cells that were there goes on before it is known which of them still are."""
    run_id, claimed = await begun(world)
    session = claimed["list"].session_id
    await world.end(claimed["gen"])
    await listed(world, claimed["list"], "a", "b")
    await world.expand()
    await world.work(session)
    await again(world, run_id, claimed["list"], "b", "c")
    assert await world.queued() == [], "the expander alone lets cells go"
    await world.expand()
    assert await world.work(session) == ["unit[part=b]", "unit[part=c]", "report", "end"]
    found = await world.jobs(run_id)
    assert found["unit[part=a]"] == ("canceled", "`unit` was expanded anew, and has this cell no more")
    assert await world.state(run_id) == "passed"
    await again(world, run_id, claimed["list"], "a")
    await world.expand()
    assert await world.work(session) == ["unit[part=a]", "report", "end"]
    assert await world.state(run_id) == "passed"
    assert not any((await world.standing()).values())


async def test_an_empty_matrix_and_one_that_is_none(world: World) -> None:
    """A skip with its reason, a failure with its place; and a retry out of both."""
    run_id, claimed = await begun(world)
    session = claimed["list"].session_id
    await world.end(claimed["gen"])
    await listed(world, claimed["list"])
    await world.expand()
    assert await world.work(session) == ["report", "end"]
    assert (await world.jobs(run_id))["unit"][0] == "skipped"
    await again(world, run_id, claimed["list"], {"a": 1})
    await world.expand()
    state, sentence = (await world.jobs(run_id))["unit"]
    assert (state, await world.state(run_id)) == ("failed", "failed")
    assert sentence.startswith("headrace.yml:9:48: `json(needs.list.outputs.all)` cannot be computed")
    await again(world, run_id, claimed["list"], "a")
    await world.expand()
    assert await world.work(session) == ["unit[part=a]", "report", "end"]
    assert await world.state(run_id) == "passed"


async def test_what_a_step_adds_later_is_planned_with_the_cells(world: World) -> None:
    """A need of the matrix means all its cells, also for a job that comes after them."""
    run_id, claimed = await begun(world)
    await listed(world, claimed["list"], "a", "b")
    await world.expand()
    answer = await world.extend(claimed["gen"], "{stage: test, jobs: {more: {needs: [unit], steps: [{run: x}]}}}")
    assert (answer.added, list(answer.problems)) == (1, [])
    await world.end(claimed["gen"])
    order = await world.work(claimed["gen"].session_id, **{"unit[part=b]": AttemptState.FAILED})
    assert order == ["unit[part=a]", "unit[part=b]"]
    assert (await states(world, run_id))["more"] == "skipped"


async def test_a_step_may_add_a_job_with_such_a_matrix(world: World) -> None:
    """It runs where its parent may, and what the file has behind it waits for its cells."""
    run_id, claimed = await begun(
        world, "stages: [{name: s, jobs: {gen: {steps: [{run: g}]}}}, {name: last, jobs: {end: {steps: [{run: x}]}}}]"
    )
    text = (
        'stages: [{name: added, jobs: {make: {steps: [{id: m, run: x}], outputs: {all: "${{ steps.m.outputs.all }}"}},'
        ' cell: {needs: [make], matrix: {n: "${{ json(needs.make.outputs.all) }}", max_parallel: 1},'
        " steps: [{run: x}]}}}]"
    )
    answer = await world.extend(claimed["gen"], text)
    assert (answer.added, list(answer.problems)) == (2, [])
    await world.end(claimed["gen"])
    (make,) = await world.claim(claimed["gen"].session_id, 9, number=50)
    await world.start(make)
    await listed(world, make, 1, 2)
    assert await world.expand() == 1
    assert await world.work(make.session_id) == ["cell[n=1]", "cell[n=2]", "end"]
    assert await world.state(run_id) == "passed"


async def test_a_cancel_between_planning_and_writing_leaves_no_cells(world: World) -> None:
    """What would begin after a cancel is what the person did not want."""
    run_id, claimed = await begun(world)
    await world.end(claimed["gen"])
    await listed(world, claimed["list"], "a")
    await beside(world, lambda: world.cancel(run_id)).once()
    assert (await states(world, run_id))["unit"] == "canceled"
    assert "unit[part=a]" not in await states(world, run_id)
    assert await world.state(run_id) == "canceled"


async def test_a_retry_between_planning_and_writing_makes_what_was_planned_void(world: World) -> None:
    """The values are those of the newest attempt, or of none."""
    run_id, claimed = await begun(world)
    await listed(world, claimed["list"], "old")
    await beside(world, lambda: again(world, run_id, claimed["list"], "new")).once()
    found = await states(world, run_id)
    assert (found.get("unit[part=old]"), found["unit[part=new]"]) == (None, "queued")


async def test_what_a_step_adds_between_planning_and_writing_is_planned_with(world: World) -> None:
    """A job that was added meanwhile waits for the cells too."""
    run_id, claimed = await begun(world)
    await listed(world, claimed["list"], "a")
    text = "{stage: test, jobs: {more: {needs: [unit], steps: [{run: x}]}}}"
    await beside(world, lambda: world.extend(claimed["gen"], text)).once()
    assert (await states(world, run_id))["more"] == "waiting"
    await world.end(claimed["gen"])
    assert sorted(await world.work(claimed["gen"].session_id)) == ["end", "more", "report", "unit[part=a]"]


async def test_cells_that_come_between_planning_and_writing_of_what_a_step_adds(world: World) -> None:
    """The other way round: the fragment was planned without them, and is planned again."""
    run_id, claimed = await begun(world)
    await listed(world, claimed["list"], "a")
    growing = world.growing
    happened = []

    class Slow:
        basis = staticmethod(growing.basis)
        allocate = staticmethod(growing.allocate)

        @staticmethod
        async def extend(run: int, attempt_id: int, token: bytes, new: NewFragment) -> None:
            if not happened:
                happened.append(await world.expand())
            await growing.extend(run, attempt_id, token, new)

    gen = claimed["gen"]
    text = b"{stage: test, jobs: {more: {needs: [unit], steps: [{run: x}]}}}"
    request = agent_pb2.ExtendRequest(attempt_id=gen.attempt_id, token=gen.token, text=text)
    assert (await Extensions(Slow(), run_url="").extend(request)).added == 1
    (cell,) = await world.claim(gen.session_id, 9, number=50)
    assert (await states(world, run_id))["more"] == "waiting"
    await world.start(cell)
    await world.end(cell)
    assert (await states(world, run_id))["more"] == "queued"


async def test_a_replica_that_dies_before_it_writes_leaves_it_to_another(world: World) -> None:
    """It stays due: nothing but the cells themselves takes it away."""
    run_id, claimed = await begun(world)
    await listed(world, claimed["list"], "a")

    async def dies() -> None:
        raise StoreDown("the machine is gone")

    with suppress(StoreDown):
        await beside(world, dies).once()
    assert (await states(world, run_id))["unit"] == "waiting"
    assert await world.expand() == 1
    assert (await states(world, run_id))["unit[part=a]"] == "queued"


async def test_two_replicas_at_once_make_the_cells_once(world: World) -> None:
    """Whoever comes second sees that it is done, whatever it has planned."""
    run_id, claimed = await begun(world)
    await listed(world, claimed["list"], "a", "b")
    await beside(world, world.expand).once()
    assert [key for key in await states(world, run_id) if "[" in key] == ["unit[part=a]", "unit[part=b]"]


async def test_replicas_that_race_make_the_cells_once_each_time(postgres: PostgresWorld) -> None:
    """The same with nothing to order them, over and over; a bell is rung for whoever is to work them out."""
    world = postgres
    for _ in range(15):
        run_id, claimed = await begun(world)
        await listed(world, claimed["list"], *range(20))
        assert world.bells.wakes[-1].expansions
        await asyncio.gather(*(world.expand() for _ in range(4)))
        assert sum("[" in key for key in await states(world, run_id)) == 20
        await world.end(claimed["gen"])
        assert len(await world.work(claimed["gen"].session_id)) == 22
        assert await world.state(run_id) == "passed"
    assert await world.fetch("SELECT * FROM expansion_due") == []
    assert not any((await world.standing()).values())


async def test_a_matrix_of_a_pool_that_there_is_not_fails_its_job(postgres: PostgresWorld) -> None:
    """What the store refuses is said of the job, and the run goes on without it."""
    world = postgres
    text = FILE.replace(
        "steps: [{run: x}]}\n      report", 'pool: "p-${{ matrix.os }}", steps: [{run: x}]}\n      report'
    )
    run_id, claimed = await begun(world, text.replace("matrix: {part", "matrix: {os: [x], part"))
    await listed(world, claimed["list"], "a")
    await world.expand()
    state, sentence = (await world.jobs(run_id))["unit"]
    assert (state, sentence[:26]) == ("failed", "pool `p-x` does not exist:")


async def test_a_defect_of_the_planner_ends_the_job_and_not_the_coordinator(world: World) -> None:
    """It would be met again at each start, by every replica."""
    run_id, claimed = await begun(world)
    await listed(world, claimed["list"], "a")

    async def broken(plan: object, due: DueMatrix) -> Expanded:
        raise ZeroDivisionError

    await Expansions(world.expanding, LocalBells(), run_url="", aside=broken).once()
    assert (await world.jobs(run_id))["unit"] == (
        "failed", "the coordinator failed while it worked out the matrix: its log says how",
    )  # fmt: skip
    assert (await states(world, run_id))["report"] == "skipped"


async def test_a_bell_wakes_whoever_works_matrices_out_and_an_outage_does_not_end_it(world: World) -> None:
    """The poll is for bells that are lost: nobody is to wait for it."""
    run_id, claimed = await begun(world)
    await listed(world, claimed["list"], "a")
    bells, looked = LocalBells(), asyncio.Event()

    async def down() -> None:
        looked.set()
        raise StoreDown("the database restarts")

    loop = asyncio.create_task(Expansions(Between(world.expanding, down), bells, run_url="").run())
    await looked.wait()
    async with asyncio.timeout(1.5):  # less than the poll
        while "unit[part=a]" not in await states(world, run_id):
            bells.ring(Wake(expansions=True))
            await asyncio.sleep(0)
    loop.cancel()


async def test_watchers_see_cells_in_place_of_the_job_that_stood_for_them(postgres: PostgresWorld) -> None:
    """It is counted as no job of its own; whoever has shown it is told to show it no more."""
    world = postgres
    run_id, claimed = await begun(world)
    views = Views(world.database, world.bells)
    before = run_message(await views.run(run_id))
    assert [job.key for job in before.jobs] == ["list", "gen", "unit", "report", "end"]
    await listed(world, claimed["list"], "a", "b")
    await world.expand()
    changes = _changes(await views.run_since(run_id, before.sequence), before.sequence)
    seen = {change.job.key: change.job for change in changes if change.HasField("job")}
    assert [key for key, job in seen.items() if job.expanded] == ["unit"]
    after = {job.key: job for job in run_message(await views.run(run_id)).jobs}
    assert list(after) == ["list", "gen", "unit[part=a]", "unit[part=b]", "report", "end"], "where it stood"
    assert list(after["report"].needs) == ["unit[part=a]", "unit[part=b]"]
    assert list(after["unit[part=a]"].needs) == ["list"]
    assert (after["end"].waits_for_stages, after["unit[part=a]"].waits_for_stages) == (True, False)
