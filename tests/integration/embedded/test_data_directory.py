"""The data directory: one owner, one layout, secrets that stay."""

from __future__ import annotations

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coordinator.data_directory import LAYOUT, DataDirectory, DataDirectoryError, FolderInUse, write_once


def test_tokens_and_secrets_stay_the_same_and_are_for_the_owner_alone(tmp_path: Path) -> None:
    """A restart must not lock the fleet out; another user of the machine must not get in."""
    with DataDirectory(tmp_path / "d") as data:
        first = (data.client_token(), data.agent_token(), data.secret("urls"))
    with DataDirectory(tmp_path / "d") as data:
        assert (data.client_token(), data.agent_token(), data.secret("urls")) == first
    assert len(set(first)) == 3
    assert min(len(first[0]), len(first[1])) >= 43
    files = [path for path in (tmp_path / "d").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    folders = [tmp_path / "d", *(path for path in (tmp_path / "d").rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def test_a_second_coordinator_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    """Two coordinators on one directory would each believe themselves alone."""
    program = (
        "import pathlib, sys\nfrom coordinator.data_directory import DataDirectory\n"
        "with DataDirectory(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "d")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"in\n"
        with (
            pytest.raises(FolderInUse, match=f"in use by process {first.pid}: stop that one"),
            DataDirectory(tmp_path / "d"),
        ):
            pass
        first.kill()
    with DataDirectory(tmp_path / "d"):
        pass  # the kernel took the dead one's lock away


def test_a_newer_layout_is_refused_untouched(tmp_path: Path) -> None:
    """A step back to an older release must not eat what the newer one wrote."""
    with DataDirectory(tmp_path / "d"):
        pass
    (tmp_path / "d" / "version").write_text(f"{LAYOUT + 1}\n")
    with (
        pytest.raises(DataDirectoryError, match=f"layout {LAYOUT + 1}, newer than {LAYOUT}"),
        DataDirectory(tmp_path / "d"),
    ):
        pass
    assert (tmp_path / "d" / "version").read_text() == f"{LAYOUT + 1}\n"


@pytest.mark.parametrize("text", ["", "one", "-1", "0"])
def test_a_version_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    """It may be somebody else's folder: nothing is made in it."""
    (tmp_path / "version").write_text(text)
    with pytest.raises(DataDirectoryError, match="does not hold a version"), DataDirectory(tmp_path):
        pass


def test_a_damaged_token_is_named_and_not_used(tmp_path: Path) -> None:
    """An empty file as token would let everybody in."""
    with DataDirectory(tmp_path) as data:
        (tmp_path / "tokens" / "agent").write_text("\n")
        with pytest.raises(DataDirectoryError, match="damaged: remove it"):
            data.agent_token()


def test_of_two_that_write_a_token_at_once_both_see_one(tmp_path: Path) -> None:
    """A client that reads while the coordinator makes it must not hold another, or half of it."""
    with ThreadPoolExecutor(8) as pool:
        for number in range(50):
            file = tmp_path / str(number)
            seen = set(pool.map(lambda n, file=file: write_once(file, b"%d" % n * 1000), range(8)))
            assert len(seen) == 1
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_cannot_be_made_is_said_in_one_sentence(tmp_path: Path) -> None:
    """A mistyped path, where a file lies already."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataDirectoryError, match="cannot use the data directory"), DataDirectory(tmp_path / "file"):
        pass
