"""The last jobs of a stage end at once, each told to another replica: rounds of that on real transactions.

Each replica is a store with connections of its own. Several runs go on in a round, so that reports of other runs are
under way in the same tables; which replica hears of which job, and when, is left to chance.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack

from coordinator.dispatch.port import Claimed, Want
from coordinator.store.database import Database
from coordinator.store.dispatching import PostgresDispatch
from tests.integration.store.world import J, PostgresWorld, ended, started

REPLICAS = 3
TOGETHER = 4
"""Runs in a round."""
JITTER_S = 0.002
JOBS = (J("a"), J("b"), J("c"), J("next", 1), J("named", 1, needs=("a", "b", "c")))


class Stuck(AssertionError):
    """A stage that does not start, with all that is known of it."""


async def play(dsn: str, times: int, seed: int) -> int:
    """So many stages end, at least; returns how many. Raises Stuck. The database is migrated."""
    rng = random.Random(seed)
    async with AsyncExitStack() as up:
        world = await PostgresWorld.opened(dsn, up)
        replicas = []
        for _ in range(REPLICAS):
            database = await up.enter_async_context(Database.open(dsn, size=4))
            store = PostgresDispatch(database, world.bells, lambda: rng.randbytes(16), quarantine_after=0)
            replicas.append(store)
        session = (await world.open(slots=1000)).session_id
        number, done = 1, 0
        while done < times:
            made = [await world.run(*JOBS) for _ in range(TOGETHER)]
            number = await _round(world, replicas, rng, session, number)
            await _judge(world, made, done, seed)
            number = await _finish(world, session, number)
            done += TOGETHER
        standing = await world.standing()
        assert not any(standing.values()), standing
        return done


async def _round(
    world: PostgresWorld, replicas: Sequence[PostgresDispatch], rng: random.Random, session: str, number: int
) -> int:
    """The first stages of all runs begin, and end at once."""
    claimed = await _claimed(world, session, number)
    await world.at.report([started(each) for each in claimed])
    rng.shuffle(claimed)

    async def end(job: Claimed, pause: float) -> None:
        await asyncio.sleep(pause)
        await rng.choice(replicas).report([ended(job)])

    await asyncio.gather(*(end(each, rng.uniform(0, JITTER_S)) for each in claimed))
    return number + len(claimed)


async def _judge(world: PostgresWorld, made: Sequence[dict[str, int]], done: int, seed: int) -> None:
    queued = set(await world.queued())
    for run in made:
        if not {run["next"], run["named"]} <= queued:
            jobs = await world.jobs(run[""])
            raise Stuck(f"seed {seed}, after {done} stages: the next one does not start: {jobs}")


async def _finish(world: PostgresWorld, session: str, number: int) -> int:
    claimed = await _claimed(world, session, number)
    await world.at.report([started(each) for each in claimed])
    await world.at.report([ended(each) for each in claimed])
    return number + len(claimed)


async def _claimed(world: PostgresWorld, session: str, number: int) -> list[Claimed]:
    classes = await world.at.classes()
    return list(await world.at.claim(list(classes), [Want(session, 100, number)]))
