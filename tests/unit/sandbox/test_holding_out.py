"""What all jobs of an agent together may take, and in which group: by the files that the kernel would read."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.holding import Held, told
from agent.sandbox.cgroups import Cgroups
from agent.sandbox.engine_group import EngineGroup
from agent.sandbox.limits import together
from agent.sandbox.protocol import Limits

BOUNDS = Limits(memory=3 << 20, pids=21)
SLOT = Limits(cpu=1, memory=1 << 20, pids=9)
V1 = ("memory", "cpu", "pids", "freezer")


@pytest.fixture
def version_1(tmp_path: Path) -> Cgroups:
    """Four trees of which three are ours to limit."""
    for name in V1:
        (tmp_path / name).mkdir()
    found = Cgroups.find("a1", "".join(f"cgroup {tmp_path}/{name} cgroup rw,{name} 0 0\n" for name in V1), BOUNDS)
    assert found is not None
    return found


def groups(trees: Path) -> set[str]:
    """The trees in which the agent has its group."""
    return {folder.relative_to(trees).parts[0] for folder in trees.glob("*/headrace/a1")}


def empty(trees: Path) -> None:
    """Takes away the made files, as the kernel does by itself."""
    for file in [each for each in trees.rglob("*") if each.is_file()]:
        file.unlink()


def test_all_jobs_together_weigh_little_and_are_bounded(version_1: Cgroups, tmp_path: Path) -> None:
    """The weight is beside whatever else is on the machine; the bounds are of this agent."""
    version_1.make(7, SLOT)
    assert (tmp_path / "cpu/headrace/cpu.shares").read_text() == "512"
    assert (tmp_path / "memory/headrace/a1/memory.limit_in_bytes").read_text() == str(3 << 20)
    assert (tmp_path / "pids/headrace/a1/pids.max").read_text() == "21"
    assert not (tmp_path / "pids/headrace/pids.max").exists()
    assert version_1.weighs


def test_version_2_has_the_same_bounds(tmp_path: Path) -> None:
    """Where the cpu controller is not handed down there is no weight, which is told."""
    for folder in (tmp_path, tmp_path / "headrace", tmp_path / "headrace" / "a1"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "headrace" / "cpu.weight").write_text("100")
    found = Cgroups.find("a1", f"cgroup2 {tmp_path} cgroup2 rw 0 0\n", BOUNDS)
    assert found is not None
    found.make(7, SLOT)
    assert (tmp_path / "headrace" / "cpu.weight").read_text() == "50"
    assert (tmp_path / "headrace" / "a1" / "memory.max").read_text() == str(3 << 20)
    assert (tmp_path / "headrace" / "a1" / "pids.max").read_text() == "21"
    assert found.weighs
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    assert not found.weighs


def test_the_group_is_there_while_jobs_are(version_1: Cgroups, tmp_path: Path) -> None:
    """In every tree, for an engine makes it in every tree and takes it away in none."""
    version_1.hold(7)
    version_1.hold(8)
    assert groups(tmp_path) == set(V1)
    empty(tmp_path)
    version_1.let_go(7)
    assert groups(tmp_path) == set(V1), "the other's container is about to be made there"
    (tmp_path / "freezer/headrace/a1/somebody").mkdir()
    version_1.let_go(8)
    assert groups(tmp_path) == {"freezer"}, "what an earlier agent's container is in stays"
    (tmp_path / "freezer/headrace/a1/somebody").rmdir()
    version_1.tidy()
    assert not list(tmp_path.glob("*/headrace"))


@pytest.mark.parametrize(
    ("driver", "group"), [("cgroupfs", "/headrace/a1"), ("systemd", "headracejobs.slice"), ("none", "")]
)
async def test_an_engine_is_told_the_group_in_its_own_way(
    version_1: Cgroups, tmp_path: Path, driver: str, group: str
) -> None:
    """One whose groups systemd makes takes a slice, and refuses a path."""
    of = EngineGroup(version_1)
    assert of.open(6) == "", "nothing is known of the engine yet"
    await of.learn({"CgroupDriver": driver}, Limits())
    assert of.open(7) == group
    empty(tmp_path)
    await of.close(7, [])
    assert not list(tmp_path.glob("*/headrace"))
    plain = EngineGroup(None)
    await plain.learn({"CgroupDriver": driver}, Limits())
    assert plain.open(7) == "", "who cannot bound a group has none"


def test_jobs_leave_processes_to_the_machine_and_meet_their_own_limit_first() -> None:
    """Sixteen slots of 4,096 are more than the 32,768 that a kernel gives by itself."""
    assert together(8 << 30, slots=16, machine=32_768).pids == 24_576
    assert together(8 << 30, slots=2, machine=4 << 20).pids == 8_192
    for memory in (64 << 20, 8 << 30):
        most = together(memory, slots=1, machine=1000).memory
        assert most is not None
        assert memory < most < memory * 1.3


def test_it_is_told_what_there_is_and_what_is_lacking() -> None:
    """One line at the start: an operator must see it before the bad day."""
    all_of_it = told(Held(-800, 65_536), memory=2 << 30, processes=100, weighs=True)
    assert all_of_it["lacks"] == []
    assert "jobs have 2048 MiB together" in all_of_it["has"]
    nothing = told(Held(0, 1_024), memory=None, processes=None, weighs=False)
    assert nothing["has"] == ["1024 open files"]
    assert len(nothing["lacks"]) == 4
