"""Coordinators as processes of their own; what one leaves behind fails its test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.seaweedfs import seaweedfs
from tests.integration.coordinator.processes import Daemon, agent, coordinator, forget_mounts, none_left

__all__ = ["seaweedfs"]

Make = Callable[..., Daemon]


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[list[Daemon]]:
    """All daemons of the test, ended in reverse."""
    made: list[Daemon] = []
    yield made
    for each in reversed(made):
        each.end()
    left = none_left(tmp_path, 20)
    forget_mounts(tmp_path)
    for file in tmp_path.glob("*/instance"):  # an agent that was killed leaves what the next start would remove
        shutil.rmtree(Path("/run/headrace", file.read_text().strip()), ignore_errors=True)
    assert not left


@pytest.fixture
def make_coordinator(tmp_path: Path, daemons: list[Daemon]) -> Make:
    """`make_coordinator("name", VARIABLE="value")`: not yet started."""

    def make(name: str = "c", **environment: str) -> Daemon:
        daemons.append(coordinator(tmp_path / name, **environment))
        return daemons[-1]

    return make


@pytest.fixture
def make_agent(tmp_path: Path, daemons: list[Daemon]) -> Make:
    """`make_agent(coordinator, "name")`: not yet started; the coordinator must be ready."""

    def make(of: Daemon, name: str = "a", **environment: str) -> Daemon:
        daemons.append(agent(tmp_path / name, of, name, **environment))
        return daemons[-1]

    return make
