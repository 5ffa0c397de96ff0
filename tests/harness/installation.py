"""Headrace as another user of this machine has it: a wheel of this checkout, installed where everybody can read."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PLAIN_UID = pwd.getpwnam("nobody").pw_uid
"""A user without rights that every machine has: making one would change the machine."""


class NoInstallationError(Exception):
    """It cannot be made here; the message says why."""


@dataclass(frozen=True)
class Installation:
    """A virtual environment with Headrace in it."""

    folder: Path

    @property
    def headrace(self) -> tuple[str, ...]:
        """The command."""
        return (str(self.folder / "bin" / "headrace"),)


def public_python() -> str:
    """A Python that every user of the machine may run; this one may lie in somebody's home."""
    for candidate in ("/usr/bin/python3", "/usr/local/bin/python3"):
        done = subprocess.run(
            [candidate, "-c", "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"],
            capture_output=True,
            check=False,
        ) if Path(candidate).exists() else None  # fmt: skip
        if done is not None and done.returncode == 0:
            return candidate
    raise NoInstallationError("no Python 3.11 with venv for everybody: apt-get install python3-venv")


def install(folder: Path) -> Installation:
    """Builds the wheel and installs it with all extras below `folder`, with pip's own cache."""
    folder.mkdir(mode=0o755)
    source = folder / "source"
    clone(source)
    place = folder / "venv"
    _run([public_python(), "-m", "venv", str(place)])
    _run([str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", f"{source}[all]"])
    shutil.rmtree(source)
    return Installation(place)


def clone(target: Path, *, uid: int | None = None) -> None:
    """A fresh clone of HEAD, owned by `uid`."""
    _run(["git", "clone", "--quiet", f"file://{ROOT}", str(target)])
    if uid is not None:
        for path in (target, *target.rglob("*")):
            os.chown(path, uid, uid, follow_symlinks=False)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoInstallationError(f"{' '.join(command[:3])} failed: {done.stderr[-1500:]}")
