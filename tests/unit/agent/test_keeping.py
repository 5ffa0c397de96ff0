"""What an agent has written down of an attempt, over crashes, power cuts, bad bits and a disk that fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.keeping import Records
from agent.record import Record
from headrace.v1 import common_pb2 as pb


class Killed(BaseException):
    """kill -9."""


def record(number: int) -> Record:
    return Record(7, b"token", 1, 0, pb.JobSpec(job="unit"), assigned_boot_ms=number, needs="x" * number)


def found(folder: Path) -> list[Record]:
    return Records(folder, pytest.fail).read(lambda *_: None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 20))
def test_an_agent_killed_at_any_moment_of_a_write_finds_the_record_before_or_this_one(
    tmp_path_factory: pytest.TempPathFactory, durables: list[bool], moment: int
) -> None:
    """And takes nothing for damaged that was only not finished: the job goes on."""
    folder = tmp_path_factory.mktemp("records")
    records, done, left = Records(folder, pytest.fail), 0, moment
    real = os.pwrite

    def dying(file: int, data: bytes, at: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            real(file, data[: len(data) // 2], at)
            raise Killed
        return real(file, data, at)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "pwrite", dying)
        try:
            for number, durable in enumerate(durables, 1):
                records.write(record(number), durable=durable)
                done = number
        except Killed:
            pass
    kept = found(folder)
    safe = max((number for number, durable in enumerate(durables[:done], 1) if durable), default=0)
    if not kept:
        assert safe == 0
        return
    assert safe <= kept[0].assigned_boot_ms <= done + 1
    assert kept[0] == record(kept[0].assigned_boot_ms)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 7), st.integers(1, 4))
def test_a_flipped_bit_is_never_believed_and_the_other_place_stands_in(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int, writes: int
) -> None:
    """The token is in both: the attempt can be ended, and says why."""
    folder = tmp_path_factory.mktemp("records")
    records = Records(folder, pytest.fail)
    for number in range(1, writes + 1):
        records.write(record(number), durable=True)
    newest = folder / ("7.json" if writes % 2 else "7.other")
    data = bytearray(newest.read_bytes())
    length = 64 + len(record(writes).to_json())
    data[at % length] ^= 1 << bit
    newest.write_bytes(bytes(data))
    told: list[str] = []
    kept = Records(folder, pytest.fail).read(lambda file, _: told.append(file.name))
    if kept and not kept[0].damage:
        assert kept == [record(writes)], "only a blank of the head may have changed"
        return
    assert told == [newest.name]
    assert kept == ([record(writes - 1)] if writes > 1 else [])
    assert all("was damaged on its disk" in each.damage for each in kept)


def test_a_sync_that_fails_costs_the_file_and_leaves_the_other_one(tmp_path: Path) -> None:
    """A second sync would say that all is well; the quarantine is for people, the next write gets a new file."""
    mistakes: list[OSError | None] = [None, OSError(errno.EIO, "Input/output error"), None]
    said: list[str] = []

    def sync(file: int) -> None:
        os.fsync(file)
        if (mistake := mistakes.pop(0)) is not None:
            raise mistake

    records = Records(tmp_path, said.append, sync=sync)
    assert records.keep(record(1), durable=True)
    inode = {file.stat().st_ino for file in tmp_path.iterdir()}
    assert not records.keep(record(2), durable=True)
    assert said == ["the record of an attempt could not be synced to the agent's disk: Input/output error"]
    assert found(tmp_path) == [record(1)]
    records.pay()
    assert found(tmp_path) == [record(2)]
    assert len({file.stat().st_ino for file in tmp_path.iterdir()} - inode) == 1


def test_a_full_disk_is_no_reason_for_a_quarantine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It will have room again; a disk that answers with an I/O error is another thing."""
    said: list[str] = []
    records = Records(tmp_path, said.append)

    def failing(code: int) -> Any:
        def pwrite(*_: object) -> int:
            raise OSError(code, os.strerror(code))

        return pwrite

    for code, count in ((errno.ENOSPC, 0), (errno.EIO, 1)):
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", failing(code))
            assert not records.keep(record(1))
        assert len(said) == count
    records.pay()
    assert found(tmp_path) == [record(1)]


def test_the_room_of_a_record_is_taken_with_the_attempt(tmp_path: Path) -> None:
    """What it came to can be written down on a disk that others have filled meanwhile."""
    records = Records(tmp_path, pytest.fail)
    records.write(record(1))
    records.write(record(2), durable=True)
    records.write(record(3), durable=True)
    assert [file.stat().st_size for file in sorted(tmp_path.iterdir())] == [64 << 10] * 2
    assert all(file.stat().st_blocks * 512 >= 64 << 10 for file in tmp_path.iterdir())
