"""Whose want of memory it was, by the kernel's own files; of both versions, whichever this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.problems import Cause
from agent.supervisor import kmsg
from agent.supervisor.cgroup import Meter, own_groups
from agent.supervisor.kmsg import Kill

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


RECORDS = b"""\
4,100,99,-;python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=500
6,101,99,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/headrace/a1/7,\
task_memcg=/headrace/a1/7,task=python3,pid=5,uid=0
6,102,99,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/headrace/a1,\
task_memcg=/headrace/a1/7,task=,task_memcg=/x/,pid=6,uid=0
6,103,99,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
task_memcg=/headrace/a1/77,task=python3,pid=7,uid=0
"""


def test_the_kernels_log_says_whose_limit_it_was(tmp_path: Path) -> None:
    """One record at a time, as /dev/kmsg gives them; a process may call itself what it likes."""
    seen = [kmsg.kill_of(line) for line in RECORDS.splitlines()]
    assert seen == [
        None,
        Kill(101, "/headrace/a1/7", "/headrace/a1/7"),
        Kill(102, "/headrace/a1", "/headrace/a1/7"),
        Kill(103, "", "/headrace/a1/77"),
    ]
    assert kmsg.kills(str(tmp_path / "none")) == []


@pytest.mark.parametrize(("whose", "cause"), [("/headrace/a1/7", Cause.OOM), ("/headrace/a1", Cause.HOST_OOM)])
def test_a_job_that_has_read_many_files_has_not_reached_its_limit_by_that(
    tmp_path: Path, whose: str, cause: Cause
) -> None:
    """Version 1: files that were read fill the group to its limit, in every build. The kernel's log decides."""
    folder = tmp_path / "headrace" / "a1" / "7"
    folder.mkdir(parents=True)
    version_1(folder, kills=0, most_used=MOST)
    log = [Kill(3, "/headrace/a1/7", "/headrace/a1/70"), Kill(4, "/headrace/a1/7", "/headrace/a2/7")]
    meter = Meter([folder], kills=lambda: log)
    before = meter.last
    version_1(folder, kills=1, most_used=MOST)
    log.append(Kill(5, whose, "/headrace/a1/7"))
    assert meter.since(before) is cause
    before = meter.last
    version_1(folder, kills=2, most_used=MOST)
    assert meter.since(before) is Cause.OOM, "nothing new in the log: it leaves some out"


def test_around_a_sandbox_without_a_group_it_is_the_hosts_want_of_memory(tmp_path: Path) -> None:
    """A plain user's agent: its own group counts. What did not end killed had another reason."""
    version_2(tmp_path, kills=1, at_limit=1)
    meter = Meter([], around=[tmp_path / "cpu", tmp_path])
    before = meter.last
    version_2(tmp_path, kills=2, at_limit=2)
    assert meter.since(before, killed=False) is None
    assert meter.since(before) is Cause.HOST_OOM
    listed = tmp_path / "cgroup"
    listed.write_text("4:memory:/a/b\n2:cpu,cpuacct:/\n0::/user.slice/x:y\n")
    assert own_groups(tmp_path, listed) == [
        tmp_path / name for name in ("memory/a/b", "cpu", "cpuacct", "user.slice/x:y")
    ]
