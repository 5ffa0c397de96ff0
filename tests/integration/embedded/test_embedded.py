"""The embedded PostgreSQL over its life: made, found again, killed, taken over, refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import psutil  # type: ignore[import-untyped]  # comes with the wheel; brings no types
import pytest

from coordinator.store.embedded import EmbeddedError, EmbeddedPostgres, Tools

OWNER = """
import asyncio, pathlib, sys
from coordinator.store.embedded import EmbeddedPostgres
async def main():
    async with EmbeddedPostgres(pathlib.Path(sys.argv[1])) as postgres:
        print(postgres.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def execute(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def start_owner(folder: Path) -> tuple[asyncio.subprocess.Process, psutil.Process]:
    """Another process that owns a server; and that server."""
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(folder), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert owner.stdout is not None
    return owner, psutil.Process(int(await owner.stdout.readline()))


async def dead(*processes: psutil.Process) -> bool:
    _gone, alive = await asyncio.to_thread(psutil.wait_procs, list(processes), 20)
    return not alive


def servers_of(folder: Path) -> list[psutil.Process]:
    """Whatever still serves the data of a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder / "data":
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path / "pg"
    assert servers_of(tmp_path / "pg") == [], "a server was left behind"


@pytest.fixture
def sockets() -> Iterator[Path]:
    """Where sockets of servers with long paths go: a short one."""
    made = Path(tempfile.mkdtemp(prefix="hr-s-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


async def test_data_are_found_again_after_a_restart(folder: Path) -> None:
    """Embedded is not a toy: yesterday's runs are there today."""
    async with EmbeddedPostgres(folder) as postgres:
        await execute(postgres.dsn, "CREATE TABLE kept AS SELECT 42 AS n")
    async with EmbeddedPostgres(folder) as postgres:
        assert await execute(postgres.dsn, "SELECT n FROM kept") == 42


async def test_nobody_gets_in_without_the_password_and_no_port_is_open(folder: Path) -> None:
    """A sandboxed job that found a socket which trusts became superuser of the coordinator's database."""
    async with EmbeddedPostgres(folder) as postgres:
        for wrong in ("", "headrace"):
            with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InterfaceError)):
                await asyncpg.connect(host=str(folder / "run"), user="headrace", password=wrong, database="postgres")
        assert psutil.Process(postgres.pid).net_connections("inet") == []
        assert await execute(postgres.dsn, "SHOW password_encryption") == "scram-sha-256"
        assert await execute(postgres.dsn, "SHOW fsync") == "on"
        password = (folder / "password").read_text().strip()
        assert password not in repr(postgres)
        server = psutil.Process(postgres.pid)  # what it starts is the same program, image and environment
        assert password not in " ".join([*server.cmdline(), *server.environ().values()])
        assert password not in (folder / "server.log").read_text()
        modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in (".", "run", "data", "password")}
        assert modes == {".": 0o700, "run": 0o700, "data": 0o700, "password": 0o600}


async def test_the_server_ends_with_an_owner_that_is_killed(folder: Path) -> None:
    """`kill -9` of the coordinator must not leave a server for ever; what it had committed is there."""
    owner, server = await start_owner(folder)
    owner.kill()
    await owner.wait()
    assert await dead(server)
    async with EmbeddedPostgres(folder) as postgres:
        assert await execute(postgres.dsn, "SELECT 1") == 1


async def test_committed_rows_survive_a_kill_of_everything(folder: Path) -> None:
    """Power cut, as near as a test gets to it: crash recovery finds every commit."""
    owner, server = await start_owner(folder)
    password = (folder / "password").read_text().strip()
    dsn = f"postgresql://headrace:{password}@/headrace?host={folder / 'run'}"
    await execute(dsn, "CREATE TABLE kept (n int)")
    await execute(dsn, "INSERT INTO kept SELECT generate_series(1, 1000)")
    family = [server, *server.children()]
    owner.kill()
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # a child that saw its parent go was faster
            process.kill()
    await owner.wait()
    assert await dead(*family)
    assert (folder / "data" / "postmaster.pid").exists(), "this test is about a server that could not clean up"
    async with EmbeddedPostgres(folder) as postgres:
        assert await execute(postgres.dsn, "SELECT count(*) FROM kept") == 1000


