"""What the forwarder takes from one attempt's spool for one message."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from agent.forwarder import MESSAGE_RECORDS, SHARE, SHARE_RECORDS, Forwarder, LogSource
from agent.supervisor.client import SupervisorClient
from agent.supervisor.damage import Damage
from agent.supervisor.records import Kind
from agent.supervisor.spool import Spool
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

    async def write(self, request: log_pb2.AppendRequest) -> None:
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


async def test_a_frozen_supervisor_holds_up_no_other_log(tmp_path: Path) -> None:
    """It answers no acknowledgement: whoever waited for it would take nothing in for anybody."""
    ours, its = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    client = SupervisorClient(tmp_path, reader, writer, 1)
    forwarder = a_forwarder()
    frozen, other = (forwarder.follow(attempt, b"token", tmp_path / str(attempt)) for attempt in (1, 2))
    frozen.client = client
    other.finish(7, 7)

    async def responses() -> Any:
        for attempt in (1, 2):
            yield log_pb2.AppendResponse(durable=[log_pb2.Durable(attempt_id=attempt, sequence=7)])
        await asyncio.Event().wait()

    receiving = asyncio.create_task(forwarder._receive(cast("Any", responses())))
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
