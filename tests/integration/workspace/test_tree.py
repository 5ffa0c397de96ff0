"""A tree that a hostile job wrote: read, matched, written into."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.workspace.tree import Bounds, NotRegular, NotThere, Occupied, Owner, TooMuch, Tree
from headrace.pipeline.globs import Patterns

SECRET = "the agent's own token"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text(SECRET)
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


@pytest.fixture
def tree(root: Path) -> Iterator[Tree]:
    with Tree.open(root) as opened:
        yield opened


def found(tree: Tree, *patterns: str, bounds: Bounds | None = None) -> tuple[str, ...]:
    return tree.glob(Patterns(patterns), bounds or Bounds(), time.monotonic).files


def test_a_link_is_never_followed_wherever_it_stands(root: Path, tree: Tree) -> None:
    """The agent may read what the job may not: a link would be a loan of its eyes."""
    (root / "file").symlink_to("../outside/secret")
    (root / "folder").symlink_to("../outside")
    (root / "inner").mkdir()
    (root / "inner" / "up").symlink_to("..")
    for path in ("file", "folder/secret", "inner/up/file"):
        with pytest.raises(NotRegular):
            tree.read(path, 100)
    assert found(tree, "**", "folder/*", "file") == ()
    assert tree.glob(Patterns(("*",)), Bounds(), time.monotonic).passed_over == ("file", "folder", "inner/up")


def test_fifos_sockets_and_folders_are_refused_at_once(root: Path, tree: Tree) -> None:
    """Opening a FIFO would hang the agent for ever."""
    os.mkfifo(root / "fifo")
    (root / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.open(root, os.O_RDONLY)
        unix.bind(f"/proc/self/fd/{here}/sock")
        os.close(here)
        for name in ("fifo", "sock", "folder"):
            with pytest.raises(NotRegular):
                tree.read(name, 100)
        assert found(tree, "*") == ()


@pytest.mark.root
def test_a_device_is_not_even_opened(root: Path, tree: Tree) -> None:
    """Opening some devices acts: a watchdog reboots the machine."""
    os.mknod(root / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    with pytest.raises(NotRegular):
        tree.read("zero", 100)


def test_a_huge_sparse_file_is_refused_without_being_read(root: Path, tree: Tree) -> None:
    """A terabyte of nothing costs the job one system call; it must not cost the agent an hour."""
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    began = time.monotonic()
    with pytest.raises(TooMuch):
        tree.read("sparse", 1 << 20)
    assert time.monotonic() - began < 1


def test_a_file_that_grows_while_it_is_read_stops_at_the_limit(root: Path, tree: Tree) -> None:
    """The size seen at first is a claim of the job."""
    (root / "log").write_bytes(b"x" * 10)
    pieces = tree.chunks("log", 10)
    assert next(pieces) == b"x" * 10
    with (root / "log").open("ab") as file:
        file.write(b"y" * 10)
    with pytest.raises(TooMuch):
        list(pieces)
    (root / "log").write_bytes(b"x" * 10)
    assert tree.read("log", 10) == b"x" * 10


def test_a_missing_file_is_told_from_a_forbidden_one(tree: Tree) -> None:
    """Outputs are optional: whoever asks needs to know."""
    with pytest.raises(NotThere):
        tree.read("no/such", 1)


def test_a_folder_swapped_for_a_link_in_mid_walk_shows_nothing_of_outside(root: Path, tree: Tree) -> None:
    """The classic race: a look, a swap, a read. Thousands of swaps, and not one read of the secret."""
    for name in ("real", "decoy"):
        (root / name).mkdir()
        (root / name / "secret").write_text("harmless")
    (root / "trap").symlink_to("../outside")
    stop = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        while not stop.is_set():
            (root / "real").rename(root / "away")
            (root / "trap").rename(root / "real")
            (root / "real").rename(root / "trap")
            (root / "away").rename(root / "real")
            swaps += 1

    thread = threading.Thread(target=swap)
    thread.start()
    refused = read = 0
    try:
        end = time.monotonic() + 20
        while not (refused > 20 and read > 20 and swaps > 200) and time.monotonic() < end:
            try:
                assert tree.read("real/secret", 100) == b"harmless"
                read += 1
            except (NotRegular, NotThere):
                refused += 1
            for path in found(tree, "**/secret"):
                try:
                    assert tree.read(path, 100) == b"harmless"
                except (NotRegular, NotThere):
                    refused += 1
    finally:
        stop.set()
        thread.join()
    assert refused > 20
    assert read > 20, "the race was never won by the honest side: the test shows nothing"


def test_globs_are_bounded_in_matches_entries_depth_and_time(root: Path, tree: Tree) -> None:
    """A job can make more files than the agent has patience."""
    for number in range(30):
        (root / f"f{number}").touch()
    deep = root
    for _ in range(40):
        deep = deep / "d"
        deep.mkdir()
    for bounds in (Bounds(matches=29), Bounds(entries=20), Bounds(depth=30), Bounds(seconds=-1)):
        with pytest.raises(TooMuch):
            found(tree, "**", bounds=bounds)
    assert len(found(tree, "**")) == 30


def test_only_folders_that_can_match_are_entered(root: Path, tree: Tree) -> None:
    """`dist/*.whl` in a tree with a million node modules looks at dist alone."""
    (root / "dist").mkdir()
    (root / "dist" / "a.whl").touch()
    (root / "node_modules").mkdir()
    for number in range(50):
        (root / "node_modules" / f"m{number}").touch()
    assert found(tree, "dist/*.whl", bounds=Bounds(entries=10)) == ("dist/a.whl",)


def test_a_placed_file_has_plain_permissions_its_owner_and_its_folders(root: Path, tree: Tree) -> None:
    """A setuid bit from another attempt's artifact must not come to life here."""
    with tree.place("a/b/tool", mode=0o6755, owner=None) as descriptor:
        os.write(descriptor, b"content")
    facts = (root / "a/b/tool").lstat()
    assert stat.S_IMODE(facts.st_mode) == 0o755
    assert (root / "a/b/tool").read_bytes() == b"content"


