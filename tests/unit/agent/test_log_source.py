"""What the forwarder takes from one attempt's spool for one message."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from agent.forwarder import MESSAGE_RECORDS, SHARE, SHARE_RECORDS, Forwarder, LogSource
from agent.supervisor.client import SupervisorClient
from agent.supervisor.damage import Damage
from agent.supervisor.records import Kind
from agent.supervisor.segments import segments
from agent.supervisor.spool import Spool
from agent.wire import LogWire, WireClosed
from coordinator.logs.bounds import MESSAGE_MOST
from headrace.v1 import log_pb2


class Deaf:
    """Nothing is to be heard."""

    def arrived(self, size: int) -> None:
        """Arrives."""

    def damaged(self, attempt: int, damage: Damage) -> None:
        """Is none."""
        pytest.fail(f"{attempt}: {damage}")


def a_forwarder() -> Forwarder:
    """One that reaches nobody."""
    return Forwarder(cast("Any", None), ["unused"], rng=random.Random(1), heard=Deaf())


def test_a_spool_of_very_small_records_is_handed_in_by_messages_that_the_coordinator_takes(tmp_path: Path) -> None:
    """A dot a moment during an outage is thousands of records in few bytes: all arrive, in order, none refused."""
    spool = Spool(tmp_path)
    for _ in range(2 * SHARE_RECORDS + 500):
        spool.append(Kind.FRAME, b".", time_ms=5, section=1, raw_length=1)
    spool.close()
    source = LogSource(1, b"token", tmp_path, lambda: None, pytest.fail)
    source.grown(spool.sequence)
    taken = list(iter(lambda: source.take(source.read()), []))
    assert [len(each) for each in taken] == [SHARE_RECORDS, SHARE_RECORDS, 500]
    assert [record.sequence for each in taken for record in each] == list(range(1, 2 * SHARE_RECORDS + 501))
    assert MESSAGE_RECORDS - 1 + SHARE_RECORDS <= MESSAGE_MOST


class TwoMessages:
    """A stream that takes two messages and then no more."""

    def __init__(self) -> None:
        self.attempts: list[int] = []
        self.full = asyncio.Event()
        self._room = 2

    async def send(self, request: log_pb2.AppendRequest) -> None:
        """Takes one."""
        self.attempts += [batch.attempt_id for batch in request.batches]
        self._room -= 1
        if not self._room:
            self.full.set()
            await asyncio.Event().wait()


async def test_the_last_of_many_chatty_logs_is_sent_as_well(tmp_path: Path) -> None:
    """A message has room for some of them: were it always the same ones, the others would wait for their ends."""
    forwarder = a_forwarder()
    for attempt in range(1, 7):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        spool = Spool(folder)
        for _ in range(4):
            spool.append(Kind.FRAME, b"x" * SHARE, time_ms=5, section=1, raw_length=SHARE)
        spool.close()
        forwarder.follow(attempt, b"token", folder).grown(4)
    call = TwoMessages()
    sending = asyncio.create_task(forwarder._send(cast("Any", call)))
    async with asyncio.timeout(10):
        await call.full.wait()
    sending.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sending
    assert set(call.attempts) == {1, 2, 3, 4, 5, 6}


class Acknowledging:
    """A stream that acknowledges some logs, and then says no more."""

    def __init__(self, *attempts: int, sequence: int) -> None:
        self._answers = [log_pb2.Durable(attempt_id=each, sequence=sequence) for each in attempts]

    async def receive(self) -> log_pb2.AppendResponse:
        """One each."""
        if not self._answers:
            await asyncio.Event().wait()
        return log_pb2.AppendResponse(durable=[self._answers.pop(0)])


async def test_a_frozen_supervisor_holds_up_no_other_log(tmp_path: Path) -> None:
    """It answers no acknowledgement: whoever waited for it would take nothing in for anybody."""
    ours, its = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    client = SupervisorClient(tmp_path, reader, writer, 1)
    forwarder = a_forwarder()
    frozen, other = (forwarder.follow(attempt, b"token", tmp_path / str(attempt)) for attempt in (1, 2))
    frozen.client = client
    other.finish(7, 7)

    receiving = asyncio.create_task(forwarder._receive(cast("Any", Acknowledging(1, 2, sequence=7))))
    try:
        async with asyncio.timeout(3):
            await other.done.wait()
    finally:
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        await client.close()
        its.close()


def test_what_is_ours_is_handed_in_as_ours(tmp_path: Path) -> None:
    """The mark is made in the supervisor, and is worth what it is worth at the reader."""
    spool = Spool(tmp_path)
    for ours in (True, False):
        spool.append(Kind.FRAME, b".", time_ms=5, section=1, raw_length=1, ours=ours)
    spool.close()
    source = LogSource(1, b"token", tmp_path, lambda: None, pytest.fail)
    source.grown(2)
    assert [record.frame.ours for record in source.take(source.read())] == [True, False]


def test_nothing_leaves_the_machine_that_is_not_durable_on_it(tmp_path: Path) -> None:
    """After a power cut its number would be given to another record, and the coordinator would have both."""
    spool = Spool(tmp_path)
    for _ in range(5):
        spool.append(Kind.FRAME, b".", time_ms=5, section=1, raw_length=1)
    source = LogSource(1, b"token", tmp_path, lambda: None, pytest.fail)
    assert source.take(source.read()) == []
    source.grown(3)
    assert [record.sequence for record in source.take(source.read())] == [1, 2, 3]
    assert source.take(source.read()) == []
    source.grown(5)
    assert [record.sequence for record in source.take(source.read())] == [4, 5]
    spool.close()


class TestTheLastWord:
    """Of an attempt whose outcome nobody wants the coordinator learns only so that no more of its log will come."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> LogSource:
        """Three records, all on their way."""
        spool = Spool(tmp_path)
        for _ in range(3):
            spool.append(Kind.FRAME, b".", time_ms=5, section=1, raw_length=1)
        spool.close()
        source = LogSource(1, b"token", tmp_path, lambda: None, pytest.fail)
        source.grown(3)
        batch = source.batch(source.read())
        assert batch is not None
        assert (len(batch.records), batch.HasField("final")) == (3, False)
        return source

    def test_it_is_said_once_all_has_been_sent_and_counts_once_it_is_answered(self, source: LogSource) -> None:
        """The answer to what was sent before it says nothing of it."""
        source.hand_in()
        assert source.batch(source.read()) is None, "the log still grows"
        source.finish(3, 3)
        word = source.batch(source.read())
        assert word is not None
        assert (len(word.records), word.final) == (0, 3)
        source.stored(log_pb2.Durable(attempt_id=1, sequence=3, offset=3))
        assert not source.done.is_set()
        source.stored(log_pb2.Durable(attempt_id=1, sequence=3, offset=3))
        assert source.done.is_set()
        assert source.batch(source.read()) is None, "it was said"

    def test_it_is_said_again_on_the_next_connection(self, source: LogSource) -> None:
        """Nobody knows whether it arrived."""
        source.finish(3, 3)
        source.hand_in()
        assert source.batch(source.read()) is not None
        source.rewind()
        again = source.batch(source.read())
        assert again is not None
        assert (len(again.records), again.final) == (3, 3)
        source.stored(log_pb2.Durable(attempt_id=1, sequence=3, offset=3))
        assert source.done.is_set()

    def test_it_is_said_of_a_log_that_was_complete_long_ago(self, source: LogSource) -> None:
        """The report of its outcome was refused behind it."""
        source.finish(3, 3)
        source.stored(log_pb2.Durable(attempt_id=1, sequence=3, offset=3))
        assert source.done.is_set()
        source.hand_in()
        assert not source.done.is_set()
        word = source.batch(source.read())
        assert word is not None
        assert word.final == 3

    def test_a_log_that_is_not_wanted_either_needs_none(self, source: LogSource) -> None:
        """The number was given to another attempt."""
        source.finish(3, 3)
        source.stored(log_pb2.Durable(attempt_id=1, rejected=True, sentence="no"))
        source.hand_in()
        assert source.done.is_set()


