"""What a spool is worth when power, disk or bits fail: the synced part, in order, and never a wrong byte."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.supervisor.damage import Stand
from agent.supervisor.reading import SpoolReader
from agent.supervisor.records import Kind, Record
from agent.supervisor.segments import segments
from agent.supervisor.spool import Spool, SpoolBroken, SpoolFull
from tests.harness.faulty_disk import FaultyDisk

LIMIT = 80_000
KINDS = st.sampled_from([Kind.FRAME, Kind.FRAME, Kind.FRAME, Kind.OPENED, Kind.CLOSED])
MISTAKES = st.sampled_from([errno.EIO, errno.ENOSPC, errno.EROFS])


def all_of(folder: Path, end: Stand | None = None, step: int = 1 << 30) -> list[Record]:
    """All that a reader makes of it, at most `step` records a time."""
    reader = SpoolReader(folder)
    at, found = reader.first(), list[Record]()
    while records := reader.read(at, 1 << 40, step, end=end):
        found += records
        at = records[-1].sequence + 1
    return found


class Machine(RuleBasedStateMachine):
    """One writer after the other in one folder, and the list of what each of them was told is written."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.disk = FaultyDisk()
        self.written: list[Record] = []
        self.synced = 0
        self.acknowledged = 0
        self.section = 0
        self.open()

    def open(self) -> None:
        self.spool = Spool(self.folder, LIMIT, disk=self.disk, seed=7)

    @rule(payload=st.binary(max_size=3000), kind=KINDS)
    def append(self, payload: bytes, kind: Kind) -> None:
        self.section += kind is Kind.OPENED
        raw = len(payload) if kind is Kind.FRAME else 0
        try:
            self.written.append(self.spool.append(kind, payload, time_ms=1, section=self.section, raw_length=raw))
        except (SpoolFull, SpoolBroken):
            assert self.spool.broken or self.spool.used > LIMIT // 2 or self.disk.fails

    @rule(count=st.integers(1, 8))
    def append_many(self, count: int) -> None:
        for _ in range(count):
            self.append(b"y" * 3000, Kind.FRAME)

    @rule(upto=st.integers(0, 40))
    def acknowledge(self, upto: int) -> None:
        self.acknowledged = max(self.acknowledged, min(upto, self.spool.synced.sequence))
        self.spool.ack(self.acknowledged)

    @rule()
    def sync(self) -> None:
        try:
            self.spool.sync()
        except SpoolBroken:
            return
        self.synced = len(self.written)

    @precondition(lambda self: not self.spool.broken)
    @rule(call=st.sampled_from(["append", "sync", "sync_folder", "begin"]), mistake=MISTAKES)
    def fail_once(self, call: str, mistake: int) -> None:
        self.disk.fails = {call: mistake}
        self.append(b"x" * 100, Kind.FRAME)
        self.sync()
        self.disk.fails = {}
        if call == "sync" and self.spool.broken:
            before = len(self.disk.calls)
            with pytest.raises(SpoolBroken):
                self.spool.sync()
            assert len(self.disk.calls) == before, "what failed once is not asked again"

    @rule()
    def kill_the_writer(self) -> None:
        self.spool.close()
        self.open()

    @rule(seed=st.integers(0, 2**32))
    def cut_the_power(self, seed: int) -> None:
        self.spool.close()
        rng = random.Random(seed)
        self.disk.power_cut(lambda size: rng.randint(0, size))
        self.open()
        assert self.spool.sequence >= self.synced, "what was synced is there"
        del self.written[self.spool.sequence :]

    @invariant()
    def what_is_read_is_what_was_written(self) -> None:
        found = all_of(self.folder)
        assert found == self.written[len(self.written) - len(found) :]
        assert len(found) >= len(self.written) - self.acknowledged
        assert self.spool.synced.sequence <= self.synced <= self.spool.sequence == len(self.written)

    def teardown(self) -> None:
        self.spool.close()
        shutil.rmtree(self.folder)


Machine.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestASpoolOverCrashes = Machine.TestCase