@pytest.mark.root
def test_placed_files_and_new_folders_belong_to_the_job(root: Path, tree: Tree) -> None:
    """The job must be able to remove them; folders that were there keep their owner."""
    (root / "old").mkdir()
    with tree.place("old/new/f", mode=0o644, owner=Owner(1234, 2345)):
        pass
    assert ((root / "old/new/f").lstat().st_uid, (root / "old/new/f").lstat().st_gid) == (1234, 2345)
    assert (root / "old/new").lstat().st_uid == 1234
    assert (root / "old").lstat().st_uid == 0


def test_nothing_that_stands_in_the_way_is_overwritten_or_followed(root: Path, tree: Tree) -> None:
    """Neither a file, nor a dangling link to where a file could be made, nor a link as a folder."""
    (root / "file").write_text("mine")
    (root / "dangling").symlink_to("../outside/new")
    (root / "folder").symlink_to("../outside")
    os.mkfifo(root / "fifo")
    for path in ("file", "dangling", "folder/x", "file/x", "fifo"):
        with pytest.raises(Occupied), tree.place(path, mode=0o644, owner=None):
            pass
        with pytest.raises(Occupied):
            tree.check_free(path)
    assert (root / "file").read_text() == "mine"
    assert sorted(p.name for p in (root.parent / "outside").iterdir()) == ["secret"]
    tree.check_free("free/as/air")


def test_a_file_whose_writing_fails_is_gone_again(root: Path, tree: Tree) -> None:
    """Half a download must not look like a whole one."""
    with pytest.raises(RuntimeError), tree.place("half", mode=0o644, owner=None):
        raise RuntimeError
    assert not (root / "half").exists()


def test_the_root_itself_may_not_be_a_link(tmp_path: Path) -> None:
    """Its last component is a name that a job may have been able to swap."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match="link"):
        Tree.open(tmp_path / "link")
