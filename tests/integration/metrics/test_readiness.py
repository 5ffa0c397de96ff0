"""`/healthz` and `/readyz` when the database goes away and comes back."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from coordinator.store.embedded import EmbeddedPostgres
from tests.harness.command_line import CommandLine, git_repository
from tests.integration.coordinator.processes import (
    Daemon,
    agent,
    client,
    coordinator,
    forget_mounts,
    none_left,
    processes_of,
)
from tests.integration.metrics.conftest import pipeline
from tests.integration.metrics.prometheus import get, until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[list[Daemon]]:
    """All daemons of the test, ended in reverse."""
    made: list[Daemon] = []
    yield made
    for each in reversed(made):
        each.end()
    left = none_left(tmp_path / "fleet", 20)
    forget_mounts(tmp_path)
    assert not left


def code(of: Daemon, page: str) -> int:
    return get(f"http://{of.facts['http']}/{page}")[0]


SERVICES = ("", *(f"headrace.v1.{name}Service" for name in ("Agent", "Run", "Log", "Blob", "Fleet")))


def health(of: Daemon) -> set[str]:
    """What the coordinator says over gRPC of itself and of each of its services."""
    with grpc.insecure_channel(of.facts["address"]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answers = [stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20) for name in SERVICES]
    return {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) for answer in answers}


async def test_readyz_is_false_without_the_database_and_true_again_with_it(
    daemons: list[Daemon], tmp_path: Path
) -> None:
    """A balancer must look elsewhere, an orchestrator must not kill: not ready, but healthy; a balancer that speaks
    gRPC is told the same. And the outage of the
    database costs nobody a job: one that ran through it ends as if nothing had happened, after one attempt."""
    fleet = tmp_path / "fleet"
    fleet.mkdir()
    git_repository(fleet / "repository", {"through.yml": pipeline("through", "echo before; sleep 25; echo after")})
    async with EmbeddedPostgres(tmp_path / "pg") as postgres:
        first = coordinator(fleet / "c", HEADRACE_DATABASE_URL=postgres.dsn)
        daemons.append(first)
        first.start()
        daemons.append(second := agent(fleet / "a", first, "steady"))
        second.start()
        assert [code(first, "readyz"), code(second, "readyz")] == [200, 200]
        assert health(first) == {"SERVING"}
        line = client(first, fleet / "repository", fleet)
        assert line("run", "through.yml", "--detach").code == 0
        until(lambda: "before" in line("logs", "1").out, 30, lambda: second.said)

    until(lambda: code(first, "readyz") == 503, 30, lambda: first.said)
    assert "database" in get(f"http://{first.facts['http']}/readyz")[1]
    until(lambda: health(first) == {"NOT_SERVING"}, 5, lambda: first.said)
    assert code(first, "healthz") == 200
    assert "headrace_log_bytes_total" in get(f"http://{first.facts['http']}/metrics")[1]
    until(lambda: code(second, "readyz") == 503, 30, lambda: second.said)
    assert code(second, "healthz") == 200

    async with EmbeddedPostgres(tmp_path / "pg"):
        until(lambda: code(first, "readyz") == 200, 30, lambda: first.said)
        until(lambda: health(first) == {"SERVING"}, 5, lambda: first.said)
        until(lambda: code(second, "readyz") == 200, 30, lambda: second.said)
        until(lambda: _run(line)["state"] not in {"running", "pending"}, 60, lambda: second.said)
        shown = _run(line)
        assert [each["state"] for job in shown["jobs"] for each in job["attempts"]] == ["passed"]
        assert "before\nafter" in line("logs", "1").out
        assert second.terminate() == 0
        assert first.terminate() == 0
    assert "Traceback" not in first.said + second.said


async def test_a_database_that_may_only_be_read_stops_dispatch_and_readyz_says_why(
    daemons: list[Daemon], tmp_path: Path
) -> None:
    """After a failover to a standby nothing can be promised. When it takes commits again work goes on by itself."""
    fleet = tmp_path / "fleet"
    fleet.mkdir()
    git_repository(fleet / "repository", {"through.yml": pipeline("through", "echo done")})
    async with EmbeddedPostgres(tmp_path / "pg") as postgres:
        daemons.append(first := coordinator(fleet / "c", HEADRACE_DATABASE_URL=postgres.dsn))
        first.start()
        daemons.append(second := agent(fleet / "a", first, "steady"))
        second.start()
        line = client(first, fleet / "repository", fleet)
        await _set_read_only(postgres.dsn, value="on")
        until(lambda: code(first, "readyz") == 503, 30, lambda: first.said)
        said = get(f"http://{first.facts['http']}/readyz")[1]
        assert re.search("cannot execute [A-Z ]+ in a read-only transaction", said), "whatever it was that was refused"
        await _set_read_only(postgres.dsn, value="off")
        until(lambda: code(first, "readyz") == 200, 30, lambda: first.said)
        ended = line("run", "through.yml")
        assert (ended.code, "done" in ended.out) == (0, True), ended.err
        assert second.terminate() == 0
        assert first.terminate() == 0
    assert "Traceback" not in first.said + second.said


async def _set_read_only(dsn: str, *, value: str) -> None:
    """As a standby is: for all who connect from now on, and all others are cut off."""
    db = await asyncpg.connect(dsn, server_settings={"default_transaction_read_only": "off"})
    try:
        await db.execute(f"ALTER DATABASE headrace SET default_transaction_read_only = {value}")
        await db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    finally:
        await db.close()


def _run(line: CommandLine) -> dict[str, Any]:
    return dict(json.loads(line("show", "1", "--json").out))


async def test_a_database_that_hangs_does_not_take_the_metrics_with_it(daemons: list[Daemon], tmp_path: Path) -> None:
    """A scrape that waits for the database is no scrape, just when somebody looks: counters are told without it."""
    async with EmbeddedPostgres(tmp_path / "pg") as postgres:
        (tmp_path / "fleet").mkdir()
        daemons.append(first := coordinator(tmp_path / "fleet/c", HEADRACE_DATABASE_URL=postgres.dsn))
        first.start()
        page = f"http://{first.facts['http']}/metrics"
        assert get(page)[0] == 200
        servers = [int(each.split()[0]) for each in processes_of(tmp_path / "pg/data")]
        assert postgres.pid in servers
        try:
            for pid in servers:
                os.kill(pid, signal.SIGSTOP)
            for _ in range(3):
                status, body = get(page, seconds=6)
                assert status == 200
                assert "process_resident_memory_bytes" in body
            until(lambda: code(first, "readyz") == 503, 30, lambda: first.said)
        finally:
            for pid in servers:
                os.kill(pid, signal.SIGCONT)
        until(lambda: code(first, "readyz") == 200, 60, lambda: first.said)
        assert first.terminate() == 0