async def test_an_orphaned_server_is_stopped_by_the_next_start(folder: Path) -> None:
    """Where the kernel's signal was lost, the next start takes the data over from the orphan."""
    (folder.parent / "none").mkdir()
    tools = Tools(setpriv=str(folder.parent / "none" / "setpriv"))  # so that no signal is asked for
    orphaning = OWNER.replace("import EmbeddedPostgres", "import EmbeddedPostgres, Tools").replace(
        "sys.argv[1])", f"sys.argv[1]), tools=Tools(setpriv={tools.setpriv!r})"
    )
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", orphaning, str(folder), stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    orphan = psutil.Process(int(await owner.stdout.readline()))
    owner.kill()
    await owner.wait()
    assert orphan.is_running()
    try:
        async with EmbeddedPostgres(folder) as postgres:
            assert postgres.pid != orphan.pid
            assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
            assert await execute(postgres.dsn, "SELECT 1") == 1
    finally:
        if orphan.is_running():
            orphan.send_signal(signal.SIGQUIT)
            await dead(orphan)


async def test_a_process_that_bears_an_old_servers_number_is_left_alone(folder: Path) -> None:
    """Process ids are used again, in containers at once: a number in a file is no proof."""
    async with EmbeddedPostgres(folder):
        pid_file = (folder / "data" / "postmaster.pid").read_text()
    bystander = await asyncio.create_subprocess_exec("sleep", "600")
    try:
        number = pid_file.split("\n", 1)
        (folder / "data" / "postmaster.pid").write_text(f"{bystander.pid}\n{number[1]}")
        async with EmbeddedPostgres(folder) as postgres:
            assert await execute(postgres.dsn, "SELECT 1") == 1
        assert bystander.returncode is None
        os.kill(bystander.pid, 0)
    finally:
        bystander.kill()
        await bystander.wait()


async def test_a_folder_in_use_is_refused_in_one_sentence(folder: Path) -> None:
    """Two servers on one cluster would ruin it; the sentence names who has it."""
    owner, server = await start_owner(folder)
    try:
        with pytest.raises(EmbeddedError, match=f"in use by process {owner.pid}"):
            async with EmbeddedPostgres(folder):
                pass
        assert server.is_running()
    finally:
        owner.terminate()
        await owner.wait()
        assert await dead(server)


async def test_data_of_a_newer_postgresql_are_refused_untouched(folder: Path) -> None:
    """A step back to an older release must not cost the data."""
    async with EmbeddedPostgres(folder):
        pass
    (folder / "data" / "PG_VERSION").write_text("99\n")
    with pytest.raises(EmbeddedError, match=r"PostgreSQL 99, a newer version than 18"):
        async with EmbeddedPostgres(folder):
            pass
    (folder / "data" / "PG_VERSION").write_text("18\n")
    async with EmbeddedPostgres(folder) as postgres:
        assert await execute(postgres.dsn, "SELECT 1") == 1


async def test_a_server_that_cannot_start_says_why_and_where_its_log_is(folder: Path) -> None:
    """One sentence with the mend at hand, not a traceback and a riddle."""
    with pytest.raises(EmbeddedError, match=r"did not start: .*no_such_setting.*; its log is .*/server\.log"):
        async with EmbeddedPostgres(folder, settings={"no_such_setting": "1"}):
            pass


async def test_a_lost_password_is_said_and_not_replaced(folder: Path) -> None:
    """A new password would not open the old data."""
    async with EmbeddedPostgres(folder):
        pass
    (folder / "password").unlink()
    with pytest.raises(EmbeddedError, match="the password of the database is gone"):
        async with EmbeddedPostgres(folder):
            pass


