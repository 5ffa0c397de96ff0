"""Whose want of memory it was, by the kernel's own files; of both versions, whichever this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.problems import Cause
from agent.supervisor.cgroup import Meter

MOST = 64 << 20


def version_1(folder: Path, *, kills: int, most_used: int) -> None:
    (folder / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
    (folder / "memory.max_usage_in_bytes").write_text(f"{most_used}\n")
    (folder / "memory.limit_in_bytes").write_text(f"{MOST}\n")


def version_2(folder: Path, *, kills: int, at_limit: int) -> None:
    (folder / "memory.events").write_text(f"low 0\nhigh 0\nmax 9\noom {at_limit}\noom_kill {kills}\n")


@pytest.mark.parametrize(("most_used", "cause"), [(MOST, Cause.OOM), (MOST - 4096, Cause.HOST_OOM)])
def test_below_the_jobs_own_limit_it_was_the_host_that_ran_out(tmp_path: Path, most_used: int, cause: Cause) -> None:
    """The person would raise the job's limit, and the host would run out sooner; a parent group counts as the host."""
    version_1(tmp_path, kills=2, most_used=1 << 20)
    meter = Meter([tmp_path])
    before = meter.last
    assert meter.since(before) is None
    version_1(tmp_path, kills=3, most_used=most_used)
    assert meter.since(before) is cause
    assert meter.since(meter.last) is None


@pytest.mark.parametrize(("at_limit", "cause"), [(5, Cause.OOM), (4, Cause.HOST_OOM)])
def test_version_2_counts_the_blame_of_the_limit_by_itself(tmp_path: Path, at_limit: int, cause: Cause) -> None:
    """`oom_kill` alone rises when the host, or a parent, takes a process of the job."""
    version_2(tmp_path, kills=1, at_limit=4)
    meter = Meter([tmp_path])
    before = meter.last
    assert meter.since(before) is None
    version_2(tmp_path, kills=2, at_limit=at_limit)
    assert meter.since(before) is cause


def test_counters_outlive_the_group_and_other_folders_do_not_matter(tmp_path: Path) -> None:
    """An engine removes the group with the container; the last sample is what is known then."""
    group, other = tmp_path / "memory", tmp_path / "cpu"
    group.mkdir()
    other.mkdir()
    version_2(group, kills=0, at_limit=0)
    (group / "pids.events").write_text("max 0\n")
    meter = Meter([other, group])
    before = meter.last
    version_2(group, kills=1, at_limit=1)
    (group / "pids.events").write_text("max 7\n")
    meter.read()
    for file in group.iterdir():
        file.unlink()
    assert meter.since(before) is Cause.OOM
    assert meter.last.pids_max == 7
