"""Real code that is not ours: three projects test themselves in our sandboxes as they do by hand."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time

import pytest

from tests.harness import images
from tests.harness.foreign_code import PROJECTS, VENDORED, Project, counts, repository
from tests.harness.git_repo import git_daemon, http_backend

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.root,
    pytest.mark.docker,
    pytest.mark.skipif(os.geteuid() != 0, reason="a filtered network and debootstrap need root"),
]

VERSION = "SETUPTOOLS_SCM_PRETEND_VERSION"
"""What a build asks git's tags for, of which a source distribution has none."""


@pytest.fixture(scope="session")
def python_image(docker_engine) -> str:
    """Debian by debootstrap and `docker import`, with Python."""
    return images.debian(docker_engine, "python3,python3-venv")


def pipeline(project: Project, image: str) -> str:
    """In bubblewrap over the filtered network from the package index; in docker without any network."""
    indented = [textwrap.indent(project.script(index, "/tmp/venv"), " " * 14) for index in ("", VENDORED)]
    return f"""
name: {project.name}
env: {{{VERSION}: "1.0"}}
stages:
  - name: test
    jobs:
      bubblewrap:
        sandbox: bubblewrap
        network: full
        steps:
          - name: test
            run: |
{indented[0]}
      docker:
        image: "{image}"
        network: none
        steps:
          - name: test
            run: |
{indented[1]}
"""


@pytest.mark.parametrize("project", PROJECTS, ids=lambda each: each.name)
def test_a_project_passes_or_fails_in_a_sandbox_as_it_does_by_hand(scene, with_docker, python_image, project, capsys):
    """Served over git or http on loopback, checked out by commit: the same exit and the same counts."""
    made, commit = repository(project, scene.folder / "served" / "project", pipeline(project, python_image))
    by_hand = scene.folder / "by-hand"
    made.git("worktree", "add", "--quiet", "--detach", str(by_hand), commit)
    base = scene.folder / "served"
    with git_daemon(base) as git_url, http_backend(base) as (http_url, _):
        url = f"{http_url if project.name == 'jinja2' else git_url}/project/.git"
        began = time.monotonic()
        run = scene.start("run", "--repo", url, "--ref", commit, within="home")
        script = "set -e\n" + project.script(VENDORED, str(scene.folder / "venv"))
        (scene.folder / "hand-tmp").mkdir()
        surroundings = {VERSION: "1.0", "TMPDIR": str(scene.folder / "hand-tmp")}
        hand = scene.command(["bash", "-c", script], by_hand, **surroundings).end(300)
        done = run.end(400)
    took = time.monotonic() - began
    expected = counts(hand.out + hand.err)
    assert sum(expected.values()) > 500
    result = scene.json("show", "1", within="home")
    assert result["source"]["own_code"] is False
    assert result["source"]["commit"] == commit
    for job in result["jobs"]:
        log = scene("logs", "1", job["key"], within="home").out
        assert job["attempts"][-1]["steps"][0]["exit_code"] == hand.code, (job, log[-3000:])
        assert counts(log) == expected, (job["key"], log[-3000:])
    assert done.code == min(hand.code, 1)
    assert [job["key"] for job in result["jobs"]] == ["bubblewrap", "docker"]
    steps = {job["key"]: round(job["attempts"][-1]["steps_ms"] / 1000, 1) for job in result["jobs"]}
    with capsys.disabled():
        figures = {
            "project": project.name,
            "counts": expected,
            "exit": hand.code,
            "s": round(took, 1),
            "steps_s": steps,
        }
        sys.stdout.write(f"\n{json.dumps(figures)}\n")
