"""The database has done it, and the replica never hears so: nothing is done twice, and nothing is left undone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from coordinator.store.sql import statements
from headrace.client import Client, RetryPolicy, Source
from headrace.client.types import LogBytes, LogEnd
from tests.chaos.answers import CUT, HELD, Answers
from tests.chaos.conftest import LONG
from tests.harness.postgres import TestServer
from tests.integration.coordinator.processes import (
    Daemon,
    agent,
    coordinator,
    forget_mounts,
    none_left,
    share_secrets,
    token,
)

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="session")]

SOURCE = Source(repository="https://git.example/a.git", url="https://git.example/a.git", commit="0" * 40)
HOWS = [CUT, HELD] if LONG else [CUT]
"""A driver that hears nothing waits for 15 s: only the long form waits for it, in each test."""
DISPATCH, LOGS, RUNS = (statements(name) for name in ("dispatch", "logs", "runs"))
LINES = 40


@dataclass
class Scene:
    """A replica that reaches its database through the proxy, with an agent; another one with a line of its own."""

    folder: Path
    proxy: Answers
    through: Daemon
    beside: Daemon
    db: asyncpg.Connection
    agent: Daemon

    async def run(self, *stages: str, at: Daemon | None = None) -> int:
        """Has a run made at a replica (the one beside), waits for its end; returns its id. `stages`: an environment
        each, or nothing; each has one job, `job0` and so on.
        """
        script = (
            f'echo "$HEADRACE_RUN_ID $HEADRACE_JOB" >> {self.folder}/ledger; echo "fence $HEADRACE_FENCING_TOKEN"\n'
        )
        script += f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i + 1)); done"
        made = [
            {"name": f"s{n}", "jobs": {f"job{n}": {"sandbox": "host", "checkout": False, "steps": [{"run": script}]}}}
            | ({"environment": stage} if stage else {})
            for n, stage in enumerate(stages)
        ]
        text = json.dumps({"name": "answers", "stages": made}).encode()
        where = (at or self.beside).facts["address"]
        policy = RetryPolicy(patience_at_first=60)
        async with Client(where, token(self.through, "client"), policy=policy) as client:
            run = await client.create_run(SOURCE, text)
            async for change in client.watch(run.id):
                assert change.run is None or change.run.state != "blocked"
        return run.id

    async def begun(self, run: int) -> dict[str, list[str]]:
        """By job: the states of its attempts that have begun, in order."""
        rows = await self.db.fetch(
            "SELECT j.key, a.state FROM attempt a JOIN job j ON j.id = a.job_id"
            " WHERE a.run_id = $1 AND a.started_at IS NOT NULL ORDER BY a.id",
            run,
        )
        found: dict[str, list[str]] = {row["key"]: [] for row in rows}
        for row in rows:
            found[row["key"]].append(row["state"])
        return found

    async def judge(self, run: int, *jobs: str) -> None:
        """Everything was done once, and each byte of the logs is there once."""
        ledger = (self.folder / "ledger").read_text().splitlines()
        assert [line.split()[1] for line in ledger if line.split()[0] == str(run)] == list(jobs)
        assert await self.db.fetchval("SELECT state FROM run WHERE id = $1", run) == "passed"
        async with Client(self.beside.facts["address"], token(self.through, "client")) as client:
            for job in jobs:
                text, ends = b"", []
                async for record in client.tail(run, job):
                    if isinstance(record, LogBytes) and not record.ours:
                        text += record.data
                    elif isinstance(record, LogEnd):
                        ends.append(record.complete)
                said = text.decode().splitlines()
                assert (said[1:], ends) == ([f"line {n}" for n in range(LINES)], [True])

    def was_swallowed(self, *tags: str) -> None:
        """The server has answered that it has committed, once, and nobody heard it."""
        (only,) = self.proxy.swallowed
        assert only.committed
        assert only.tags == tags
        self.proxy.swallowed.clear()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def scene(postgres_server: TestServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("answers")
    dsn = await postgres_server.create_database()
    daemons: list[Daemon] = []
    with Answers(dsn) as proxy:
        settings = {"HEADRACE_BLOB_URL": (folder / "blobs").as_uri(), "HEADRACE_HEARTBEAT_S": "1"}
        beside = coordinator(folder / "beside", HEADRACE_DATABASE_URL=dsn, **settings)
        through = coordinator(folder / "through", HEADRACE_DATABASE_URL=proxy.dsn, **settings)
        daemons += [beside, through]
        beside.start()
        share_secrets(beside.folder, through.folder)
        through.start()
        worker = agent(folder / "agent", through, "a", HEADRACE_ALLOW_HOST="true")
        daemons.append(worker)
        worker.start()
        db = await asyncpg.connect(dsn)
        yield Scene(folder, proxy, through, beside, db, worker)
        await db.close()
        for each in reversed(daemons):
            each.end()
    left = none_left(folder, 20)
    forget_mounts(folder)
    await postgres_server.drop_database(dsn)
    assert not left


@pytest.mark.parametrize("how", HOWS)
async def test_a_claim_that_nobody_heard_of_is_claimed_again(scene: Scene, how: str) -> None:
    """Nobody would ever send these assignments: the session ends, and the next Hello gives them back."""
    scene.proxy.swallow(DISPATCH.lease, how)
    run = await scene.run("")
    scene.was_swallowed("COMMIT")
    assert await scene.begun(run) == {"job0": ["passed"]}
    first = await scene.db.fetchrow("SELECT state, started_at FROM attempt WHERE run_id = $1 ORDER BY id LIMIT 1", run)
    assert tuple(first) == ("returned", None)
    await scene.judge(run, "job0")


@pytest.mark.parametrize("how", HOWS)
async def test_a_permit_that_nobody_heard_of_is_given_again_to_the_same_supervisor(scene: Scene, how: str) -> None:
    """And to nobody else: it starts once, with the number that was made for it."""
    scene.proxy.swallow(DISPATCH.permit, how)
    run = await scene.run("production")
    scene.was_swallowed("COMMIT")
    assert await scene.begun(run) == {"job0": ["passed"]}
    await scene.judge(run, "job0")


@pytest.mark.parametrize("how", HOWS)
async def test_an_outcome_that_nobody_heard_of_is_handed_in_again_and_counts_once(scene: Scene, how: str) -> None:
    """What follows was decided with it: the next stage starts, once, although its bell was never rung."""
    scene.proxy.swallow(DISPATCH.delete_leases, how)
    run = await scene.run("", "staging")
    scene.was_swallowed("COMMIT")
    assert await scene.begun(run) == {"job0": ["passed"], "job1": ["passed"]}
    await scene.judge(run, "job0", "job1")


@pytest.mark.parametrize("how", HOWS)
async def test_log_records_that_nobody_knows_are_stored_are_not_stored_twice(scene: Scene, how: str) -> None:
    """The agent sends all of them again, over another connection."""
    scene.proxy.swallow(LOGS.append, how)
    run = await scene.run("")
    await scene.judge(run, "job0")
    (only,) = scene.proxy.swallowed
    assert only.tags[0].startswith("SELECT ")
    scene.was_swallowed(*only.tags)
    assert await scene.begun(run) == {"job0": ["passed"]}


@pytest.mark.parametrize("how", HOWS)
async def test_a_run_that_nobody_heard_of_is_not_made_twice(scene: Scene, how: str) -> None:
    """The client asks again, under the same request id."""
    before = await scene.db.fetchval("SELECT count(*) FROM run")
    scene.proxy.swallow(RUNS.insert_run, how)
    run = await scene.run("", at=scene.through)
    scene.was_swallowed("COMMIT")
    assert await scene.db.fetchval("SELECT count(*) FROM run") == before + 1
    assert await scene.begun(run) == {"job0": ["passed"]}
    await scene.judge(run, "job0")
