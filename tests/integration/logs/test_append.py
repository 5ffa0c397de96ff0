"""Appending: durable once, in order, whatever comes twice, late or out of order."""

from __future__ import annotations

import pytest

from headrace.v1 import log_pb2
from tests.integration.logs.world import Stream, World, make_attempt, make_job, make_run, read


async def a_stream(world: World) -> tuple[int, Stream]:
    run = await make_run(world)
    return run, Stream(await make_attempt(world, await make_job(world, run)))


async def test_what_is_acknowledged_can_be_read_as_it_came(world: World) -> None:
    """An acknowledgement lets the agent delete its copy: the database must have every byte."""
    run, stream = await a_stream(world)
    stream.open("compile").write(b"one\n").write(b"two\n").close()
    answers = await world.append(stream.batch())
    assert [(each.sequence, each.offset, each.rejected) for each in answers] == [(4, 8, False)]
    seen = await read(world.tail(run, follow=False))
    assert seen.records == stream.records
    assert seen.end == log_pb2.TailEnd(offset=8, complete=False)


async def test_a_repeated_batch_is_acknowledged_again_and_stored_once(world: World) -> None:
    """The answer may be lost on the way: the agent sends again what is stored already."""
    run, stream = await a_stream(world)
    stream.write(b"one\n").write(b"two\n").write(b"three\n")
    for batch, durable in ((stream.batch(1, 2), 2), (stream.batch(1, 2), 2), (stream.batch(2, 3), 3)):
        assert [each.sequence for each in await world.append(batch)] == [durable]
    assert (await read(world.tail(run, follow=False))).records == stream.records


async def test_records_behind_a_gap_are_not_taken_and_the_answer_says_what_is_wanted(world: World) -> None:
    """A gap would be for ever: the agent goes back to the durable sequence instead."""
    run, stream = await a_stream(world)
    stream.write(b"one\n").write(b"two\n").write(b"three\n")
    assert (await world.append(stream.batch(2, 2)))[0].sequence == 0
    assert (await world.append(stream.batch(1, 1)))[0].sequence == 1
    answer = (await world.append(stream.batch(3, 3)))[0]
    assert (answer.sequence, answer.offset, answer.rejected) == (1, 4, False)
    assert (await world.append(stream.batch(2)))[0].sequence == 3
    assert (await read(world.tail(run, follow=False))).raw == stream.raw


@pytest.mark.parametrize("token", [b"", b"x" * 16, b"x" * 17])
async def test_another_token_writes_nothing(world: World, token: bytes) -> None:
    """The token is the proof of the lease: whoever has another is late or a stranger."""
    run, stream = await a_stream(world)
    stream.write(b"one\n")
    answer = (await world.append(stream.batch(token=token)))[0]
    assert answer.rejected
    assert "token" in answer.sentence
    assert (await read(world.tail(run, follow=False))).records == []
