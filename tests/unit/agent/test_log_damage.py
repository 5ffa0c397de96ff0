"""What the forwarder sends of a log of which something is damaged, or gone, on the agent's disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.forwarder import LogSource
from agent.supervisor.damage import Damage, Stand
from agent.supervisor.records import Kind, decode
from agent.supervisor.segments import segments
from agent.supervisor.spool import Spool
from headrace.v1 import log_pb2


def rot(folder: Path, *numbers: int) -> None:
    """A byte in each of these records of a spool of one segment is not what was written."""
    segment = segments(folder)[0]
    data, at, number, spoiled = bytearray(segment.path.read_bytes()), 0, 0, list[int]()
    while (found := decode(bytes(data), at, segment.seed)) is not None:
        number += 1
        if number in numbers:
            spoiled.append((at + found[1]) // 2)
        at = found[1]
    for each in spoiled:
        data[each] ^= 1
    segment.path.write_bytes(bytes(data))


def test_damage_is_told_once_however_often_it_is_read(tmp_path: Path) -> None:
    """It is counted, and a reconnect reads it again."""
    spool = Spool(tmp_path)
    for _ in range(3):
        spool.append(Kind.FRAME, b"." * 30, time_ms=5, section=1, raw_length=100)
    spool.close()
    rot(tmp_path, 2)
    told: list[tuple[int, Damage]] = []
    source = LogSource(1, b"token", tmp_path, lambda: None, lambda attempt, damage: told.append((attempt, damage)))
    source.finish(3, 300)
    for _ in range(3):
        source.rewind()
        taken = source.take(source.read())
        assert [(record.sequence, record.frame.ours) for record in taken] == [(1, False), (2, True), (3, False)]
    assert told == [(1, Damage(2, 2, 100))]


class TestDamageOnBothSidesOfWhatIsStored:
    """The lengths of several damaged records are known together only; the coordinator knows where one of them ends."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> LogSource:
        """The end of a section's head, then a frame of 79 bytes: both are damaged once the head is stored."""
        spool = Spool(tmp_path)
        spool.append(Kind.OPENED, b'{"kind": "step", "title": "x", "step": 0}', time_ms=5, section=1)
        spool.append(Kind.FRAME, b".", time_ms=5, section=1, raw_length=79)
        spool.append(Kind.CLOSED, b'{"result": ""}', time_ms=5, section=1)
        spool.close()
        return LogSource(1, b"token", tmp_path, lambda: None, lambda *_: None)

    def test_it_is_dealt_where_the_stored_records_end(self, source: LogSource) -> None:
        source.grown(1)
        assert source.batch(source.read()) is not None
        source.stored(log_pb2.Durable(attempt_id=1, sequence=1, offset=0))
        rot(source.folder, 1, 2)
        source.rewind()
        source.grown(3)
        assert [(each.sequence, each.offset) for each in source.take(source.read())] == [(2, 0), (3, 79)]

    def test_who_does_not_know_where_they_end_asks(self, source: LogSource) -> None:
        """As after a restart of the agent."""
        rot(source.folder, 1, 2)
        source.grown(3)
        source.is_due = False
        question = source.batch(source.read())
        assert question is not None
        assert (len(question.records), question.token, question.HasField("final")) == (0, b"token", False)
        assert source.is_unheard
        source.stored(log_pb2.Durable(attempt_id=1, sequence=1, offset=0))
        assert source.is_due
        batch = source.batch(source.read())
        assert batch is not None
        assert [(each.sequence, each.offset) for each in batch.records] == [(2, 0), (3, 79)]

    def test_who_has_missed_an_answer_asks_too(self, source: LogSource) -> None:
        source.grown(1)
        assert source.batch(source.read()) is not None
        source.stored(log_pb2.Durable(attempt_id=1, sequence=1, offset=0))
        source.grown(2)
        assert source.batch(source.read()) is not None
        rot(source.folder, 1, 2)
        source.rewind()
        source.grown(3)
        question = source.batch(source.read())
        assert question is not None
        assert not question.records
        source.stored(log_pb2.Durable(attempt_id=1, sequence=2, offset=79))
        batch = source.batch(source.read())
        assert batch is not None
        assert [(each.sequence, each.offset) for each in batch.records] == [(3, 79)]


class TestAfterARestart:
    """What was acknowledged to an earlier agent is not on this disk any more."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> LogSource:
        """Four records were acknowledged, and nothing came behind them."""
        spool = Spool(tmp_path)
        for _ in range(4):
            spool.append(Kind.FRAME, b".", time_ms=5, section=1, raw_length=22)
        spool.sync()
        spool.skip_to(Stand(5, 88))  # begins a file of its own
        spool.ack(5)
        spool.close()
        for each in segments(tmp_path)[:-1]:
            each.path.unlink()
        source = LogSource(1, b"token", tmp_path, lambda: None, lambda *_: None)
        source.finish(4, 88)
        return source

    def test_a_log_that_is_stored_whole_is_done(self, source: LogSource) -> None:
        question = source.batch(source.read())
        assert question is not None
        assert not question.records
        assert not source.done.is_set()
        source.stored(log_pb2.Durable(attempt_id=1, sequence=4, offset=88))
        assert source.done.is_set()

    @pytest.mark.parametrize("stored", [1, 0])
    def test_what_a_failover_took_back_is_said_to_miss(self, source: LogSource, stored: int) -> None:
        assert source.batch(source.read()) is not None
        source.stored(log_pb2.Durable(attempt_id=1, sequence=stored, offset=22 * stored))
        batch = source.batch(source.read())
        assert batch is not None
        assert [each.sequence for each in batch.records] == list(range(stored + 1, 5))
        assert all(each.frame.ours for each in batch.records)
        assert sum(each.frame.raw_length for each in batch.records) == 22 * (4 - stored)
        source.stored(log_pb2.Durable(attempt_id=1, sequence=4, offset=88))
        assert source.done.is_set()


def test_a_log_whose_files_are_gone_has_its_length_all_the_same(tmp_path: Path) -> None:
    """The outcome has named it: who waits for the log would wait for ever."""
    spool = Spool(tmp_path)
    for _ in range(3):
        spool.append(Kind.FRAME, b".", time_ms=5, section=1, raw_length=100)
    spool.close()
    for each in segments(tmp_path):
        each.path.unlink()
    source = LogSource(1, b"token", tmp_path, lambda: None, lambda *_: None)
    source.finish(3, 300)
    taken = source.take(source.read())
    assert [record.sequence for record in taken] == [1, 2, 3]
    assert sum(record.frame.raw_length for record in taken) == 300