async def test_a_crash_while_the_data_are_made_leaves_no_half_of_them(folder: Path) -> None:
    """The next start makes them anew instead of tripping over the rest."""
    (folder / "data.new" / "base").mkdir(parents=True)
    async with EmbeddedPostgres(folder) as postgres:
        assert await execute(postgres.dsn, "SELECT 1") == 1
    assert not (folder / "data.new").exists()


async def test_a_path_too_long_for_a_socket_works_all_the_same(tmp_path: Path, sockets: Path) -> None:
    """Unix sockets end at 107 bytes, data directories do not."""
    folder = tmp_path / ("long" * 30) / "pg"
    async with EmbeddedPostgres(folder, sockets=sockets) as postgres:
        assert await execute(postgres.dsn, "SELECT 1") == 1
        (away,) = sockets.iterdir()
        assert stat.S_IMODE(away.stat().st_mode) == 0o700
        with pytest.raises(EmbeddedError, match="in use"):
            async with EmbeddedPostgres(folder, sockets=sockets):
                pass
    assert list(sockets.iterdir()) == []


async def test_a_socket_folder_that_somebody_else_made_is_refused(tmp_path: Path, sockets: Path) -> None:
    """/tmp is everybody's: a folder or link planted under our name would hand our socket to its owner."""
    folder = tmp_path / ("long" * 30) / "pg"
    async with EmbeddedPostgres(folder, sockets=sockets):
        (away,) = sockets.iterdir()
    (tmp_path / "theirs").mkdir(mode=0o755)
    away.symlink_to(tmp_path / "theirs")
    with pytest.raises(EmbeddedError, match="not a folder of the server's own"):
        async with EmbeddedPostgres(folder, sockets=sockets):
            pass


async def test_the_owner_hears_of_a_server_that_ends_by_itself(folder: Path) -> None:
    """A coordinator without its database must not go on as if."""
    async with EmbeddedPostgres(folder) as postgres:
        ended = asyncio.create_task(postgres.ended())
        os.kill(postgres.pid, signal.SIGQUIT)
        assert "its log is" in await asyncio.wait_for(ended, 20)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
async def test_as_root_without_user_namespaces_a_uid_of_its_own_serves_the_data(tmp_path: Path) -> None:
    """Containers forbid user namespaces: there the programs are copied to where an unprivileged uid reaches them."""
    outside = Path("/var/tmp") / f"hr-test-{os.getpid()}"
    tools = Tools(unshare="/bin/false", outside=outside)
    try:
        for expected in (None, 42):
            async with EmbeddedPostgres(tmp_path / "pg", tools=tools) as postgres:
                if expected is None:
                    await execute(postgres.dsn, "CREATE TABLE kept AS SELECT 42 AS n")
                assert await execute(postgres.dsn, "SELECT n FROM kept") == 42
                server = psutil.Process(postgres.pid)
                assert set(server.uids()) == {60990}
        # Once moved, the data are found there even when namespaces can be had again.
        async with EmbeddedPostgres(tmp_path / "pg", tools=Tools(outside=outside)) as postgres:
            assert await execute(postgres.dsn, "SELECT n FROM kept") == 42
    finally:
        shutil.rmtree(outside, ignore_errors=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
async def test_as_root_with_neither_way_one_sentence_says_so(tmp_path: Path) -> None:
    """Somebody in a hardened container has to know which of the three ways out to take."""
    tools = Tools(unshare="/bin/false", setpriv="/bin/false", outside=tmp_path / "outside")
    with pytest.raises(EmbeddedError, match="start the coordinator as a plain user, or set HEADRACE_DATABASE_URL"):
        async with EmbeddedPostgres(tmp_path / "pg", tools=tools):
            pass
