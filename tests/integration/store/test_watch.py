"""Watching a run: whoever is cut off anywhere and goes on behind the last number misses nothing."""

from __future__ import annotations

import asyncio
import random

import pytest

from coordinator.api.run_service import _changes
from coordinator.core.states import AttemptState
from coordinator.store.views import Views
from headrace.v1 import run_pb2
from tests.integration.store.world import J, PostgresWorld


class Watcher:
    """A client: what it knows of a run, by what it was sent."""

    def __init__(self, views: Views, run_id: int, rng: random.Random) -> None:
        self.views, self.run_id, self.rng = views, run_id, rng
        self.after = 0
        self.jobs: dict[str, int] = {}
        self.run = run_pb2.Run()

    async def watch(self) -> None:
        """One look, of which only the beginning arrives: then the connection is cut."""
        changes = _changes(await self.views.run_since(self.run_id, self.after), self.after)
        for change in changes[: self.rng.randint(0, len(changes))]:
            self.take(change)

    def take(self, change: run_pb2.RunChange) -> None:
        assert change.sequence >= self.after, "numbers only grow"
        self.after = change.sequence
        match change.WhichOneof("what"):
            case "snapshot":
                self.run = change.snapshot
                self.jobs = {job.key: job.state for job in change.snapshot.jobs}
            case "job":
                self.jobs[change.job.key] = change.job.state
            case "run":
                self.run = change.run

    async def knows_all(self) -> bool:
        for change in _changes(await self.views.run_since(self.run_id, self.after), self.after):
            self.take(change)
        (truth,) = _changes(await self.views.run_since(self.run_id, 0), 0)
        snapshot = truth.snapshot
        return self.jobs == {job.key: job.state for job in snapshot.jobs} and self.run.state == snapshot.state


async def go(world: PostgresWorld, made: dict[str, int], rng: random.Random) -> None:
    """The run's own course."""
    session = (await world.open(slots=9)).session_id
    number = 1
    while await world.state(made[""]) in ("pending", "running"):
        for job in await world.claim(session, 3, number=number):
            number += 1
            await world.start(job)
            await world.end(job, rng.choice([AttemptState.PASSED] * 3 + [AttemptState.ERRORED, AttemptState.FAILED]))


@pytest.mark.parametrize("seed", range(8))
async def test_a_watcher_that_is_cut_off_anywhere_misses_nothing(postgres: PostgresWorld, seed: int) -> None:
    """Also when a change commits between the statements of one look."""
    rng = random.Random(seed)
    made = await postgres.run(*(J(f"j{n}", stage=n // 4) for n in range(12)))
    views = Views(postgres.database, postgres.bells)
    watchers = [Watcher(views, made[""], random.Random(seed * 10 + n)) for n in range(3)]
    running = asyncio.create_task(go(postgres, made, rng))
    while not running.done():
        for watcher in watchers:
            await watcher.watch()
    await running
    for watcher in watchers:
        assert await watcher.knows_all()


async def test_a_look_is_of_one_moment(postgres: PostgresWorld) -> None:
    """Jobs newer than the run that they come with would be numbered past a change of the run that nobody sends."""
    world = postgres
    made = await world.run(*(J(f"j{n}") for n in range(3)))
    jobs = await world.claim((await world.open()).session_id, 3)
    views = Views(world.database, world.bells)
    for job in jobs:
        await world.start(job)

    async def look() -> list[tuple[int, int]]:
        found = []
        for _ in range(60):
            view = await views.run_since(made[""], 0)
            found.append((view.run["sequence"], max(job["sequence"] for job in view.jobs)))
        return found

    async def change() -> None:
        for number in range(60):
            await world.at.judge_schedulable(fail=False)
            await world.fetch(
                "WITH r AS (UPDATE run SET sequence = sequence + 1 WHERE id = $1 RETURNING sequence)"
                " UPDATE job SET sequence = r.sequence FROM r WHERE run_id = $1 AND place = $2",
                made[""],
                number % 3,
            )

    looks, _ = await asyncio.gather(look(), change())
    assert all(newest <= sequence for sequence, newest in looks)
