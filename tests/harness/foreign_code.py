"""Source distributions of well-known projects, from PyPI by their names, as git repositories that test themselves."""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.harness.git_repo import Repository
from tests.harness.images import CACHE


@dataclass(frozen=True)
class Project:
    """A project, what its build and its tests need, and how they are started in an environment of their own."""

    name: str
    build: tuple[str, ...]
    needs: tuple[str, ...]
    tests: str

    def script(self, index: str, environment: str) -> str:
        """The commands that install and test it; `index`: options of pip that say where packages come from."""
        return (
            f"python3 -m venv {environment}\n"
            f"{environment}/bin/pip install --quiet --disable-pip-version-check {index} . {' '.join(self.needs)}\n"
            f"{environment}/bin/python -m {self.tests}\n"
        )


PROJECTS = (
    Project(
        "attrs",
        ("hatchling", "hatch-vcs", "hatch-fancy-pypi-readme"),
        ("cloudpickle", "hypothesis", "pympler", "pytest", "pytest-xdist"),
        "pytest -q -p no:cacheprovider tests",
    ),
    Project("jinja2", ("flit_core<4",), ("pytest", "trio"), "pytest -q -p no:cacheprovider tests"),
    Project("more-itertools", ("flit_core>=4,<5",), (), "unittest"),
)
VENDORED = "--no-index --find-links wheels"


def repository(project: Project, folder: Path, pipeline: str) -> tuple[Repository, str]:
    """A repository with the project's source, the wheels that it needs in `wheels/`, and a pipeline; and its commit."""
    shutil.copytree(_fetched(project), folder)
    (folder / "headrace.yml").write_text(pipeline)
    (folder / ".gitignore").unlink(missing_ok=True)
    made = Repository(folder)
    return made, made.commit({}, f"{project.name} as published")


def _fetched(project: Project) -> Path:
    """The unpacked source distribution with its wheels, kept in the cache of the tests."""
    CACHE.mkdir(parents=True, exist_ok=True)
    place = CACHE / "foreign" / project.name
    with (CACHE / "foreign.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            place.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                _download(project, Path(folder)).rename(place)
    return place


def _download(project: Project, folder: Path) -> Path:
    def pip(*words: str) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    pip("--no-deps", "--no-binary", ":all:", "--dest", str(folder / "sdist"), project.name)
    (archive,) = (folder / "sdist").iterdir()
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    wheels = str(source / "wheels")
    pip("--only-binary", ":all:", "--dest", wheels, *project.build, *project.needs, *_requirements(source))
    return source


def _requirements(source: Path) -> list[str]:
    """What the project needs when it runs, as its published metadata say."""
    lines = (source / "PKG-INFO").read_text(encoding="utf-8").splitlines()
    found = (re.match(r"Requires-Dist: ([^;]+)$", line) for line in lines)
    return [each[1].strip() for each in found if each]


def counts(text: str) -> dict[str, int]:
    """What a test runner counted: pytest's last line, or unittest's `Ran 929 tests` with its failures."""
    last = [line for line in text.splitlines() if re.search(r"\d+ passed|\d+ failed", line) and " in " in line]
    if last:
        pairs = re.findall(r"(\d+) (passed|failed|skipped|xfailed|xpassed|errors?|deselected)", last[-1])
        return {word: int(number) for number, word in pairs}
    ran = re.search(r"Ran (\d+) tests", text)
    assert ran, text[-2000:]
    others = re.search(r"^(?:OK|FAILED)(?: \((.*)\))?\s*$", text, re.MULTILINE)
    pairs = re.findall(r"(\w+)=(\d+)", others[1] or "") if others else []
    return {"ran": int(ran[1])} | {word: int(number) for word, number in pairs}
