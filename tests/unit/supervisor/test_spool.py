"""The spool over crashes at any byte, full disks and readers that come along."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.clock import SystemClock
from agent.orphan import close_orphaned_log
from agent.supervisor.reading import SpoolGone, SpoolReader
from agent.supervisor.records import OVERHEAD, Kind, Record, decode, encode
from agent.supervisor.segments import segments
from agent.supervisor.spool import Spool, SpoolFull


def put(spool: Spool, payload: bytes = b"x", kind: Kind = Kind.FRAME) -> Record:
    return spool.append(kind, payload, time_ms=5, section=1, raw_length=len(payload) if kind is Kind.FRAME else 0)


def all_of(folder: Path) -> list[Record]:
    reader = SpoolReader(folder)
    return reader.read(reader.first(), 1 << 30)


@given(st.binary(max_size=80), st.integers(0, 2**40), st.sampled_from(Kind))
def test_a_record_comes_back_as_it_was_and_any_flipped_bit_is_seen(payload: bytes, number: int, kind: Kind) -> None:
    """What is read back is what was written, or nothing."""
    record = Record(number, kind, number, number, 3, 4, payload)
    data = encode(record)
    assert decode(data) == (record, len(data))
    for at in range(len(data)):
        torn = bytearray(data)
        torn[at] ^= 1
        assert decode(bytes(torn)) is None


def test_a_crash_at_any_byte_costs_only_the_record_that_was_being_written(tmp_path: Path) -> None:
    """kill -9 and power cuts choose no moment."""
    spool = Spool(tmp_path)
    for payload in (b"one", b"two"):
        put(spool, payload)
    spool.close()
    file = segments(tmp_path)[0].path
    whole = file.read_bytes()
    second = OVERHEAD + 3
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        after = Spool(tmp_path)
        kept = int(cut >= second)
        assert (after.sequence, after.offset) == (kept, 3 * kept)
        put(after, b"new")
        after.close()
        assert [record.payload for record in all_of(tmp_path)] == [b"one"] * kept + [b"new"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 3))))
def test_a_reader_that_comes_along_gets_every_record_once_and_acknowledged_ones_make_room(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, int]]
) -> None:
    """Nothing is lost, nothing doubled, and the disk does not fill up."""
    folder = tmp_path_factory.mktemp("spool")
    spool, reader = Spool(folder, limit=40_000), SpoolReader(folder)
    wanted, seen = 1, []
    for size, reads in moves:
        try:
            put(spool, bytes(size))
        except SpoolFull:
            spool.sync()
            spool.ack(wanted - 1)
        for _ in range(reads):
            for record in reader.read(wanted, 1000):
                seen.append(record.sequence)
                wanted = record.sequence + 1
            spool.ack(wanted - 1)
        assert spool.used <= 40_000
    while records := reader.read(wanted):
        seen += [record.sequence for record in records]
        wanted = seen[-1] + 1
    spool.close()
    assert seen == list(range(1, spool.sequence + 1))


def test_what_is_not_acknowledged_is_never_thrown_away(tmp_path: Path) -> None:
    """Only the coordinator's word frees a record."""
    spool = Spool(tmp_path, limit=100_000)
    for _ in range(100):
        put(spool, bytes(500))
    spool.sync()
    spool.ack(60)
    spool.close()
    assert 1 < all_of(tmp_path)[0].sequence <= 61
    assert all_of(tmp_path)[-1].sequence == 100
    with pytest.raises(SpoolGone, match="record 1 is no longer in the spool"):
        SpoolReader(tmp_path).read(1)


def test_a_full_spool_has_room_for_sections_and_the_outcome(tmp_path: Path) -> None:
    """However much a job prints: how it ended can be told."""
    spool = Spool(tmp_path, limit=10_000)
    while spool.fits(bytes(500)):
        put(spool, bytes(500))
    with pytest.raises(SpoolFull):
        put(spool, bytes(500))
    put(spool, b"{}", Kind.OUTCOME)
    spool.close()


def test_a_write_that_the_disk_cuts_short_leaves_no_torn_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torn record in the middle would hide all that follows."""
    spool = Spool(tmp_path)
    put(spool, b"first")
    real = os.write

    def short(fd: int, data: bytes) -> int:
        return real(fd, data[:7])

    def full(fd: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "no space")

    for failing in (short, full):
        monkeypatch.setattr(os, "write", failing)
        with pytest.raises(SpoolFull):
            put(spool, b"second")
        monkeypatch.setattr(os, "write", real)
    put(spool, b"third")
    spool.close()
    assert [record.payload for record in all_of(tmp_path)] == [b"first", b"third"]


def test_the_spool_of_a_dead_supervisor_is_ended_once(tmp_path: Path) -> None:
    """The log says where it may have a hole, and has an end like any other; an agent may die while doing so."""
    spool = Spool(tmp_path)
    put(spool, b'{"kind": "step"}', Kind.OPENED)
    put(spool, b"x")
    spool.close()
    with segments(tmp_path)[0].path.open("ab") as file:
        file.write(b"torn")
    ended = close_orphaned_log(tmp_path, "it died", SystemClock())
    assert close_orphaned_log(tmp_path, "it died", SystemClock()) == ended
    records = all_of(tmp_path)
    marker = [Kind.OPENED, Kind.FRAME, Kind.CLOSED]
    assert [r.kind for r in records] == [Kind.OPENED, Kind.FRAME, Kind.CLOSED, *marker, Kind.OUTCOME]
    assert ended[:2] == (len(records) - 1, records[-1].offset)
