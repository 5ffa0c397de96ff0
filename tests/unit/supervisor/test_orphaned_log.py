"""The log of a supervisor that died: it is ended by the agent, whatever the disk says."""

from __future__ import annotations

import errno
from pathlib import Path

import zstandard

from agent.clock import SystemClock
from agent.orphan import close_orphaned_log
from agent.supervisor.damage import Stand, filled
from agent.supervisor.reading import SpoolReader
from agent.supervisor.records import Kind
from agent.supervisor.segments import segments
from tests.harness.faulty_disk import FaultyDisk
from tests.unit.supervisor.test_spool_faults import all_of, spooled


def test_the_spool_of_a_dead_supervisor_keeps_what_stands_behind_damage(tmp_path: Path) -> None:
    """Only a torn end is cut off: damage inside is for the reader to tell of."""
    written = spooled(tmp_path, [(Kind.FRAME, bytes([n]) * 50) for n in range(5)])
    file = segments(tmp_path)[0].path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data) + b"torn")
    end = close_orphaned_log(tmp_path, "it died", SystemClock())
    found = all_of(tmp_path)
    assert (end.records, end.offset, end.disk) == (len(found) - 1, found[-1].offset, "")
    assert [read == original for read, original in zip(found, written, strict=False)] == [True, True, False, True, True]


def test_what_has_left_the_machine_is_not_numbered_again(tmp_path: Path) -> None:
    """The end of a spool was damaged after it was handed in: the coordinator has those records under their numbers."""
    written = spooled(tmp_path, [(Kind.FRAME, bytes([n]) * 50) for n in range(5)])
    file = segments(tmp_path)[0].path
    file.write_bytes(file.read_bytes()[:-1])
    known = Stand(5, written[-1].offset + written[-1].raw_length, 1)
    end = close_orphaned_log(tmp_path, "it died", SystemClock(), known=known)
    found = all_of(tmp_path)
    assert [record.sequence for record in found] == list(range(1, end.records + 2))
    assert found[5].offset == known.offset


def test_a_log_whose_disk_is_gone_has_an_end_all_the_same(tmp_path: Path) -> None:
    """The attempt is settled, and says why its log is not whole."""
    (tmp_path / "file").write_text("no folder")
    end = close_orphaned_log(tmp_path / "file", "it died", SystemClock(), known=Stand(3, 30))
    assert (end.records, end.disk) == (4, "the log on the agent's disk could not be ended: File exists")
    (record,) = filled(Stand(3, 30), Stand(end.records, end.offset), end.ending)
    assert zstandard.decompress(record.payload).decode() == end.ending + "\n"


def test_a_log_whose_end_was_written_and_not_synced_ends_where_it_is_said_to(tmp_path: Path) -> None:
    """The outcome can be read, and is not counted on: whoever hands the log in does not stop at it, one short."""
    spooled(tmp_path, [(Kind.FRAME, bytes([n]) * 50) for n in range(3)])
    disk = FaultyDisk()
    disk.fails["sync"] = errno.EIO
    end = close_orphaned_log(tmp_path, "it died", SystemClock(), disk=disk)
    assert end.disk
    stand = Stand(end.records, end.offset)
    found = SpoolReader(tmp_path).read(1, 1 << 30, 1 << 30, offset=0, end=stand, ending=end.ending)
    assert [record.sequence for record in found] == list(range(1, end.records + 1))
    assert Kind.OUTCOME not in {record.kind for record in found}
    assert zstandard.decompress(found[-1].payload).decode() == end.ending + "\n"
