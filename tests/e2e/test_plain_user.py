"""Headrace in the hands of a user without any right, and of root in root's own home."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.scene import Scene, User
from tests.harness.installation import PLAIN_UID, Installation, NoInstallationError, install
from tests.harness.sandbox_world import cannot

pytestmark = [
    pytest.mark.timeout(420),
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user"),
]

PIPELINE = """
name: plain
stages:
  - name: build
    jobs:
      make:
        network: none
        steps: [{run: "id -u; python3 -c 'print(6 * 7)'; mkdir dist; cp note.txt dist/"}]
        artifacts: [{name: dist, paths: ["dist/*"]}]
  - name: test
    jobs:
      look: {steps: [{use: artifact/dist}, {run: "cat dist/note.txt; ls /root 2>&1 || true"}]}
"""
FAILING = "name: f\nstages: [{name: a, jobs: {j: {steps: [{name: no, run: 'echo last; exit 9'}]}}}]\n"


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """A wheel of this checkout that everybody can run."""
    folder = Path(f"/tmp/hr-e2e-{os.getpid()}-installation")
    try:
        yield install(folder)
    except NoInstallationError as error:
        cannot(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def plain(leftovers, installation):
    """The scene of a user without any right."""
    made = Scene(leftovers.scratch, User(installation.headrace, PLAIN_UID))
    yield made
    made.close()


def test_a_plain_user_builds_in_bubblewrap(plain):
    """No root, no Docker: the same run, the same artifact, nothing left."""
    repository = plain.repository(PIPELINE, {"note.txt": "mine\n"})
    (repository.path / "note.txt").write_text("edited\n")
    done = plain("run")
    assert done.code == 0, done.out + done.err
    assert "make | 42\n" in done.out
    assert "sandbox bubblewrap" in done.out
    assert "look | edited\n" in done.out
    saved = plain.state / "artifacts" / "1" / "dist"
    assert f"artifact dist (1 file, 7 B): {saved}" in done.out
    assert next(saved.rglob("note.txt")).stat().st_uid == PLAIN_UID
    assert plain.json("show")["state"] == "passed"
    assert "42\n" in plain("logs", "1", "make").out


def test_a_failure_of_a_plain_user_is_told_as_any_other(plain):
    """Exit 1, with job, step, exit code and last lines."""
    plain.repository(FAILING)
    done = plain("run")
    assert done.code == 1, done.out + done.err
    assert "job j failed (step_failed) in step 1, no: exit code 9" in done.out
    assert "  | last\n" in done.out


def test_root_builds_in_a_clone_below_its_own_home(leftovers):
    """/root is closed to every other uid, the jobs' uids among them."""
    home = Path("/root") / leftovers.scratch.name
    home.mkdir(mode=0o700)
    made = Scene(home)
    try:
        made.repository(PIPELINE, {"note.txt": "mine\n"})
        done = made("run")
        assert done.code == 0, done.out + done.err
        assert "look | mine\n" in done.out
        made.close()
        found = type(leftovers).begin(home).found()
        assert not found, found
    finally:
        made.close()
        shutil.rmtree(home)