def spooled(folder: Path, moves: list[tuple[Kind, bytes]]) -> list[Record]:
    """Writes a whole log of small segments."""
    spool, section, written = Spool(folder, LIMIT, seed=99), 1, []
    for kind, raw in moves:
        section += kind is Kind.OPENED
        payload = zstandard.compress(raw) if kind is Kind.FRAME else b'{"kind": "step", "title": "t", "result": ""}'
        length = len(raw) if kind is Kind.FRAME else 0
        written.append(spool.append(kind, payload, time_ms=1, section=section, raw_length=length))
    spool.sync()
    spool.close()
    return written


def harmed(folder: Path, how: str, rng: random.Random) -> None:
    """One thing that disks, and people, do to files."""
    file = rng.choice(segments(folder)).path
    data = bytearray(file.read_bytes())
    match how:
        case "flip":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case "zeros":
            at = rng.randrange(len(data))
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        case "short":
            del data[rng.randrange(len(data)) :]
        case "twice":
            number = int(file.name.split(".")[1]) + rng.randint(0, 2)
            (folder / f"spool.{number:020}.{0:020}.{99:08x}").write_bytes(bytes(data))
        case "gone":
            if file != segments(folder)[0].path:
                file.unlink()
            return
    file.write_bytes(bytes(data))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(KINDS, st.binary(min_size=1, max_size=400)), min_size=1, max_size=80),
    st.lists(st.sampled_from(["flip", "flip", "zeros", "short", "gone"]), min_size=1, max_size=3),
    st.integers(0, 2**32),
    st.sampled_from([1, 3, 1 << 30]),
)
def test_what_is_damaged_is_told_and_all_else_is_as_it_was_and_in_its_place(
    moves: list[tuple[Kind, bytes]], harms: list[str], seed: int, step: int
) -> None:
    """Nothing is passed over in silence: as many records and as many bytes as there were, none of them wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), random.Random(seed)
        written = spooled(folder, moves)
        for harm in harms:
            if any(each.path.stat().st_size for each in segments(folder)):
                harmed(folder, harm, rng)
        last = written[-1]
        found = all_of(folder, Stand(last.sequence, last.offset + last.raw_length), step)
        assert [record.sequence for record in found] == [record.sequence for record in written]
        at = 0
        for read, original in zip(found, written, strict=True):
            assert read.offset == at
            at += read.raw_length
            if read != original:
                assert read.ours or read.raw_length == 0
                assert read.raw_length == 0 or len(zstandard.decompress(read.payload)) == read.raw_length
        assert at == last.offset + last.raw_length


def test_a_frame_that_was_damaged_is_told_with_its_bytes_and_what_follows_keeps_its_place(tmp_path: Path) -> None:
    """The reader of the log sees where it is not whole, and by how much; a link into it still leads there."""
    written = spooled(tmp_path, [(Kind.FRAME, b"before\n"), (Kind.FRAME, b"x" * 5000), (Kind.FRAME, b"after\n")])
    file = segments(tmp_path)[0].path
    data = bytearray(file.read_bytes())
    data[data.index(zstandard.compress(b"x" * 5000)) + 9] ^= 1
    file.write_bytes(bytes(data))
    reader = SpoolReader(tmp_path)
    found = reader.read(1)
    text = [zstandard.decompress(record.payload) for record in found]
    assert text[1].rstrip(b"\0") == b"*** headrace: 5000 bytes of this log were damaged on the agent's disk ***\n"
    assert (text[0], len(text[1]), text[2]) == (b"before\n", 5000, b"after\n")
    assert [record.ours for record in found] == [False, True, False]
    assert found[2] == written[2]
    assert reader.damages == [(2, 2, 5000)]


def test_bytes_of_a_job_that_look_like_a_record_never_become_one(tmp_path: Path) -> None:
    """They are found when the record around them is damaged; the checksum begins with a number that no job knows."""
    other = tmp_path / "other"
    other.mkdir()
    forged = Spool(other, LIMIT)
    for _ in range(3):
        forged.append(Kind.OUTCOME, b"{}", time_ms=1, section=1)
    forged.close()
    payload = segments(other)[0].path.read_bytes()
    folder = tmp_path / "spool"
    folder.mkdir()
    spool = Spool(folder, LIMIT, seed=99)
    for data in (payload, b"after"):
        spool.append(Kind.FRAME, data, time_ms=1, section=1, raw_length=10)
    spool.close()
    file = segments(folder)[0].path
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(bytes(data))
    found = SpoolReader(folder).read(1)
    assert [(record.sequence, record.kind) for record in found] == [(1, Kind.FRAME), (2, Kind.FRAME)]
    assert found[1].payload == b"after"


@pytest.mark.parametrize("how", ["twice", "gone"])
@pytest.mark.parametrize("seed", range(5))
def test_a_segment_that_is_there_twice_or_not_at_all_doubles_and_hides_nothing(
    tmp_path: Path, how: str, seed: int
) -> None:
    """A copy that somebody restored, a file that somebody removed."""
    written = spooled(tmp_path, [(Kind.FRAME, bytes([n]) * 900) for n in range(200)])
    assert len(segments(tmp_path)) > 1
    harmed(tmp_path, how, random.Random(seed))
    last = written[-1]
    found = all_of(tmp_path, Stand(last.sequence, last.offset + last.raw_length))
    assert [record.sequence for record in found] == list(range(1, 201))
    assert all(read == original or read.ours for read, original in zip(found, written, strict=True))


def test_a_spool_of_the_version_before_is_read(tmp_path: Path) -> None:
    """A job's supervisor outlives the upgrade of its agent, and goes on writing as it did."""
    spool = Spool(tmp_path, LIMIT)
    written = [spool.append(Kind.FRAME, b"x", time_ms=1, section=1, raw_length=1) for _ in range(3)]
    spool.close()
    file = segments(tmp_path)[0].path
    file.rename(tmp_path / f"spool.{1:020}")
    assert all_of(tmp_path) == written


