"""Appending: durable once, in order, whatever comes twice, late or out of order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg
import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.logs.bounds import MESSAGE_MOST
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


async def test_records_sent_again_behind_those_of_a_cut_connection_are_stored_at_once(world: World) -> None:
    """The old connection's records may still wait to be written: the new connection begins before them, and its
    answer must not ask for what it has sent already."""
    run, stream = await a_stream(world)
    for n in range(6):
        stream.write(b"line %d\n" % n)
    await world.append(stream.batch(1, 2))
    sent = [(4, 4), (5, 5), (2, 4), (3, 6)]  # without a wait in between: one group
    answers = [await world.writer.submit([stream.batch(*each)]) for each in sent]
    assert [(await each)[0].sequence for each in answers] == [6, 6, 6, 6]
    assert (await read(world.tail(run, follow=False))).records == stream.records


async def test_a_log_that_begins_while_its_outcome_is_recorded_is_stored(world: World) -> None:
    """Logs come on a connection of their own: the outcome may make the log's row before its first record does, and
    an answer that asks for that record again would find an agent that has sent it."""
    run, stream = await a_stream(world)
    stream.write(b"one\n").write(b"two\n")
    async with world.database.transaction() as outcome:
        await outcome.execute(
            "INSERT INTO log (attempt_id, stream, final_records) VALUES ($1, 'main', 2)", stream.attempt
        )
        appending = asyncio.create_task(world.append(stream.batch()))
        while not await world.fetch("SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"):
            assert not appending.done()
    answers = await appending
    assert [(each.sequence, each.rejected) for each in answers] == [(2, False)]
    seen = await read(world.tail(run, follow=False))
    assert seen.raw == stream.raw
    assert seen.complete


@pytest.mark.parametrize("token", [b"", b"x" * 16, b"x" * 17])
async def test_another_token_writes_nothing(world: World, token: bytes) -> None:
    """The token is the proof of the lease: whoever has another is late or a stranger."""
    run, stream = await a_stream(world)
    stream.write(b"one\n")
    answer = (await world.append(stream.batch(token=token)))[0]
    assert answer.rejected
    assert "token" in answer.sentence
    assert (await read(world.tail(run, follow=False))).records == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: setattr(record.frame, "raw_length", 65_537),
        lambda record: setattr(record.frame, "raw_length", 3),
        lambda record: setattr(record.frame, "zstd", record.frame.zstd + b"x"),
        lambda record: setattr(record.frame, "zstd", record.frame.zstd[:-1]),
        lambda record: setattr(record.frame, "zstd", b"not zstd at all"),
        lambda record: setattr(record.frame, "section", 1_001),
        lambda record: record.opened.MergeFrom(log_pb2.SectionOpened(section=1, kind="fun")),
        lambda record: record.opened.MergeFrom(log_pb2.SectionOpened(section=1, kind="step", title="x" * 1_001)),
        lambda record: record.ClearField("what"),
    ],
)
async def test_a_record_out_of_bounds_is_refused_with_a_sentence_and_hurts_nobody_else(
    world: World, spoil: Callable[[log_pb2.Record], None]
) -> None:
    """A broken agent must not be able to make a log that nobody can read, nor to stop the logs of others."""
    run, stream = await a_stream(world)
    _, other = await a_stream(world)
    stream.write(b"some text\n")
    other.write(b"theirs\n")
    spoil(stream.records[0])
    call = world.logs.Append(iter([log_pb2.AppendRequest(batches=[stream.batch(), other.batch()])]))
    (response,) = [each async for each in call]
    assert [each.rejected for each in response.durable] == [True, False]
    assert response.durable[0].sentence
    assert response.durable[1].sequence == 1
    assert (await read(world.tail(run, follow=False))).records == []


async def test_a_last_word_about_no_stream_is_refused_with_a_sentence_and_hurts_nobody_else(world: World) -> None:
    """A name that PostgreSQL takes for no text would end the writer, and with it the logs of all."""
    run, stream = await a_stream(world)
    stream.write(b"one\n")
    bad = log_pb2.RecordBatch(attempt_id=stream.attempt, token=stream.batch().token, stream="a\0", final=0)
    refused, stored = await world.append(bad, stream.batch())
    assert (refused.rejected, bool(refused.sentence), stored.sequence) == (True, True, 1)
    stream.write(b"two\n")
    assert (await world.append(stream.batch(2)))[0].sequence == 2, "it still writes"
    assert (await read(world.tail(run, follow=False))).raw == stream.raw


async def test_a_record_whose_offset_does_not_fit_is_refused(world: World) -> None:
    """Otherwise bytes would be missing, or stand twice, and nobody would see it."""
    _, stream = await a_stream(world)
    stream.write(b"one\n").write(b"two\n")
    await world.append(stream.batch(1, 1))
    stream.records[1].offset = 5
    answer = (await world.append(stream.batch(2)))[0]
    assert (answer.sequence, answer.rejected) == (1, True)


async def test_an_empty_batch_asks_how_far_the_log_is(world: World) -> None:
    """After a reconnect the agent need not guess what was acknowledged."""
    _, stream = await a_stream(world)
    assert [each.sequence for each in await world.append(stream.batch(2, 1))] == [0]
    stream.write(b"one\n")
    await world.append(stream.batch())
    (answer,) = await world.append(log_pb2.RecordBatch(attempt_id=stream.attempt, token=stream.token, stream="main"))
    assert (answer.sequence, answer.offset, answer.rejected) == (1, 4, False)


async def test_streams_of_one_attempt_do_not_touch_each_other(world: World) -> None:
    """Each service has its own offsets."""
    run, stream = await a_stream(world)
    database = Stream(stream.attempt, stream="database").write(b"ready\n")
    stream.write(b"one\n")
    await world.append(stream.batch(), database.batch())
    assert (await read(world.tail(run, follow=False, stream="database"))).raw == b"ready\n"
    assert (await read(world.tail(run, follow=False))).raw == b"one\n"


async def test_many_streams_that_send_at_once_are_all_stored(world: World) -> None:
    """They are committed together; each is answered for itself."""
    run = await make_run(world)
    streams = [Stream(await make_attempt(world, await make_job(world, run, f"job{n}"))) for n in range(20)]
    for n, stream in enumerate(streams):
        for line in range(30):
            stream.write(b"%d %d\n" % (n, line))
    answers = await asyncio.gather(*(world.append(*(s.batch(i, i + 4) for i in range(1, 31, 5))) for s in streams))
    assert [each[-1].sequence for each in answers] == [30] * 20
    for n, stream in enumerate(streams):
        assert (await read(world.tail(run, f"job{n}", follow=False))).raw == stream.raw


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6), st.booleans()), max_size=6))
async def test_an_append_cut_anywhere_and_resumed_loses_and_doubles_nothing(
    world: World, cuts: list[tuple[int, int, bool]]
) -> None:
    """The agent knows only what it was told is durable; whatever was cut off, it goes on from there."""
    run, stream = await a_stream(world)
    for n in range(12):
        stream.open() if n % 5 == 0 else stream.write(b"line %d\n" % n)
    durable = 0
    for size, answers, back in [*cuts, (12, 1_000, False)]:
        first = 1 if back else durable + 1
        batches = [stream.batch(n, n + size - 1) for n in range(first, 13, size)]
        call = world.logs.Append(log_pb2.AppendRequest(batches=[each]) for each in batches)
        seen = 0
        async for response in call:
            durable = max(durable, response.durable[0].sequence)
            seen += 1
            if seen >= answers:
                break
        call.cancel()
    assert durable == 12
    assert (await read(world.tail(run, follow=False))).records == stream.records


async def test_a_database_that_goes_away_costs_a_reconnect_and_no_byte(world: World) -> None:
    """The stream ends with UNAVAILABLE; what was acknowledged is there, the rest is sent again."""
    run, stream = await a_stream(world)
    for n in range(50):
        stream.write(b"line %d\n" % n)
    assert (await world.append(stream.batch(1, 20)))[0].sequence == 20
    admin = await asyncpg.connect(world.dsn)
    try:
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    finally:
        await admin.close()
    durable, codes = 20, list[grpc.StatusCode]()
    while durable < 50 and len(codes) < 20:
        try:
            durable = (await world.append(stream.batch(durable + 1)))[-1].sequence
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
    assert set(codes) <= {grpc.StatusCode.UNAVAILABLE}
    assert (await read(world.tail(run, follow=False))).records == stream.records


async def test_a_message_of_more_records_than_it_may_have_is_refused_before_any_is_judged(world: World) -> None:
    """Sixteen megabytes of the smallest records kept every heartbeat of the replica waiting for twelve seconds."""
    _, stream = await a_stream(world)
    records = [log_pb2.Record(sequence=n, offset=0) for n in range(1, MESSAGE_MOST + 1)]
    batch = log_pb2.RecordBatch(attempt_id=stream.attempt, token=stream.token, stream="main", records=records)
    assert [each.rejected for each in await world.append(batch)] == [True], "judged: they are neither frame nor section"
    batch.records.add(sequence=1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await world.append(batch)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
