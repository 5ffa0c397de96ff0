"""The disk of the database is full: nothing new starts, `/readyz` says why, and all goes on when there is room."""

from __future__ import annotations

import asyncio
import os
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from headrace.client import Client, RetryPolicy, SyncClient
from headrace.errors import HeadraceError
from tests.chaos.test_overload import SOURCE
from tests.harness.waiting import wait_for
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon, token

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="a small disk of its own: a mount"),
]


MIB = 1 << 20
TEXT = b"name: p\nstages: [{name: s, jobs: {j: {network: none, checkout: false, steps: [{run: 'true'}]}}}]\n"
IMPATIENT = RetryPolicy(patience=0.0, patience_at_first=0.0)


def ready(of: Daemon) -> tuple[int, str]:
    """What `/readyz` answers."""
    try:
        with urllib.request.urlopen(f"http://{of.facts['http']}/readyz", timeout=20) as page:
            return page.status, page.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def create_until_refused(of: Daemon) -> tuple[list[int], str]:
    """Runs with long pipeline files, until one is refused; returns those that were made, and what was said then."""
    made = []
    async with Client(of.facts["address"], token(of, "client"), policy=IMPATIENT) as person:
        while len(made) < 200:
            try:
                made.append((await person.create_run(SOURCE, TEXT + b"# " + os.urandom(100_000).hex().encode())).id)
            except HeadraceError as error:
                return made, str(error)
    raise AssertionError("the disk was never full")


def test_a_full_disk_below_the_database_stops_what_is_new_and_is_told_until_there_is_room(
    make_coordinator: Make, make_agent: Make, tmp_path: Path
) -> None:
    """Heartbeats go on, for they take no room: a balancer and an operator have to hear of it all the same."""
    of = make_coordinator()
    of.folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=0700", "tmpfs", of.folder], check=True)
    of.start()
    assert ready(of)[0] == 200
    filler = of.folder / "filler"
    room = os.statvfs(of.folder)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - MIB)
    made, said = asyncio.run(create_until_refused(of))
    assert "No space left on device" in said
    code, why = ready(of)
    assert (code, why.count("\n")) == (503, 1), why
    assert why.startswith("the database cannot write: could not extend file")
    filler.unlink()
    wait_for(lambda: ready(of)[0] == 200, "it is ready again", 20)
    make_agent(of).start()
    person = SyncClient(of.facts["address"], token(of, "client"))
    made.append(person.create_run(SOURCE, TEXT).id)
    for run in made:
        wait_for(lambda run=run: person.run(run).ended_at, "what was made runs", 60)  # type: ignore[misc]  # mypy: the default
    assert of.process.poll() is None
    assert "Traceback" not in of.said
