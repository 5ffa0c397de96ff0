"""A primary that is lost for good, with a standby that had to have each commit on its disk: nothing acknowledged is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg
import pytest

from coordinator.store.embedded import DATABASE, USER, EmbeddedPostgres
from coordinator.store.embedded_programs import Tools, find_installation
from tests.chaos.proxy import Proxy
from tests.chaos.work import SHORT, Counting, User
from tests.harness.postgres import dsn_at, socket_of
from tests.harness.waiting import wait_for
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon
from tests.integration.metrics.prometheus import get

pytestmark = [pytest.mark.timeout(300), pytest.mark.root]

DEPLOYMENT = Counting("deployment", 200)


async def test_a_standby_that_is_promoted_has_all_that_was_acknowledged(
    make_coordinator: Make, make_agent: Make, daemons: list[Daemon], tmp_path: Path
) -> None:
    """The primary is shot in the midst of jobs and never comes back. Led to the standby, the coordinator says that it
    may not write; once that is promoted, the jobs have not noticed, and a deployment has begun once."""
    with Proxy("") as way:
        async with contextlib.AsyncExitStack() as primary_up, contextlib.AsyncExitStack() as standby_up:
            primary = await primary_up.enter_async_context(EmbeddedPostgres(tmp_path / "primary"))
            way.target = socket_of(primary.dsn)
            of = make_coordinator(HEADRACE_DATABASE_URL=dsn_at(primary.dsn, way.address), **SHORT)
            of.start()
            side = make_agent(of)
            side.arguments["slots"] = "3"
            side.start()
            standby = await standby_up.enter_async_context(
                standby_of(primary, tmp_path / "primary", tmp_path / "other")
            )
            work = [Counting("ends", 40), Counting("on", 300)]
            with User(of) as user:
                run, deployment = user.begin(work), user.begin([DEPLOYMENT], "name: live, environment: live")
                user.until_it_writes(run, *work)
                user.until_it_writes(deployment, DEPLOYMENT)
                wait_for(lambda: user.states(run, "ends") == ["passed"], "one has passed", 30)
                acknowledged = {each: user.log(run, each.name) for each in work}
                os.kill(primary.pid, signal.SIGKILL)
                await primary.ended()
                way.target = socket_of(standby.dsn)
                way.cut()
                wait_for(lambda: "read-only transaction" in readyz(of), "it says why it serves nobody", 20)
                await promote(standby)
                wait_for(lambda: readyz(of).startswith("ready"), "it serves again", 20)
                assert user.states(run, "ends") == ["passed"]
                assert all(user.log(run, each.name).startswith(known) for each, known in acknowledged.items())
                for number, job in ((run, work[0]), (run, work[1]), (deployment, DEPLOYMENT)):
                    user.until_over(number)
                    user.judge(number, job, ["passed"])
            for each in reversed(daemons):
                each.end()


def readyz(of: Daemon) -> str:
    """What the page says."""
    return get(f"http://{of.facts['http']}/readyz")[1]


@contextlib.asynccontextmanager
async def standby_of(primary: EmbeddedPostgres, source: Path, folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A hot standby without which, from now on, the primary commits nothing."""
    password = unquote(urlsplit(primary.dsn).password or "")
    async with EmbeddedPostgres(folder, make_password=lambda: password):
        pass  # its folder and whose that is
    home, programs = await asyncio.to_thread(placed, folder), find_installation(folder, Tools()).bin
    with (placed(source) / "pg_hba.conf").open("a") as rules:
        rules.write(f"local replication {USER} scram-sha-256\n")
    await told(primary, "SELECT pg_reload_conf()")
    owner = (home / "data").stat()
    shutil.rmtree(home / "data")
    host = str(Path(socket_of(primary.dsn)).parent)
    command = [programs / "pg_basebackup", "-h", host, "-U", USER, "-D", home / "data", "-R", "--checkpoint=fast"]
    await asyncio.to_thread(subprocess.run, command, check=True, env={"PGPASSWORD": password})
    for each in (home / "data", *(home / "data").rglob("*")):
        os.chown(each, owner.st_uid, owner.st_gid, follow_symlinks=False)
    async with EmbeddedPostgres(folder, make_password=lambda: password) as standby:
        await told(primary, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        await told(primary, "SELECT pg_reload_conf()")
        async with asyncio.timeout(20):
            while not await told(primary, "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.1)
        yield standby


async def promote(standby: EmbeddedPostgres) -> None:
    """It is the primary now, and waits for no standby of its own."""
    await told(standby, "SELECT pg_promote()")
    await told(standby, "ALTER SYSTEM RESET synchronous_standby_names")
    await told(standby, "SELECT pg_reload_conf()")


async def told(server: EmbeddedPostgres, statement: str) -> list[asyncpg.Record]:
    """What a statement returns."""
    connection = await asyncpg.connect(server.dsn, database=DATABASE, timeout=10)
    try:
        return list(await connection.fetch(statement))
    finally:
        await connection.close()


def placed(folder: Path) -> Path:
    """Where a server's files lie: in its folder, or where that says."""
    moved = folder / "moved"
    return Path(moved.read_text().strip()) if moved.exists() else folder
