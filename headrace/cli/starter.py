"""The first headrace.yml of a repository, by what lies in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

_HEAD = """\
# The pipeline of this repository. `headrace run` runs it, on what is on disk now;
# `headrace validate headrace.yml` checks it, `--explain` shows the graph.
name: {name}

# Stages run in order, the jobs of a stage side by side. Each job has a sandbox of its own, with a
# checkout of the commit in it; its steps run one after the other, and the first that fails ends it.
stages:
"""

_PYTHON = """\
  - name: test
    jobs:
      unit:
        timeout: 20m
        steps:
          - name: install
            run: |
              python3 -m venv .venv
              .venv/bin/pip install {what}
          - name: tests
            run: {tests}
{reports}"""

_REPORTS = """\
        # What the tests said is shown by `headrace show`.
        reports: {junit: [report.xml]}
"""

_NODE = """\
  - name: test
    jobs:
      unit:
        timeout: 20m
        steps:
          - run: {install}
          - run: npm {tests}
"""

_GO = """\
  - name: test
    jobs:
      unit:
        timeout: 20m
        steps:
          - run: go build ./...
          - run: go vet ./...
          - run: go test ./...
"""

_SHELL = """\
  - name: test
    jobs:
      unit:
        timeout: 20m
        steps:
          - name: hello
            run: |
              echo "put the commands that check this repository here"
              ls
"""

_TAIL = """\
        # Without `image` the job runs in bubblewrap, with this machine's /usr; with it, in Docker:
        # image: "{image}"
        # Files to keep, or to hand to a later job with `- use: artifact/report`:
        # artifacts: [{{name: report, paths: ["report/**"], keep: 30d}}]
"""


def starter(folder: Path) -> tuple[str, str]:
    """What was found, and the text for it."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name).strip("-") or "pipeline"
    found, body, image = _body(folder)
    return found, _HEAD.format(name=name) + body + _TAIL.format(image=image)


def _body(folder: Path) -> tuple[str, str, str]:
    if any((folder / each).is_file() for each in ("pyproject.toml", "setup.py", "setup.cfg", "requirements.txt")):
        installable = any((folder / each).is_file() for each in ("pyproject.toml", "setup.py", "setup.cfg"))
        what = ". pytest" if installable else "-r requirements.txt pytest"
        tests, reports = ".venv/bin/python -m compileall -q -x '[.]venv' .", ""
        if _has_tests(folder):
            tests, reports = ".venv/bin/python -m pytest --junitxml=report.xml", _REPORTS
        return "Python", _PYTHON.format(what=what, tests=tests, reports=reports), "python:3.12-slim"
    if (folder / "package.json").is_file():
        install = "npm ci" if (folder / "package-lock.json").is_file() else "npm install"
        return "Node", _NODE.format(install=install, tests=_npm_tests(folder / "package.json")), "node:22-slim"
    if (folder / "go.mod").is_file():
        return "Go", _GO, "golang:1.23"
    return "a shell step", _SHELL, "debian:12-slim"


def _has_tests(folder: Path) -> bool:
    return any((folder / each).is_dir() for each in ("tests", "test")) or any(folder.glob("test_*.py"))


def _npm_tests(package: Path) -> str:
    try:
        scripts = json.loads(package.read_text(encoding="utf-8")).get("scripts", {})
        return "test" if "test" in scripts else "run --if-present build"
    except (OSError, ValueError, AttributeError, TypeError):
        return "test"
