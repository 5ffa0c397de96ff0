"""Real daemons, as the tests of the coordinator start them, and several of them on one database."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness.command_line import CommandLine
from tests.harness.postgres import database_template, fresh_database, postgres_server
from tests.integration.coordinator.conftest import Make, daemons, make_agent, make_coordinator
from tests.integration.coordinator.processes import Daemon, client, share_secrets

__all__ = ["daemons", "database_template", "fresh_database", "make_agent", "make_coordinator", "postgres_server"]

LONG = os.environ.get("CHAOS_LONG", "") not in {"", "0"}
"""Whether the forms are wanted that take the times of production."""
long_form = pytest.mark.skipif(not LONG, reason="one of the long ones: CHAOS_LONG=1")


@dataclass
class Fleet:
    """Replicas on one database, with one set of tokens and one blob store."""

    folder: Path
    replicas: list[Daemon]

    @property
    def addresses(self) -> str:
        """All of them, as `HEADRACE_URL` takes them."""
        return ",".join(each.facts["address"] for each in self.replicas)

    def keep_ports(self) -> None:
        """A replica that is started again is found where it was."""
        for each in self.replicas:
            each.arguments["listen"] = each.facts["address"]

    def client(self, cwd: Path) -> CommandLine:
        """The command line of somebody who knows all addresses."""
        line = client(self.replicas[0], cwd, self.folder / "state")
        line.environment["HEADRACE_URL"] = self.addresses
        return line


@pytest.fixture
def make_fleet(tmp_path: Path, make_coordinator: Make, fresh_database: str) -> Callable[..., Fleet]:
    """`make_fleet(3, VARIABLE="value")`: so many replicas, ready."""

    def make(count: int, **environment: str) -> Fleet:
        shared = {
            "HEADRACE_DATABASE_URL": fresh_database,
            "HEADRACE_BLOB_URL": (tmp_path / "blobs").as_uri(),
            **environment,
        }
        replicas: list[Daemon] = []
        for number in range(count):
            replica = make_coordinator(f"replica{number}", **shared)
            if replicas:
                share_secrets(replicas[0].folder, replica.folder)
            replica.start()
            replicas.append(replica)
        fleet = Fleet(tmp_path, replicas)
        fleet.keep_ports()
        return fleet

    return make