@pytest.mark.parametrize("call", ["sync", "sync_folder"])
@pytest.mark.parametrize("mistake", [errno.EIO, errno.ENOSPC])
def test_a_sync_that_failed_once_is_the_end_of_a_spool(tmp_path: Path, call: str, mistake: int) -> None:
    """Linux forgets what it could not write, and says that all is well when it is asked again."""
    disk = FaultyDisk()
    spool = Spool(tmp_path, LIMIT, disk=disk)
    spool.append(Kind.FRAME, b"kept", time_ms=1, section=1, raw_length=4)
    spool.sync()
    spool.append(Kind.FRAME, b"lost", time_ms=1, section=1, raw_length=4)
    if call == "sync_folder":
        spool.ack(1)
        for _ in range(200):
            spool.append(Kind.CLOSED, b"x" * 100, time_ms=1, section=1)  # into the next segment, whose name is new
    disk.fails = {call: mistake}
    with pytest.raises(SpoolBroken, match="the log on the agent's disk could not be synced"):
        spool.sync()
    disk.fails = {}
    with pytest.raises(SpoolBroken):
        spool.append(Kind.OUTCOME, b"{}", time_ms=1, section=1)
    assert (spool.synced.sequence, spool.synced.offset) == (1, 4)
    spool.close()


def test_the_outcome_has_room_on_a_disk_that_is_full(tmp_path: Path) -> None:
    """Its room is the disk's own, taken beforehand: a limit says nothing of what others write there."""
    disk = FaultyDisk()
    spool = Spool(tmp_path, LIMIT, disk=disk)
    assert (tmp_path / "reserve").stat().st_blocks > 0
    disk.fails = {"append": errno.ENOSPC}
    with pytest.raises(SpoolFull):
        spool.append(Kind.FRAME, b"x" * 50, time_ms=1, section=1, raw_length=50)
    assert (tmp_path / "reserve").exists(), "the job's bytes may not have it"
    disk.remove = lambda path: (path.unlink(), disk.fails.clear())  # type: ignore[method-assign,assignment,func-returns-value]
    spool.append(Kind.OUTCOME, b"{}", time_ms=1, section=1)
    spool.close()
    assert [record.kind for record in all_of(tmp_path)] == [Kind.OUTCOME]


