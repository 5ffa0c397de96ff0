"""A log is read from both of two replicas, fast, slowly and from anywhere, while it grows and is compacted."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator

import asyncpg
import grpc.aio
import pytest
import zstandard

from headrace.client import Client
from headrace.client.types import LogBytes, LogEnd
from headrace.v1 import agent_pb2 as pb
from headrace.v1 import agent_pb2_grpc, common_pb2, log_pb2, log_pb2_grpc
from tests.chaos.conftest import Fleet
from tests.chaos.test_overload import assigned
from tests.integration.coordinator.processes import bearer, token

pytestmark = pytest.mark.timeout(180)

FRAME = 64 << 10
FRAMES = 1_280
"""80 MiB: a living log is compacted behind each 32 MiB, all but the newest part."""
IN_FLIGHT = 8
PACE_S = 0.18
"""Between two messages of a MiB: the compactor looks every 5 s."""


def log_of(seed: int) -> bytes:
    """What no compression and no cache makes small."""
    return random.Random(seed).randbytes(FRAME * FRAMES)


def messages(given: pb.Assignment, raw: bytes) -> Iterator[log_pb2.AppendRequest]:
    """A message of a MiB at a time."""
    opened = log_pb2.SectionOpened(section=1, kind="step", title="talks", step=0)
    records = [log_pb2.Record(sequence=1, time_ms=1, opened=opened)]
    for number in range(FRAMES):
        at = number * FRAME
        frame = log_pb2.Frame(raw_length=FRAME, zstd=zstandard.compress(raw[at : at + FRAME], 1), section=1)
        records.append(log_pb2.Record(sequence=number + 2, offset=at, time_ms=1, frame=frame))
        if len(records) >= 16 or number == FRAMES - 1:
            batch = log_pb2.RecordBatch(attempt_id=given.attempt_id, token=given.token, stream="main", records=records)
            yield log_pb2.AppendRequest(batches=[batch])
            records = []


async def read(client: Client, run: int, raw: bytes, *, start: int, pause: float = 0.0) -> None:
    """To the end, each byte compared. `pause`: seconds that the reader takes for a piece."""
    at = start
    async for each in client.tail(run, "j", offset=start):
        if isinstance(each, LogBytes):
            assert each.offset == at, f"a gap, or a byte twice: {at} was next, and {each.offset} came"
            assert each.data == raw[at : at + len(each.data)], f"other bytes at {at}"
            at += len(each.data)
            await asyncio.sleep(pause)
        elif isinstance(each, LogEnd):
            assert each.complete
    assert at == len(raw)


async def browse(client: Client, run: int, raw: bytes, rng: random.Random) -> None:
    """Begins anywhere, reads a little, and begins anew; for ever."""
    while True:
        start = at = rng.randrange(len(raw))
        async with contextlib.aclosing(client.tail(run, "j", offset=start, follow=False)) as tail:
            async for each in tail:
                if isinstance(each, LogBytes):
                    assert each.offset == at, (start, at, each.offset)
                    assert each.data == raw[at : at + len(each.data)], (start, at)
                    at += len(each.data)
                if at - start > rng.choice((1, FRAME, 8 << 20)):
                    break


async def beat(session: grpc.aio.StreamStreamCall, given: pb.Assignment) -> None:
    """The agent lives, and has the attempt."""
    number = 0
    while True:
        number += 1
        said = pb.Heartbeat(sequence=number, highest_assignment=given.number, attempt_ids=[given.attempt_id])
        await session.write(pb.SessionRequest(heartbeat=said))
        await asyncio.sleep(2)


async def append(stub: log_pb2_grpc.LogServiceStub, agents: object, given: pb.Assignment, raw: bytes, dsn: str) -> int:
    """Sends the log, a few messages in flight, at a job's pace; returns how many segments there were then."""
    call = stub.Append(metadata=agents)
    sent, room = 0, asyncio.Semaphore(IN_FLIGHT)

    async def write() -> None:
        for message in messages(given, raw):
            await room.acquire()
            await call.write(message)
            await asyncio.sleep(PACE_S)

    writing = asyncio.ensure_future(write())
    async for answer in call:
        for each in answer.durable:
            assert not each.rejected, each.sentence
            sent = max(sent, each.sequence)
            room.release()
        if sent == FRAMES + 1:
            break
    await writing
    found = await compacted(dsn)
    await call.done_writing()
    return found


async def compacted(dsn: str) -> int:
    """Segments so far."""
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM log_segment"))
    finally:
        await connection.close()


def test_readers_at_both_replicas_see_each_byte_once_while_the_log_is_compacted(
    make_fleet: Callable[[int], Fleet], fresh_database: str
) -> None:
    """Rows become objects and are deleted under the readers' hands, by the one replica or by the other: a reader that
    is slow, or that comes in the middle, must notice nothing of it."""
    fleet = make_fleet(2)
    first, second = fleet.replicas
    raw = log_of(5)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as up:
            clients = [
                await up.enter_async_context(Client(each.facts["address"], token(first, "client")))
                for each in (first, second)
            ]
            agents = bearer(token(first, "agent"))
            channel = await up.enter_async_context(grpc.aio.insecure_channel(first.facts["address"]))
            other = await up.enter_async_context(grpc.aio.insecure_channel(second.facts["address"]))
            session = agent_pb2_grpc.AgentServiceStub(channel).Session(metadata=agents)
            run, given = await assigned(session, clients[0])
            tasks = [asyncio.ensure_future(beat(session, given))]
            readers = [
                asyncio.ensure_future(read(client, run, raw, start=start, pause=pause))
                for client in clients
                for start, pause in ((0, 0.0), (0, 0.012), (20 << 20, 0.006))
            ]
            tasks += [asyncio.ensure_future(browse(each, run, raw, random.Random(n))) for n, each in enumerate(clients)]
            during = await append(log_pb2_grpc.LogServiceStub(other), agents, given, raw, fresh_database)
            assert during > 1, "nothing was compacted while it grew"
            end = pb.Report(
                id="fedcba9876543210",
                attempt_id=given.attempt_id,
                token=given.token,
                ended=pb.Ended(
                    state=common_pb2.ATTEMPT_STATE_PASSED,
                    log_records={"main": FRAMES + 1},
                    log_bytes={"main": len(raw)},
                ),
            )
            await session.write(pb.SessionRequest(reports=pb.Reports(reports=[end])))
            await asyncio.wait_for(asyncio.gather(*readers), 90)
            for each in tasks:
                assert not each.done() or each.exception() is None, each.exception()
                each.cancel()
            for client in clients:
                await read(client, run, raw, start=0)
            async with asyncio.timeout(60):  # the compactor comes by, and tells nobody
                while await compacted(fresh_database) <= during:  # noqa: ASYNC110 - another process does it
                    await asyncio.sleep(0.1)
            session.cancel()

    asyncio.run(main())
