"""The agent and the repository of every test here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.git_repo import Repository
from tests.integration.workspace.bench import Agent


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    (tmp_path / "state").mkdir(mode=0o700)
    return Agent(tmp_path / "state")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "served" / "shop")
