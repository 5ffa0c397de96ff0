"""A coordinator and an agent, both real, and a real Prometheus that watches them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.command_line import CommandLine, git_repository
from tests.integration.coordinator.processes import Daemon, agent, client, coordinator, forget_mounts, none_left
from tests.integration.metrics.prometheus import Prometheus, prometheus


def pipeline(name: str, script: str, jobs: int = 1) -> str:
    """Jobs without network that run one script."""
    one = f"{{sandbox: bubblewrap, network: none, grace: 1s, steps: [{{run: '{script}'}}]}}"
    listed = ", ".join(f"j{number}: {one}" for number in range(jobs))
    return f"name: {name}\nstages: [{{name: a, jobs: {{{listed}}}}}]\n"


PIPELINES = {
    "passing.yml": pipeline("passing", "seq 1 2000"),
    "failing.yml": pipeline("failing", "exit 3"),
    "slow.yml": pipeline("slow", "echo at work; sleep 600", jobs=3),
}


@dataclass(frozen=True)
class Fleet:
    """One coordinator, one agent with two slots, and who watches them."""

    coordinator: Daemon
    agent: Daemon
    line: CommandLine
    prometheus: Prometheus

    def page(self, of: Daemon, path: str = "metrics") -> str:
        """The address of a page."""
        return f"http://{of.facts['http']}/{path}"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("f")
    git_repository(folder / "repository", PIPELINES)
    first = coordinator(folder / "c")
    second: Daemon | None = None
    try:
        first.start()
        second = agent(folder / "a", first, "measured")
        second.start()
        line = client(first, folder / "repository", folder)
        with prometheus(
            _made(folder / "p"), {"coordinator": first.facts["http"], "agent": second.facts["http"]}
        ) as found:
            yield Fleet(first, second, line, found)
    finally:
        for each in (second, first):
            if each is not None:
                each.end()
        left = none_left(folder, 20)
        forget_mounts(folder)
    assert not left


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
