"""Tailing: from any offset, live, the same bytes for everybody, to the end."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest

from coordinator.store import logs
from coordinator.store.logs import LogFinal
from headrace.v1 import log_pb2
from tests.integration.logs.world import Stream, World, inflated, make_attempt, make_job, make_run, read


async def a_stream(world: World) -> tuple[int, Stream]:
    run = await make_run(world)
    return run, Stream(await make_attempt(world, await make_job(world, run)))


async def close(world: World, stream: Stream, records: int | None = None) -> None:
    """What the transaction does that records an outcome."""
    async with world.database.transaction() as db:
        count = len(stream.records) if records is None else records
        await logs.close_logs(db, [LogFinal(stream.attempt, {stream.stream: count})])


async def test_a_reader_is_woken_by_each_append_and_told_of_the_end(world: World) -> None:
    """Nobody polls a log that is being watched."""
    run, stream = await a_stream(world)
    call = world.tail(run)
    reading = asyncio.create_task(read(call))
    for n in range(5):
        stream.write(b"line %d\n" % n)
        await world.append(stream.batch(n + 1))
    await close(world, stream)
    world.bells.ring(runs=[run])
    seen = await reading
    assert seen.records == stream.records
    assert (seen.attempt, seen.attempt_try) == (stream.attempt, 1)
    assert seen.end == log_pb2.TailEnd(offset=len(stream.raw), complete=True)


@pytest.mark.parametrize("early", [True, False])
async def test_a_log_is_sealed_when_outcome_and_last_record_are_both_there_in_either_order(
    world: World, *, early: bool
) -> None:
    """The outcome travels on another connection: it may overtake the log, and the log must not be cut."""
    run, stream = await a_stream(world)
    stream.write(b"one\n").write(b"two\n")
    await world.append(stream.batch(1, 1))
    if early:
        await close(world, stream)
        assert not (await read(world.tail(run, follow=False))).complete
    await world.append(stream.batch(2))
    if not early:
        await close(world, stream)
    assert (await read(world.tail(run))).raw == b"one\ntwo\n"
    stream.write(b"too late\n")
    answer = (await world.append(stream.batch(3)))[0]
    assert (answer.rejected, answer.sequence) == (True, 2)
    again = (await world.append(stream.batch(1, 2)))[0]
    assert (again.rejected, again.sequence) == (False, 2)


async def test_an_outcome_that_names_fewer_records_than_there_are_seals_what_is_there(world: World) -> None:
    """What was acknowledged is never taken back, whatever an agent says later."""
    run, stream = await a_stream(world)
    stream.write(b"one\n").write(b"two\n")
    await world.append(stream.batch())
    await close(world, stream, 1)
    seen = await read(world.tail(run))
    assert (seen.raw, seen.complete) == (b"one\ntwo\n", True)


async def test_any_offset_gives_the_bytes_from_there_and_the_sections_they_lie_in(world: World) -> None:
    """A reader that reconnects, or looks at the end alone, must know to which step the bytes belong."""
    run, stream = await a_stream(world)
    stream.open("first").write(b"a" * 10).close().open("second").write(b"b" * 10).write(b"c" * 10).close()
    await world.append(stream.batch())
    for offset in range(32):
        seen = await read(world.tail(run, follow=False, offset=offset))
        frames = [each for each in seen.records if each.HasField("frame")]
        begin = frames[0].offset if frames else 30
        assert begin <= max(offset, 0) or offset >= 30
        assert seen.raw[max(offset - begin, 0) :] == stream.raw[offset:]
        opened = {each.opened.section for each in seen.records if each.HasField("opened")}
        assert {frame.frame.section for frame in frames} <= opened
        sequences = [each.sequence for each in seen.records]
        assert sequences == sorted(set(sequences))
        if offset == 15:
            assert opened == {2}
            assert len(frames) == 2


async def test_a_tail_of_a_job_that_has_not_begun_waits_for_its_first_attempt(world: World) -> None:
    """`logs -f` right after a run was made is what people type."""
    run = await make_run(world)
    job = await make_job(world, run)
    assert (await read(world.tail(run, follow=False))).end == log_pb2.TailEnd()
    await make_attempt(world, job, state="returned", token=b"r" * 16)
    reading = asyncio.create_task(read(world.tail(run)))
    stream = Stream(await make_attempt(world, job)).write(b"one\n")
    world.bells.ring(runs=[run])
    await world.append(stream.batch())
    await close(world, stream)
    assert (await reading).raw == b"one\n"


async def test_each_try_has_its_own_log_and_the_newest_is_shown(world: World) -> None:
    """A retry must not be spliced into the log of the first try."""
    run = await make_run(world)
    job = await make_job(world, run)
    for number in (1, 2):
        stream = Stream(await make_attempt(world, job, state="failed", attempt_try=number, token=bytes([number]) * 16))
        stream.token = bytes([number]) * 16
        await world.append(stream.write(b"try %d\n" % number).batch())
        await close(world, stream)
    assert (await read(world.tail(run))).raw == b"try 2\n"
    request = log_pb2.TailRequest(run_id=run, job="build", follow=True)
    setattr(request, "try", 1)
    first = await read(world.logs.Tail(request))
    assert (first.raw, first.attempt_try) == (b"try 1\n", 1)


@pytest.mark.parametrize("more", [{"job": "other"}, {"run_id": 1 << 40}, {"try": 7}, {"job": "a\0b"}])
async def test_what_does_not_exist_is_not_found(world: World, more: dict[str, object]) -> None:
    """One sentence, and no endless wait."""
    run, _ = await a_stream(world)
    request = log_pb2.TailRequest(**({"run_id": run, "job": "build", "follow": True} | more))  # type: ignore[arg-type]  # as a mapping
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await read(world.logs.Tail(request))
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_bad_request_names_its_field(world: World) -> None:
    """Clients print `google.rpc` details."""
    run, _ = await a_stream(world)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await read(world.tail(run, offset=-1))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert b"offset" in dict(failure.value.trailing_metadata())["grpc-status-details-bin"]


async def test_a_replica_that_hears_no_bell_shows_the_same_log(world: World) -> None:
    """Bells only save time: the slow poll finds what another replica wrote."""
    run, stream = await a_stream(world)
    async with world.replica as other:
        reading = asyncio.create_task(read(other.tail(run)))
        for n in range(3):
            stream.write(b"line %d\n" % n)
            await world.append(stream.batch(n + 1))
        await close(world, stream)
        assert (await reading).records == stream.records


async def test_a_log_of_many_pages_arrives_whole(world: World) -> None:
    """A page is bounded in bytes and in records; a log is not."""
    run, stream = await a_stream(world)
    for n in range(1_500):
        stream.write(b"%d\n" % n)
    noise = random.Random(1)
    for _ in range(40):
        stream.write(noise.randbytes(60_000))
    for first in range(1, len(stream.records) + 1, 500):
        await world.append(stream.batch(first, first + 499))
    await close(world, stream)
    call = world.tail(run)
    assert (await read(call)).raw == stream.raw


async def test_a_lost_attempt_may_hand_in_its_spool_for_an_hour(world: World) -> None:
    """Its token is good for this alone; then the log is sealed as it is, and readers are told so."""
    run = await make_run(world)
    stream = Stream(await make_attempt(world, await make_job(world, run), state="lost")).write(b"one\n").write(b"two\n")
    async with world.database.transaction() as db:
        await logs.lost_logs(db, [stream.attempt])
    assert not (await world.append(stream.batch(1, 1)))[0].rejected
    assert not (await read(world.tail(run, follow=False))).complete
    async with world.database.connection() as db:
        assert await logs.seal_forsaken(db, await a_term(world)) == []
    await world.value("UPDATE attempt SET ended_at = ended_at - interval '61 minutes'")
    async with world.database.connection() as db:
        assert await logs.seal_forsaken(db, "00000000-0000-0000-0000-000000000000") == []
        assert await logs.seal_forsaken(db, await a_term(world)) == [stream.attempt]
    assert (await read(world.tail(run))).raw == b"one\n"
    assert (await world.append(stream.batch(2)))[0].rejected


async def test_a_lost_attempts_log_ends_when_its_agent_has_no_more_of_it(world: World) -> None:
    """Whoever follows it is let go then, and not an hour later. Only all of it is all of it; its agent alone knows."""
    run = await make_run(world)
    stream = Stream(await make_attempt(world, await make_job(world, run), state="lost")).write(b"one\n").write(b"two\n")
    async with world.database.transaction() as db:
        await logs.lost_logs(db, [stream.attempt])
    reading = asyncio.create_task(read(world.tail(run)))
    early = stream.batch(1, 1)
    early.final = 2
    (answer,) = await world.append(early)
    assert (answer.rejected, answer.sequence) == (False, 1)
    stranger = log_pb2.RecordBatch(attempt_id=stream.attempt, token=b"x" * 16, stream="main", final=1)
    assert (await world.append(stranger))[0].rejected
    assert not (await read(world.tail(run, follow=False))).complete
    await world.append(stream.batch(2))
    word = log_pb2.RecordBatch(attempt_id=stream.attempt, token=early.token, stream="main", final=2)
    for _ in range(2):
        (answer,) = await world.append(word)
        assert (answer.rejected, answer.sequence) == (False, 2)
    whole = await reading
    assert (whole.raw, whole.complete) == (stream.raw, True)


async def test_a_living_attempts_log_is_not_ended_by_a_last_word(world: World) -> None:
    """Its outcome will name its length: an agent that gave it up may have been wrong."""
    run, stream = await a_stream(world)
    stream.write(b"one\n")
    batch = stream.batch(1)
    batch.final = 1
    await world.append(batch)
    assert not (await read(world.tail(run, follow=False))).complete


async def a_term(world: World) -> str:
    await world.value(
        "INSERT INTO singleton (name, term, replica) VALUES ('compactor', gen_random_uuid(), gen_random_uuid())"
        " ON CONFLICT DO NOTHING"
    )
    return str(await world.value("SELECT term FROM singleton WHERE name = 'compactor'"))


async def test_a_stream_that_never_was_ends_with_its_attempt(world: World) -> None:
    """A service that printed nothing has a log: an empty one."""
    run = await make_run(world)
    await make_attempt(world, await make_job(world, run), state="passed")
    seen = await read(world.tail(run, stream="database"))
    assert seen.end == log_pb2.TailEnd(offset=0, complete=True)


async def test_a_reader_that_stands_still_holds_nothing_up_and_misses_nothing(world: World) -> None:
    """A terminal that is scrolled up must not stop the job, another reader, or fill the coordinator's memory."""
    run, stream = await a_stream(world)
    slow = aiter(world.tail(run))
    noise = random.Random(1)
    for _ in range(200):
        stream.write(noise.randbytes(60_000))
    await world.append(*(stream.batch(first, first + 19) for first in range(1, len(stream.records) + 1, 20)))
    first = await anext(slow)
    await close(world, stream)
    assert (await read(world.tail(run))).raw == stream.raw
    assert inflated(first.record) + (await read(slow)).raw == stream.raw
