"""The first version, built from its own commit, beside the one that is tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.postgres import database_template, fresh_database, postgres_server
from tests.integration.coordinator.conftest import daemons, make_coordinator

__all__ = ["daemons", "database_template", "fresh_database", "make_coordinator", "postgres_server"]

ROOT = Path(__file__).resolve().parents[3]
FIRST = "5ecce1091d7fa3a908a432c51ef784f0759f99ae"
"""The commit that counts as 0.1.0: promises to older agents start there."""


@pytest.fixture(scope="session")
def first_version(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `python -m headrace` is 0.1.0, with the libraries of the one that is tested."""
    folder = tmp_path_factory.mktemp("first")
    source = folder / "source"
    source.mkdir()
    archive = subprocess.run(["git", "archive", FIRST], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", f"--wheel-dir={folder}", source], check=True)
    (wheel,) = folder.glob("headrace-0.1.0-*.whl")
    subprocess.run([*pip, "install", "--no-deps", f"--target={folder / 'installed'}", wheel], check=True)
    return {"PYTHONPATH": str(folder / "installed")}
