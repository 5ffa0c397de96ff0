"""The command line, pointed at a fake coordinator over real gRPC."""

from __future__ import annotations

import pytest

from tests.harness.command_line import CommandLine, git_repository
from tests.harness.fake_coordinator import TOKEN, FakeCoordinator
from tests.harness.scripted_runs import PIPELINE, passes


@pytest.fixture
def world(tmp_path):
    """A repository, a fake coordinator, and `headrace` pointed at it."""

    class World:
        def __init__(self, script):
            self.fake = FakeCoordinator(script)
            self.fake.__enter__()
            self.commit = git_repository(tmp_path / "demo", {"headrace.yml": PIPELINE})
            self.headrace = CommandLine(
                tmp_path / "demo", tmp_path / "state", {"HEADRACE_URL": self.fake.address, "HEADRACE_TOKEN": TOKEN}
            )

    made = []

    def make(script=passes):
        made.append(World(script))
        return made[-1]

    yield make
    for each in made:
        each.fake.__exit__()