def test_what_a_failover_took_back_is_sent_again(tmp_path: Path) -> None:
    """The coordinator asks for what it once had: as much as is still here, and the length of the rest."""
    spool = Spool(tmp_path, 64 << 10)
    for _ in range(6):
        spool.append(Kind.FRAME, b"." * 6_000, time_ms=5, section=1, raw_length=7_000)
    spool.sync()
    told: list[Damage] = []
    source = LogSource(1, b"token", tmp_path, lambda: None, lambda _, damage: told.append(damage))
    source.grown(6)
    assert [record.sequence for record in source.take(source.read())] == [1, 2, 3, 4, 5, 6]
    source.stored(log_pb2.Durable(attempt_id=1, sequence=5, offset=35_000))
    source.stored(log_pb2.Durable(attempt_id=1, sequence=2, offset=14_000))
    assert source.is_due
    assert [record.sequence for record in source.take(source.read())] == [3, 4, 5, 6]
    spool.ack(3)
    spool.sync()
    gone = segments(tmp_path)[0].first
    assert 3 < gone < 6
    source.stored(log_pb2.Durable(attempt_id=1, sequence=2, offset=14_000))
    source.stored(log_pb2.Durable(attempt_id=1, sequence=1, offset=7_000))
    taken = source.take(source.read())
    assert [record.sequence for record in taken] == [2, 3, 4, 5, 6]
    assert told == [Damage(2, gone - 1, 7_000 * (gone - 2))]
    source.finish(6, 42_000)
    source.stored(log_pb2.Durable(attempt_id=1, sequence=6, offset=42_000))
    assert source.done.is_set()
    spool.close()


class Cut:
    """Dials streams that take one message, tell of it, and are cut before it is answered."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[log_pb2.AppendRequest] = asyncio.Queue()

    async def dial(self, address: str) -> LogWire:
        """Another one."""
        del address
        return OneMessage(self.taken)


class OneMessage:
    """See `Cut`."""

    def __init__(self, taken: asyncio.Queue[log_pb2.AppendRequest]) -> None:
        self._taken = taken
        self._over = asyncio.Event()

    async def send(self, message: log_pb2.AppendRequest) -> None:
        """Takes it."""
        self._taken.put_nowait(message)
        asyncio.get_running_loop().call_later(0.05, self._over.set)  # when the forwarder has nothing more to send

    async def receive(self) -> log_pb2.AppendResponse:
        """Is cut."""
        await self._over.wait()
        raise WireClosed(grpc.StatusCode.UNAVAILABLE, "cut")

    async def close(self) -> None:
        """Is closed."""


async def test_what_was_sent_and_never_acknowledged_is_sent_again_though_nothing_new_comes(tmp_path: Path) -> None:
    """The end of a log was on its way when the connection was cut: nobody would ever have asked for it."""
    spool = Spool(tmp_path)
    spool.append(Kind.FRAME, b".", time_ms=5, section=1, raw_length=1)
    spool.close()
    cut = Cut()
    forwarder = Forwarder(cut, ["unused"], rng=random.Random(1), heard=Deaf())
    forwarder.follow(1, b"token", tmp_path).finish(1, 1)
    running = asyncio.create_task(forwarder.run())
    try:
        async with asyncio.timeout(10):
            for _ in range(3):
                assert [record.sequence for record in (await cut.taken.get()).batches[0].records] == [1]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
