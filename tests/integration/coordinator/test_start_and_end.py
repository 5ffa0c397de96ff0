"""How a coordinator starts, refuses to start, and ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.v1 import fleet_pb2, fleet_pb2_grpc
from tests.harness.command_line import git_repository
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon, bearer, client, none_left, processes_of, token

pytestmark = pytest.mark.timeout(180)

PIPELINE = "name: kept\nstages: [{name: a, jobs: {unit: {steps: [{run: 'true'}]}}}]\n"


@pytest.mark.parametrize("port", ["listen", "http-listen", "blob-listen"])
def test_a_port_in_use_is_one_sentence(make_coordinator: Make, port: str) -> None:
    """Exit 2, the address and the setting that mends it; the other program keeps its port."""
    daemon = make_coordinator()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon.arguments[port] = address
        code, sentence = daemon.refuse()
    assert code == 2
    assert sentence.startswith(f"headrace coordinator: cannot listen on {address}"), sentence
    assert f"HEADRACE_{port.upper().replace('-', '_')}" in sentence
    assert sentence.count("\n") == 0
    assert none_left(daemon.folder, 5) == []


def test_a_data_directory_in_use_is_refused_and_its_owner_undisturbed(make_coordinator: Make) -> None:
    """Two databases on the same files would be the end of both."""
    first, second = make_coordinator("same"), make_coordinator("other")
    first.start()
    second.folder = first.folder
    code, sentence = second.refuse()
    assert (code, sentence.count("\n")) == (2, 0), sentence
    assert str(first.folder) in sentence
    assert first.process.poll() is None
    assert client(first, first.folder.parent, first.folder.parent)("pools").code == 0


def test_a_data_directory_of_a_newer_version_is_refused_untouched(make_coordinator: Make) -> None:
    """An older program would misread what a newer one wrote."""
    daemon = make_coordinator()
    daemon.folder.mkdir(mode=0o700)
    (daemon.folder / "version").write_text("99\n")
    code, sentence = daemon.refuse()
    assert (code, sentence.count("\n")) == (2, 0), sentence
    assert "layout 99, newer than" in sentence
    assert not (daemon.folder / "postgres").exists()


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("HEADRACE_LISTEM", "127.0.0.1:1", "HEADRACE_LISTEN"),
        ("HEADRACE_LEASE_S", "soon", "HEADRACE_LEASE_S"),
        ("HEADRACE_HTTP_LISTEN", "0.0.0.0:0", "HEADRACE_INSECURE"),
        ("HEADRACE_BLOB_URL", "ftp://x/y", "blob store"),
        ("HEADRACE_KEEP_RUNS", "5m", "HEADRACE_KEEP_RUNS"),
    ],
)
def test_a_setting_that_is_wrong_is_one_sentence_with_its_mend(
    make_coordinator: Make, name: str, value: str, word: str
) -> None:
    """Exit 2 before anything is served, and no traceback."""
    daemon = make_coordinator(**{name: value})
    if name == "HEADRACE_HTTP_LISTEN":
        del daemon.arguments["http-listen"]
    code, sentence = daemon.refuse()
    assert (code, sentence.count("\n")) == (2, 0), sentence
    assert word in sentence


def test_blobs_on_all_addresses_need_the_name_by_which_they_are_reached(make_coordinator: Make) -> None:
    """`0.0.0.0` in a signed URL would send every agent to itself."""
    daemon = make_coordinator(HEADRACE_INSECURE="true")
    daemon.arguments["blob-listen"] = "0.0.0.0:0"
    code, sentence = daemon.refuse()
    assert (code, sentence.count("\n")) == (2, 0), sentence
    assert "HEADRACE_BLOB_PUBLIC_URL" in sentence


def test_a_database_that_cannot_be_reached_is_one_sentence(make_coordinator: Make, tmp_path: Path) -> None:
    """Exit 3, and the password of the URL is not shown."""
    daemon = make_coordinator(HEADRACE_DATABASE_URL=f"postgresql://x:sesame@/x?host={tmp_path}")
    code, sentence = daemon.refuse()
    assert (code, sentence.count("\n")) == (3, 0), sentence
    assert "sesame" not in daemon.said


def test_a_restart_finds_its_data_and_its_tokens_again(make_coordinator: Make, tmp_path: Path) -> None:
    """The embedded database is no toy: what was committed is there, and nobody has to be given a new token."""
    daemon = make_coordinator()
    daemon.start()
    tokens = token(daemon, "client"), token(daemon, "agent")
    git_repository(tmp_path / "repository", {"headrace.yml": PIPELINE})
    line = client(daemon, tmp_path / "repository", tmp_path)
    assert line("pools", "pause", "default").code == 0
    assert line("run", "--detach").code == 0
    assert daemon.terminate() == 0

    daemon.start()
    assert (token(daemon, "client"), token(daemon, "agent")) == tokens
    line = client(daemon, tmp_path / "repository", tmp_path)
    pools = {each["name"]: each["paused"] for each in json.loads(line("pools", "--json").out)}
    assert pools["default"] is True
    assert json.loads(line("show", "1", "--json").out)["pipeline"] == "kept"


def test_sigterm_leaves_no_process_within_five_seconds(make_coordinator: Make, make_agent: Make) -> None:
    """Also while agents are connected and somebody watches: an open stream must hold neither the coordinator nor
    its database."""
    daemon = make_coordinator()
    daemon.start()
    make_agent(daemon).start()
    assert any("postgres" in each for each in processes_of(daemon.folder))
    with grpc.insecure_channel(daemon.facts["address"]) as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        stream = stub.WatchAgents(fleet_pb2.WatchAgentsRequest(), metadata=bearer(token(daemon, "client")))
        next(stream)
        began = time.monotonic()
        assert daemon.terminate(5) == 0
        assert none_left(daemon.folder, 5 - (time.monotonic() - began)) == []
        with pytest.raises(grpc.RpcError):
            list(stream)


def test_a_coordinator_that_stops_says_so_before_it_is_gone(make_coordinator: Make) -> None:
    """A balancer that watches its health sends nobody to a port that is about to close."""
    daemon = make_coordinator()
    daemon.start()
    with grpc.insecure_channel(daemon.facts["address"]) as channel:
        request = health_pb2.HealthCheckRequest(service="headrace.v1.AgentService")
        watched = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=60)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        daemon.process.terminate()
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert daemon.process.wait(10) == 0


def test_sigterm_during_the_first_start_leaves_no_process(make_coordinator: Make) -> None:
    """An operator who thinks better of it must not have to look for a postmaster."""
    daemon = make_coordinator()
    daemon._launch()
    end = time.monotonic() + 30
    while not processes_of(daemon.folder / "postgres") and time.monotonic() < end:
        time.sleep(0.01)
    daemon.process.terminate()
    daemon.process.wait(30)
    assert none_left(daemon.folder, 5) == []


def test_a_postgres_that_dies_ends_its_coordinator(make_coordinator: Make) -> None:
    """Whoever started the coordinator starts both anew; a coordinator without database would only look alive."""
    daemon = make_coordinator()
    daemon.start()
    os.kill(postmaster(daemon), signal.SIGKILL)
    assert daemon.process.wait(20) == 3
    assert daemon.sentence.count("\n") == 0
    assert "the embedded PostgreSQL has ended with code -9" in daemon.sentence
    assert none_left(daemon.folder, 10) == []
    daemon.start()  # crash recovery, and the same data


def postmaster(daemon: Daemon) -> int:
    return int((daemon.folder / "postgres/data/postmaster.pid").read_text().split("\n", 1)[0])
