"""What is appended to a log, and when a log ends, on both stores."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from coordinator.core.states import AttemptState
from coordinator.dispatch.port import Claimed
from coordinator.store import logs
from coordinator.store.logs import LogStand, NewRecord, RecordRun
from tests.harness import memory_logs
from tests.integration.store.world import J, MemoryWorld, PostgresWorld, World, ended


async def append(world: World, *runs: RecordRun) -> Sequence[LogStand | None]:
    """One group of a replica's writer."""
    if isinstance(world, MemoryWorld):
        return memory_logs.append(world.rows, runs)
    assert isinstance(world, PostgresWorld)
    return await logs.PostgresLogs(world.database).append(runs)


async def hand_in(world: World, word: logs.LastWord) -> Sequence[int]:
    """An agent has no more of a log."""
    if isinstance(world, MemoryWorld):
        return memory_logs.hand_in(world.rows, [word])
    assert isinstance(world, PostgresWorld)
    return await logs.PostgresLogs(world.database).hand_in([word])


async def begun(world: World) -> Claimed:
    """An attempt that runs."""
    await world.run(J(f"unit-{next(world.numbers)}"))
    (job,) = await world.claim((await world.open()).session_id)
    await world.start(job)
    return job


async def end(world: World, job: Claimed, **streams: int) -> None:
    """Its outcome names so many records."""
    assert not (await world.at.report([replace(ended(job), log_records=streams)]))[0].abort


def run(job: Claimed, first: int, count: int, *, offset: int | None = None, stream: str = "main") -> RecordRun:
    """Records of ten bytes each."""
    begin = 10 * (first - 1) if offset is None else offset
    records = [NewRecord(begin + 10 * n, 10, b"%d" % (first + n)) for n in range(count)]
    return RecordRun(job.attempt_id, job.token, stream, first, records)


async def test_a_log_grows_by_what_fits_and_says_what_it_wants(world: World) -> None:
    """Repeated, ahead, astray: an answer always names what is stored."""
    job = await begun(world)
    assert await append(world, run(job, 2, 1)) == [LogStand(1, 0, None, None)]
    assert await append(world, run(job, 1, 1, offset=7)) == [LogStand(1, 0, None, None)]
    assert await append(world, run(job, 1, 2)) == [LogStand(3, 20, None, 20)]
    assert await append(world, run(job, 1, 2)) == [LogStand(3, 20, None, None)]
    assert await append(world, run(job, 4, 1)) == [LogStand(3, 20, None, None)]
    assert await append(world, run(job, 3, 1, offset=21)) == [LogStand(3, 20, None, None)]
    assert await append(world, run(job, 2, 3)) == [LogStand(5, 40, None, 20)]
    assert await append(world, RecordRun(job.attempt_id, job.token, "main", 0, [])) == [LogStand(5, 40, None, None)]


async def test_a_log_is_written_by_its_attempts_token_alone(world: World) -> None:
    """Until it is sealed, also after the attempt is lost; never for one that did not start."""
    job = await begun(world)
    await world.run(J("given-back"))
    (back,) = await world.claim(job.session_id)
    await world.give_up(back)
    stranger = replace(job, token=b"x" * 16)
    assert await append(world, run(stranger, 1, 1), run(back, 1, 1)) == [None, None]
    await world.expire(job.session_id)
    assert await append(world, run(job, 1, 1)) == [LogStand(2, 10, None, 10)]


async def test_a_log_ends_where_its_outcome_says(world: World) -> None:
    """What was not there yet may still come, and no more than that; what was not named ends where it is."""
    job = await begun(world)
    await append(world, run(job, 1, 2), run(job, 1, 1, stream="db"))
    await end(world, job, main=3)
    assert await append(world, run(job, 3, 2)) == [LogStand(3, 20, 3, None)]
    assert await append(world, run(job, 2, 1, stream="db")) == [LogStand(2, 10, 1, None)]
    assert await append(world, run(job, 3, 1)) == [LogStand(4, 30, 3, 10)]
    assert await append(world, run(job, 4, 1)) == [LogStand(4, 30, 3, None)]


async def test_an_outcome_that_names_fewer_records_than_there_are_takes_none_away(world: World) -> None:
    """A log never shrinks."""
    job = await begun(world)
    await append(world, run(job, 1, 3))
    await end(world, job, main=1)
    assert await append(world, run(job, 1, 4)) == [LogStand(4, 30, 3, None)]


async def test_the_last_word_about_a_log_seals_it_when_all_of_it_is_there(world: World) -> None:
    """Of an attempt that is over, by its own token."""
    job = await begun(world)
    await append(world, run(job, 1, 2))
    word = logs.LastWord(job.attempt_id, job.token, "main", 2)
    assert await hand_in(world, word) == []
    await world.expire(job.session_id)
    assert await hand_in(world, replace(word, records=3)) == []
    assert await hand_in(world, replace(word, token=b"x" * 16)) == []
    assert await hand_in(world, word) == [job.attempt_id]
    assert await hand_in(world, word) == []
    assert await append(world, run(job, 3, 1)) == [LogStand(3, 20, 2, None)]


async def test_both_stores_answer_alike_whatever_comes(postgres: PostgresWorld) -> None:
    """The simulation has the one in memory."""
    rng, worlds = random.Random(5), (postgres, MemoryWorld())
    for _ in range(12):
        jobs = [await begun(world) for world in worlds]
        for _ in range(12):
            if rng.random() < 0.08:
                named = {rng.choice(("main", "db", "no stream")): rng.randint(0, 9)}
                answers = [
                    await world.at.report([replace(ended(job, report="e"), log_records=named)])
                    for world, job in zip(worlds, jobs, strict=True)
                ]
                assert answers[0][0].abort == answers[1][0].abort
                continue
            first, count, stream = rng.randint(1, 8), rng.randint(1, 4), rng.choice(("main", "main", "db"))
            offset = rng.choice((None, None, None, 10 * first))
            told = [
                await append(world, run(job, first, count, offset=offset, stream=stream))
                for world, job in zip(worlds, jobs, strict=True)
            ]
            assert told[0] == told[1]
        for world, job in zip(worlds, jobs, strict=True):
            await world.end(job, AttemptState.FAILED)
