"""Coordinators whose database stands behind pgbouncer in transaction mode."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from coordinator.store.embedded import EmbeddedPostgres
from tests.harness.command_line import git_repository
from tests.harness.pgbouncer import PgBouncer
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import client

pytestmark = pytest.mark.timeout(180)

STEP = "{sandbox: bubblewrap, network: none, steps: [{run: 'echo through'}]}"
PIPELINE = (
    f"name: pooled\nstages: [{{name: a, jobs: {{one: {STEP}, two: {STEP}}}}}, {{name: b, jobs: {{last: {STEP}}}}}]\n"
)
SEEN = "SELECT application_name, count(*) FROM pg_stat_activity WHERE datname = 'headrace' GROUP BY 1"


async def test_two_replicas_an_agent_and_a_run_through_a_pooler(
    make_coordinator: Make, make_agent: Make, tmp_path: Path
) -> None:
    """What one replica was asked, the agent of the other does. Both share three sessions, and listen beside them."""
    git_repository(tmp_path / "repository", {"headrace.yml": PIPELINE})
    async with EmbeddedPostgres(tmp_path / "pg") as postgres:
        with PgBouncer(postgres.dsn, tmp_path, size=3) as pooler:
            addresses = {
                "HEADRACE_DATABASE_URL": pooler.dsn_of(postgres.dsn),
                "HEADRACE_DATABASE_DIRECT_URL": postgres.dsn,
                "HEADRACE_BLOB_URL": f"file://{tmp_path / 'blobs'}",
            }
            one, two = make_coordinator("one", **addresses), make_coordinator("two", **addresses)
            one.start()
            two.start()
            worker = make_agent(one)
            worker.start()
            line = client(two, tmp_path / "repository", tmp_path)
            for _ in range(3):
                ended = line("run", "headrace.yml")
                assert (ended.code, ended.out.count("through") >= 3) == (0, True), ended.err + one.said + two.said
            db = await asyncpg.connect(postgres.dsn, server_settings={"application_name": "test"})
            try:
                seen = {row[0]: row[1] for row in await db.fetch(SEEN)}
            finally:
                await db.close()
            assert seen["headrace listen"] == 2
            assert 0 < seen["headrace"] <= 3
            assert set(seen) == {"headrace", "headrace listen", "test"}
            assert [each.terminate() for each in (worker, two, one)] == [0, 0, 0]
    assert "Traceback" not in one.said + two.said


async def test_a_pooler_without_a_direct_address_is_one_sentence(make_coordinator: Make, tmp_path: Path) -> None:
    """Exit 2, and the setting that mends it, before anything is migrated."""
    async with EmbeddedPostgres(tmp_path / "pg") as postgres:
        with PgBouncer(postgres.dsn, tmp_path) as pooler:
            code, sentence = make_coordinator(HEADRACE_DATABASE_URL=pooler.dsn_of(postgres.dsn)).refuse()
    assert (code, sentence.count("\n")) == (2, 0), sentence
    assert "HEADRACE_DATABASE_DIRECT_URL" in sentence


def test_a_direct_address_alone_is_one_sentence(make_coordinator: Make) -> None:
    """It would be passed over, and an embedded database started instead."""
    code, sentence = make_coordinator(HEADRACE_DATABASE_DIRECT_URL="postgresql://db/headrace").refuse()
    assert code == 2
    assert "HEADRACE_DATABASE_URL" in sentence
