"""The two ends of a followed run, against a fake coordinator: while it is being created, and once it has ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import Any

import grpc
import pytest

from headrace.cli.embedded import Endpoint, Owner
from headrace.cli.processes import Processes
from headrace.cli.working import wait_for_others
from headrace.client import Client
from headrace.v1 import common_pb2, run_pb2
from tests.harness.command_line import CommandLine, git_repository
from tests.harness.fake_coordinator import TOKEN, FakeCoordinator
from tests.harness.faults import Fault

OWNER = """
import asyncio, sys
from pathlib import Path
from headrace.cli.context import Link
from headrace.cli.embedded import Endpoint, Owner
from headrace.cli.processes import Interrupts, Processes
from headrace.cli.working import see_through

address, token, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
endpoint = Endpoint(address, token, 1, "", agent=True)
owner = Owner(endpoint, Processes(folder / "children.json", folder), "", folder)

async def follow():
    link = Link(address, token, endpoint=endpoint, owner=owner)
    async with link.client() as client:
        return await see_through(link, client, await client.run(1), folder, as_json=False)

with Interrupts().heeded():
    code = asyncio.run(follow())
    print("exit code", code)
    try:
        print("ready", flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        print("cleaned")
"""
SOURCE = common_pb2.Source(repository="demo", commit="0" * 40, url="https://example.org")


def passes(fake: FakeCoordinator, run_id: int) -> None:
    if run_id == 1:
        fake.set_run(run_id, state=common_pb2.RUN_STATE_PASSED, ended_ms=1_700_000_001_000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_will_not_wait_for_others_leaves_with_the_outcome_of_the_own_run_and_cleans_up(tmp_path, number):
    """A run that has passed has passed; and TERM goes on to mean: stop the daemons first."""
    with FakeCoordinator(passes) as fake:
        for n in range(2):
            fake.create(run_pb2.CreateRunRequest(request_id=f"request {n}", source=SOURCE))
        with subprocess.Popen(
            [sys.executable, "-c", OWNER, fake.address, TOKEN, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as owner:  # fmt: skip
            assert any("waiting for run 2" in line for line in owner.stderr)
            owner.send_signal(number)
            while (line := owner.stdout.readline()) and line != "ready\n":
                found = line
            assert found == "exit code 0\n"
            owner.send_signal(number)
            assert owner.communicate(timeout=20)[0] == "cleaned\n"
            assert owner.returncode == 0


class Busy(FakeCoordinator):
    """While a run of others is watched it ends; meanwhile the next one has been created, up to `most`."""

    def __init__(self, endpoint_file, most: int) -> None:
        super().__init__()
        self.endpoint_file, self.most = endpoint_file, most
        self.watched: list[int] = []
        self.findable: list[bool] = []
        self.new_run()

    def new_run(self) -> None:
        self.create(run_pb2.CreateRunRequest(request_id=f"request {len(self.runs)}", source=SOURCE))

    def admit(self, method: str, request: Any, context: Any) -> Any:
        if method == "Watch":
            self.watched.append(request.run_id)
            self.findable.append(self.endpoint_file.exists())
            if len(self.runs) < self.most:
                self.new_run()
            self.set_run(request.run_id, state=common_pb2.RUN_STATE_PASSED, ended_ms=1_700_000_001_000)
        return super().admit(method, request, context)


async def test_an_owner_waits_also_for_the_runs_that_begin_while_it_waits(tmp_path, capsys):
    """A run whose coordinator goes away with its first owner would be lost for no reason of its own."""
    with Busy(tmp_path / "endpoint.json", most=3) as fake:
        endpoint = Endpoint(fake.address, TOKEN, 1, "", agent=True)
        owner = Owner(endpoint, Processes(tmp_path / "children.json", tmp_path), "", tmp_path)
        owner.offer()
        async with Client(fake.address, TOKEN) as client:
            await wait_for_others(client, owner)
    assert fake.watched == [1, 2, 3]
    assert fake.findable == [True, True, True], "who waits for others can be found"
    assert not (tmp_path / "endpoint.json").exists(), "who goes can be found no more"
    assert "waiting for run 3" in capsys.readouterr().err


@pytest.fixture
def headrace(tmp_path):
    git_repository(
        tmp_path / "demo",
        {"headrace.yml": "name: demo\nstages: [{name: a, jobs: {b: {steps: [{run: 'true'}]}}}]\n"},
    )
    return CommandLine(tmp_path / "demo", tmp_path / "state", {"HEADRACE_TOKEN": TOKEN})


def test_ctrl_c_while_the_run_is_being_created_cancels_it(headrace):
    """The coordinator elsewhere would go on with a run that nobody has heard of."""
    asked, interrupted = threading.Event(), threading.Event()

    class Slow(FakeCoordinator):
        def create(self, request: run_pb2.CreateRunRequest) -> run_pb2.Run:
            asked.set()
            interrupted.wait(20)
            return super().create(request)

    with Slow() as fake:
        process = headrace.start("run", HEADRACE_URL=fake.address)
        assert asked.wait(20)
        process.send_signal(signal.SIGINT)
        interrupted.set()
        process.communicate(timeout=30)
        assert process.returncode == 130
        assert [each.run_id for each in fake.requests("Cancel")] == [1]


def test_a_run_that_passed_has_passed_though_its_artifacts_cannot_be_listed(headrace):
    """The exit code is the run's; what could not be shown is said."""
    with FakeCoordinator(passes) as fake:
        fake.faults["ListArtifacts"].append(Fault(grpc.StatusCode.INTERNAL, "oops"))
        done = headrace("run", HEADRACE_URL=fake.address)
    assert done.code == 0, done.err
    assert "artifacts of run 1 could not be listed" in done.err