@pytest.mark.parametrize("readable", [True, False])
def test_what_was_written_and_never_synced_does_not_count_when_the_log_ends_before_it(
    tmp_path: Path, *, readable: bool
) -> None:
    """It can still be read, from memory, or not: after a power cut it never was there."""
    written = spooled(tmp_path, [(Kind.FRAME, bytes([n]) * 900) for n in range(200)])
    assert len(segments(tmp_path)) > 1
    kept = written[segments(tmp_path)[1].first - 4]
    if not readable:
        file = segments(tmp_path)[0].path
        data = file.read_bytes()
        file.write_bytes(data[: data.index(kept.payload) + len(kept.payload) + 4].ljust(len(data), b"\0"))
    end = Stand(kept.sequence + 1, kept.offset + 900 + 9)
    found = SpoolReader(tmp_path).read(1, 1 << 30, end=end, ending="the end.")
    assert found[:-1] == written[: kept.sequence]
    assert (found[-1].sequence, found[-1].ours) == (end.sequence, True)
    assert zstandard.decompress(found[-1].payload) == b"the end.\n"


def test_damage_in_front_of_an_end_that_no_record_tells_is_told_by_itself(tmp_path: Path) -> None:
    """A disk that fails has often failed before."""
    written = spooled(tmp_path, [(Kind.FRAME, b"kept\n"), (Kind.FRAME, b"x" * 300)])
    file = segments(tmp_path)[0].path
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    reader = SpoolReader(tmp_path)
    found = reader.read(1, end=Stand(3, 305 + len("the end.\n")), ending="the end.")
    text = [zstandard.decompress(record.payload).rstrip(b"\0") for record in found]
    assert text[2] == b"the end.\n"
    assert text[1] == b"*** headrace: 300 bytes of this log were damaged on the agent's disk ***\n"
    assert found[0] == written[0]
    assert reader.damages == [(2, 2, 300)]


def test_what_a_broken_spool_has_kept_does_not_change_any_more(tmp_path: Path) -> None:
    """A sync is under way when a write fails; the outcome, with the length of the log, may have gone by its end."""
    disk = FaultyDisk()
    spool = Spool(tmp_path, LIMIT, disk=disk)
    spool.append(Kind.FRAME, b"x", time_ms=1, section=1, raw_length=1)
    under_way = spool.begin_sync()
    assert under_way is not None
    disk.fails = {"append": errno.EIO}
    with pytest.raises(SpoolBroken, match="could not be written: Input/output error"):
        spool.append(Kind.FRAME, b"y", time_ms=1, section=1, raw_length=1)
    spool.finish_sync(under_way, under_way.run())
    assert spool.synced.sequence == 0
    spool.close()


def test_a_spool_that_is_found_ends_no_earlier_than_what_was_acknowledged_of_it(tmp_path: Path) -> None:
    """Its files are gone, for they were durable and handed in: a first sync that fails does not take that back."""
    disk = FaultyDisk()
    spool = Spool(tmp_path, LIMIT, disk=disk)
    for _ in range(4):
        spool.append(Kind.FRAME, b"x" * 15_000, time_ms=1, section=1, raw_length=20_000)
        spool.sync()
        spool.ack(spool.sequence)
    spool.sync()
    spool.close()
    first = segments(tmp_path)[0]
    assert first.first > 1
    disk.fails = {"sync": errno.EIO}
    second = Spool(tmp_path, LIMIT, disk=disk)
    second.append(Kind.FRAME, b"y", time_ms=1, section=1, raw_length=1)
    with pytest.raises(SpoolBroken):
        second.sync()
    assert second.synced[:2] == (first.first - 1, first.offset)
    second.close()


def test_a_sector_that_cannot_be_read_costs_what_is_in_it_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk gives an error for the whole of a read that touches it."""
    written = spooled(tmp_path, [(Kind.FRAME, random.Random(n).randbytes(900)) for n in range(12)])
    real, bad = os.pread, 6_000

    def pread(file: int, size: int, at: int) -> bytes:
        if at <= bad < at + size:
            raise OSError(errno.EIO, "Input/output error")
        return real(file, size, at)

    monkeypatch.setattr(os, "pread", pread)
    found = all_of(tmp_path)
    assert [record.sequence for record in found] == list(range(1, 13))
    lost = [read.sequence for read, original in zip(found, written, strict=True) if read != original]
    assert lost == [5, 6, 7, 8, 9]
