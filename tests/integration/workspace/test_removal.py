"""Trees that do not want to be removed."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from agent.workspace.removal import NotRemoved, hand_over, mounts_below, remove_tree


def deep(folder: Path, levels: int) -> None:
    """A chain of folders far beyond the longest path that the kernel takes in one call."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("leaf", os.O_CREAT, dir_fd=here))
    os.close(here)


def open_descriptors() -> int:
    gc.collect()  # those that other tests left for later
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_tree_of_twelve_thousand_levels_goes(tmp_path: Path) -> None:
    """Recursion ends at a thousand, path names at 4096 bytes: a job makes such a tree in a second."""
    victim = tmp_path / "victim"
    victim.mkdir()
    deep(victim, 12_000)
    descriptors = open_descriptors()
    remove_tree(victim)
    assert not victim.exists()
    assert open_descriptors() <= descriptors


def test_folders_without_permissions_go_also_for_a_plain_user(tmp_path: Path) -> None:
    """`chmod 0` is the cheapest way to stay."""
    victim = tmp_path / "victim"
    (victim / "shut" / "in").mkdir(parents=True)
    (victim / "shut" / "in" / "f").touch()
    (victim / "ro").mkdir()
    (victim / "ro" / "f").touch()
    if os.geteuid() == 0:
        tmp_path.chmod(0o777)
        for folder in (tmp_path.parent, tmp_path.parent.parent, tmp_path.parent.parent.parent):
            if folder != Path("/tmp"):
                folder.chmod(folder.stat().st_mode | 0o711)
        hand_over(victim, 65534, 65534)
    (victim / "shut" / "in").chmod(0)
    (victim / "shut").chmod(0)
    (victim / "ro").chmod(0o500)
    child = os.fork()
    if child == 0:  # the real thing: a uid to which permissions mean something
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            remove_tree(victim)
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not victim.exists()


@pytest.mark.root
def test_immutable_files_and_folders_go(tmp_path: Path) -> None:
    """`chattr +i` stops even root, but for whoever takes it off first."""
    victim = tmp_path / "victim"
    (victim / "folder").mkdir(parents=True)
    for name in ("file", "folder/inner", "log"):
        (victim / name).touch()
    if subprocess.run(["chattr", "+i", victim / "file"], capture_output=True, check=False).returncode:
        pytest.skip("this file system has no such flags")
    subprocess.run(["chattr", "+a", victim / "log"], check=True)
    subprocess.run(["chattr", "+i", victim / "folder/inner"], check=True)
    subprocess.run(["chattr", "+i", victim / "folder"], check=True)
    try:
        remove_tree(victim)
    finally:
        if victim.exists():
            subprocess.run(["chattr", "-R", "-i", "-a", victim], check=True)
    assert not victim.exists()


def test_a_link_is_removed_and_what_it_points_to_stays(tmp_path: Path) -> None:
    """A job plants links to what it would like the agent to remove."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "f").touch()
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "link").symlink_to("../precious")
    (tmp_path / "itself").symlink_to("precious")
    remove_tree(victim)
    remove_tree(tmp_path / "itself")
    assert (tmp_path / "precious" / "f").exists()
    assert not (tmp_path / "itself").is_symlink()
    remove_tree(tmp_path / "never was")


@pytest.mark.root
def test_nothing_is_removed_while_something_is_mounted_below(tmp_path: Path) -> None:
    """A cache bound into the workspace is not the workspace's to lose."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "f").touch()
    victim = tmp_path / "victim"
    (victim / "a space").mkdir(parents=True)
    subprocess.run(["mount", "--bind", tmp_path / "cache", victim / "a space"], check=True)
    try:
        assert mounts_below(victim) == (str(victim / "a space"),)
        with pytest.raises(NotRemoved, match="is mounted below"):
            remove_tree(victim)
        assert (tmp_path / "cache" / "f").exists()
    finally:
        subprocess.run(["umount", victim / "a space"], check=True)
    remove_tree(victim)
    assert not victim.exists()


def test_a_folder_moved_out_in_mid_removal_takes_nothing_else_with_it(tmp_path: Path) -> None:
    """`..` of a moved folder is somewhere else: the way up is proved, not believed."""
    victim, outside = tmp_path / "victim", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").mkdir()
    (outside / "precious" / "f").touch()
    for round_ in range(20):
        (victim / "a" / "b").mkdir(parents=True)
        for number in range(300):
            (victim / "a" / "b" / str(number)).touch()
        started = threading.Event()

        def move(target: Path = outside / f"moved{round_}", started: threading.Event = started) -> None:
            started.wait()
            try:
                (victim / "a" / "b").rename(target)
            except OSError:
                return

        thread = threading.Thread(target=move)
        thread.start()
        started.set()
        try:
            remove_tree(victim)
        except NotRemoved:
            remove_tree(victim)
        thread.join()
        assert not victim.exists()
    assert (outside / "precious" / "f").exists()


@pytest.mark.root
def test_handing_over_reaches_every_file_and_follows_no_link(tmp_path: Path) -> None:
    """A link in a hostile repository must not give a file of the agent's away."""
    (tmp_path / "agents").touch()
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "f").touch()
    (tree / "a" / "link").symlink_to("../../agents")
    deep(tree, 2_000)
    hand_over(tree, 1234, 1235)
    assert (tree / "a" / "f").stat().st_uid == 1234
    assert (tree / "a" / "link").lstat().st_gid == 1235
    assert (tmp_path / "agents").stat().st_uid == 0
    remove_tree(tree)


def test_ten_thousand_files_go_in_a_second(tmp_path: Path) -> None:
    """A slot is granted again only when its workspace is gone."""
    victim = tmp_path / "victim"
    for folder in range(100):
        (victim / str(folder)).mkdir(parents=True)
        for number in range(100):
            (victim / str(folder) / str(number)).touch()
    began = time.monotonic()
    remove_tree(victim)
    assert time.monotonic() - began < 5
