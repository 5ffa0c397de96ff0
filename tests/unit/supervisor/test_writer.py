"""One order for the job's bytes, our lines and the sections, also when there is no room."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
import zstandard

from agent.supervisor.disk import Disk
from agent.supervisor.reading import SpoolReader
from agent.supervisor.records import Kind, Record
from agent.supervisor.spool import Spool, SpoolBroken
from agent.supervisor.writer import LogWriter
from tests.harness.faulty_disk import FaultyDisk


class World:
    """A writer over a real spool, with a clock that the test moves."""

    def __init__(self, folder: Path, limit: int = 1 << 20, log_limit: int = 1 << 30, disk: Disk | None = None) -> None:
        self.now = 0
        self.folder = folder
        self.spool = Spool(folder, limit, disk=disk)
        self.writer = LogWriter(self.spool, lambda: 7, lambda: self.now, hold_ms=1000, most=log_limit)

    def records(self) -> list[Record]:
        reader = SpoolReader(self.folder)
        return reader.read(reader.first(), 1 << 30)

    def text(self) -> bytes:
        return b"".join(zstandard.decompress(r.payload) for r in self.records() if r.kind is Kind.FRAME)


def noise(size: int) -> bytes:
    return b"".join(
        hash_of.to_bytes(8, "little") for hash_of in ((i * 0x9E3779B97F4A7C15) % 2**64 for i in range(size // 8))
    )


def test_bytes_of_a_step_come_before_the_end_of_its_section(tmp_path: Path) -> None:
    """A section is a range of bytes: what is held back belongs into it."""
    world = World(tmp_path)
    world.writer.mask([b"secret"])
    world.writer.open_section("step", "tests", step=0)
    world.writer.write(b"a secr")
    world.writer.close_section("exit code 1")
    kinds = [(r.kind, r.offset) for r in world.records()]
    assert kinds == [(Kind.OPENED, 0), (Kind.FRAME, 0), (Kind.CLOSED, 6)]
    assert world.text() == b"a secr"


def test_our_own_line_neither_tears_a_secret_nor_tells_one(tmp_path: Path) -> None:
    """The agent says what it does, while the job is in the middle of a write."""
    world = World(tmp_path)
    world.writer.mask([b"secret"])
    world.writer.open_section("setup", "the secret place")
    world.writer.write(b"sec")
    world.writer.say(b"fetching secret\n")
    world.writer.write(b"ret")
    world.writer.close_section("secret!")
    assert world.text() == b"fetching ***\n***"
    assert not any(b"secret" in record.payload for record in world.records())


def test_a_title_and_a_result_are_cut_to_what_the_coordinator_takes(tmp_path: Path) -> None:
    """A record that it refuses would lose all of the log; what is a secret is masked before, not half of it after."""
    world = World(tmp_path)
    world.writer.mask([b"secret"])
    world.writer.open_section("step", "é" * 997 + "secret", step=0)
    world.writer.close_section("x" * 1001)
    texts = [record.facts().get("title") or record.facts().get("result") for record in world.records()]
    assert texts == ["é" * 997 + "***", "x" * 999 + "…"]


def test_a_full_spool_blocks_and_goes_on_with_room_without_losing_a_byte(tmp_path: Path) -> None:
    """Back-pressure: the job waits in its write."""
    world = World(tmp_path, limit=200_000)
    world.writer.open_section("step", "chatty", step=0)
    data, sent, got = noise(1_000_000), 0, b""
    sequence, reader = 1, SpoolReader(tmp_path)
    while sent < len(data):
        while not world.writer.blocked and sent < len(data):
            world.writer.write(data[sent : sent + 50_000])
            sent += 50_000
        for record in reader.read(sequence):
            got += zstandard.decompress(record.payload) if record.kind is Kind.FRAME else b""
            sequence = record.sequence + 1
        world.spool.ack(sequence - 1)
        world.spool.sync()
        world.writer.drain()
    world.writer.flush()
    world.spool.ack(sequence - 1)
    world.spool.sync()
    world.writer.drain()
    got += b"".join(zstandard.decompress(r.payload) for r in reader.read(sequence) if r.kind is Kind.FRAME)
    assert got == data


def test_after_the_time_it_may_hold_the_log_is_cut_and_says_by_how_much(tmp_path: Path) -> None:
    """A job must not wait for ever for a coordinator that is gone; its outcome is told in any case."""
    world = World(tmp_path, limit=200_000)
    world.writer.open_section("step", "chatty", step=0)
    data, sent = noise(200_000), 0
    while not world.writer.blocked:
        world.writer.write(data)
        sent += len(data)
    world.now = 1000
    world.writer.tick()
    assert not world.writer.blocked
    world.writer.write(data)
    sent += len(data)
    before = b"".join(zstandard.decompress(r.payload) for r in world.records() if r.kind is Kind.FRAME)
    world.spool.ack(world.spool.sequence)
    world.spool.sync()
    world.writer.write(b"after")
    world.writer.flush()
    world.writer.outcome("", "")
    text = before + world.text()
    found = re.findall(rb"\n\*\*\* headrace: (\d+) bytes are missing here: [^\n]*\n", text)
    kept = len(re.sub(rb"\n\*\*\* headrace: [^\n]*\n", b"", text))
    assert len(found) == 1
    assert kept + int(found[0]) == sent + len(b"after")
    assert world.records()[-1].facts() == {"cause": "", "sentence": ""}


def test_past_its_limit_the_output_is_dropped_and_the_log_says_where_and_how_much(tmp_path: Path) -> None:
    """A job that prints for ever must not fill every disk on the way; it goes on, and its end is told."""
    world = World(tmp_path, log_limit=100_000)
    world.writer.open_section("step", "chatty", step=0)
    data = noise(80_000)
    for _ in range(100):
        world.writer.write(data)
        assert not world.writer.blocked
    world.writer.close_section("exit code 1")
    world.writer.open_section("cleanup", "Clean up")
    world.writer.say(b"removed\n")
    world.writer.outcome("", "")
    cut = b"\n*** headrace: the log is cut here: it has reached its limit of 100000 bytes ***\n"
    missing = b"\n*** headrace: 7900000 bytes are missing: the log had reached its limit ***\n"
    assert world.text() == data + data[:20_000] + cut + b"removed\n" + missing
    sections = [(r.kind, r.section) for r in world.records() if r.kind is not Kind.FRAME]
    assert sections == [(Kind.OPENED, 1), (Kind.CLOSED, 1), (Kind.OPENED, 2), (Kind.CLOSED, 2), (Kind.OUTCOME, 2)]
    assert world.writer.kept == {"records": world.records()[-1].sequence, "offset": len(world.text())}


def test_a_log_that_is_cut_while_its_end_waits_for_room_ends_where_it_was_cut(tmp_path: Path) -> None:
    """The coordinator is told that number, and would wait for records that nobody has."""
    world = World(tmp_path, limit=64 << 10)
    world.writer.open_section("step", "chatty", step=0)
    for _ in range(4):
        world.writer.write(noise(40_000))
        world.writer.flush()
    world.writer.outcome("", "")
    assert world.writer.blocked
    world.now = 1000
    world.writer.tick()
    world.writer.tick()
    world.spool.sync()
    assert world.writer.durable
    last = world.records()[-1]
    assert last.kind is Kind.OUTCOME
    (missing,) = re.findall(rb"\n\*\*\* headrace: (\d+) bytes are missing here: [^\n]*\n$", world.text())
    assert len(re.sub(rb"\n\*\*\* headrace: [^\n]*\n", b"", world.text())) + int(missing) == 160_000
    assert world.writer.kept == {"records": last.sequence, "offset": len(world.text())}


@pytest.mark.parametrize("ends_before", [True, False], ids=["said, and not durable", "not yet said"])
def test_what_was_cut_is_missing_too_where_the_disk_fails_then(tmp_path: Path, *, ends_before: bool) -> None:
    """The line that told of it is gone with all that was not durable: the end of the log has to count for both."""
    disk = FaultyDisk()
    world = World(tmp_path, limit=64 << 10, disk=disk)
    world.writer.open_section("step", "chatty", step=0)
    world.spool.sync()
    for _ in range(4):
        world.writer.write(noise(40_000))
        world.writer.flush()
    world.now = 1000
    world.writer.tick()
    if ends_before:
        world.writer.outcome("", "")
    disk.fails["sync"] = errno.EIO
    with pytest.raises(SpoolBroken):
        world.spool.sync()
    if not ends_before:
        world.writer.outcome("", "")
    kept = world.writer.kept
    assert kept["offset"] == 0
    missing = int(kept["missing"])
    assert (
        160_000
        <= missing
        <= 160_000 + 2 * len(b"\n*** headrace: 160000 bytes are missing here: the log could not be handed on ***\n")
    )


def test_our_own_lines_are_frames_of_their_own_and_marked(tmp_path: Path) -> None:
    """Any job can print `headrace: …`: who reads a log must be able to tell who said it."""
    world = World(tmp_path, log_limit=30)
    world.writer.open_section("step", "liar", step=0)
    world.writer.write(b"headrace: all is well\n")
    world.writer.say(b"headrace: it is not\n" * 4000)
    world.writer.write(b"more than fits\n")
    world.writer.outcome("", "")
    frames = [record for record in world.records() if record.kind is Kind.FRAME]
    text = {ours: b"".join(zstandard.decompress(r.payload) for r in frames if r.ours is ours) for ours in (True, False)}
    assert text[False] == b"headrace: all is well\nmore tha"
    assert text[True].count(b"it is not") == 4000
    assert text[True].count(b"***") == 4
    assert max(record.raw_length for record in frames) <= 1 << 16


def test_the_end_of_a_steps_log_is_at_hand_masked_and_bounded(tmp_path: Path) -> None:
    """What is handed on is gone from the disk: a rule over a failed step's log could not be judged by it."""
    world = World(tmp_path, 1 << 30)
    writer = world.writer
    writer.mask([b"hunter2"])
    writer.open_section("step", "first", step=0)
    writer.write(b"of the first\n")
    writer.open_section("step", "second", step=1)
    for _ in range(5):
        writer.write(b"x" * (1 << 20))
    writer.write(b"the end: hunter2 hunt")
    writer.close_section("failed")
    writer.open_section("artifacts", "ours")
    writer.say(b"not of the step\n")
    assert len(writer.tail()) == 1 << 20
    assert writer.tail().endswith(b"xx" + b"the end: *** hunt")
    assert b"first" not in writer.tail()
