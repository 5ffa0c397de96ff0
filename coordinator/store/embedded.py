"""The embedded PostgreSQL: the wheel's own server on a data directory of ours, reached by a unix socket alone.

No port is opened and nobody is trusted: every connection shows a random password (scram-sha-256), which lies in a
0600 file beside the data, and the socket in a 0700 folder, so that a sandboxed job that finds the socket gains nothing.

```
<folder>/       0700
    lock        flock of the living owner
    password    0600
    pg_hba.conf who may connect how
    data/       the cluster; made as data.new and renamed, so a crash leaves no half of it
    run/        0700, the socket; elsewhere when the path would be longer than sockets allow
    server.log  what the server says
    moved       as root without user namespaces: where all but the lock lies instead
```
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import shutil
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO, Self
from urllib.parse import quote

import asyncpg

from coordinator.data_directory import FolderInUse, FolderLock, make_private_folder, write_once
from coordinator.store.embedded_orphan import stop_orphans
from coordinator.store.embedded_programs import EmbeddedError, Installation, Tools, find_installation

__all__ = ["EmbeddedError", "EmbeddedPostgres", "Tools"]

DATABASE = USER = "headrace"

_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "listen_addresses": "",
        "unix_socket_permissions": "0700",
        "password_encryption": "scram-sha-256",
        "fsync": "on",
        "max_connections": "60",
        # The queue is full of dead rows after a second, and would be looked at once a minute.
        "autovacuum_naptime": "5s",
        "shared_buffers": "64MB",
        "max_wal_size": "512MB",
        "work_mem": "8MB",
        "max_parallel_workers_per_gather": "0",  # short statements, small machines
        "jit": "off",
        "max_logical_replication_workers": "0",
        "dynamic_shared_memory_type": "mmap",  # /dev/shm is small in containers, and a killed server leaves files there
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_min_messages": "log",  # the errors of statements go to their caller, with their values
        "log_min_error_statement": "panic",
        "log_checkpoints": "off",
    }
)

_SOCKET_NAME = ".s.PGSQL.5432"
_SOCKET_PATH_MAX = 107
_LOG_MAX = 8 << 20
_START_SECONDS = 300.0  # crash recovery replays up to max_wal_size
_POLL_SECONDS = 0.005


class EmbeddedPostgres:
    """A PostgreSQL server for as long as the context lasts: `async with EmbeddedPostgres(folder) as pg: pg.dsn`.

    `sockets` is where the socket goes when `folder` is too long a path for one ($XDG_RUNTIME_DIR, say).
    `settings` are added to ours. Entering raises `EmbeddedError`, one sentence. The server ends with its owner,
    also one that is killed; one left over all the same is stopped by the next start on the same folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sockets: Path = Path("/tmp"),  # noqa: S108 - the folder made in it is ours and 0700, or refused
        settings: Mapping[str, str] = MappingProxyType({}),
        tools: Tools | None = None,
        make_password: Callable[[], str] = lambda: secrets.token_urlsafe(32),
    ) -> None:
        self.folder = folder
        self._sockets = sockets
        self._settings = {**_SETTINGS, **settings}
        self._tools = tools or Tools()
        self._make_password = make_password
        self._process: asyncio.subprocess.Process | None = None
        self._up = contextlib.AsyncExitStack()
        self._dsn = ""
        self._log = folder / "server.log"

    @property
    def dsn(self) -> str:
        """A URL for `asyncpg.connect`, password included: never to be logged."""
        if not self._dsn:
            raise RuntimeError("the embedded PostgreSQL is not running")
        return self._dsn

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        if self._process is None:
            raise RuntimeError("the embedded PostgreSQL is not running")
        return self._process.pid

    async def ended(self) -> str:
        """Wait until the server has ended and return one sentence: a server that ends by itself ends its owner."""
        if self._process is None:
            raise RuntimeError("the embedded PostgreSQL is not running")
        code = await self._process.wait()
        return f"the embedded PostgreSQL has ended with code {code}; its log is {self._log}"

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as up:
            try:
                await self._start(up)
            except FolderInUse as error:
                raise EmbeddedError(str(error)) from error
            except OSError as error:
                raise EmbeddedError(f"cannot run PostgreSQL in {self.folder}: {error}") from error
            self._up = up.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dsn = ""
        await self._up.aclose()

    async def _start(self, up: contextlib.AsyncExitStack) -> None:
        make_private_folder(self.folder)
        up.enter_context(FolderLock(self.folder))
        place = await asyncio.to_thread(find_installation, self.folder, self._tools)
        self._log = place.home / "server.log"
        data = place.home / "data"
        _check_version(data, place.major)
        await stop_orphans(data)
        password = _password(place, data, self._make_password)
        if not data.exists():
            await self._initialise(place, data)
        (place.home / "pg_hba.conf").write_text(f"local all {USER} scram-sha-256\n")
        place.home.joinpath("pg_hba.conf").chmod(0o644)
        socket = up.enter_context(_socket_folder(place, self._sockets))
        up.push_async_callback(self._stop)
        await self._launch(place, data, socket)
        await self._wait_until_ready(data)
        self._dsn = await self._open_database(password, socket)

    async def _initialise(self, place: Installation, data: Path) -> None:
        new, password = data.with_name("data.new"), place.home / "password"
        await asyncio.to_thread(shutil.rmtree, new, ignore_errors=True)
        make_private_folder(new)
        place.lend(new, password)
        initdb = place.initdb_command(
            f"--pgdata={new}",
            f"--username={USER}",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--no-instructions",
        )
        await self._run(initdb, "initialise its data directory")
        await asyncio.to_thread(place.take_over, new)
        os.chown(password, os.geteuid(), os.getegid())
        new.rename(data)

    async def _run(self, command: list[str], what: str) -> None:
        with self._open_log() as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_ENVIRONMENT,
                cwd="/",
            )
            try:
                code = await process.wait()
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
                raise
        if code != 0:
            raise EmbeddedError(f"PostgreSQL could not {what}: {_last_words(self._log)}; its log is {self._log}")

    async def _launch(self, place: Installation, data: Path, socket: Path) -> None:
        hba = place.home / "pg_hba.conf"
        settings = {**self._settings, "unix_socket_directories": f'"{socket}"', "hba_file": str(hba)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        command = place.server_command(self._tools, "-D", str(data), *options)
        with self._open_log() as log:
            # A session of its own: Ctrl-C in a terminal is for the owner, who still needs the database to stop.
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )

    async def _wait_until_ready(self, data: Path) -> None:
        """Wait for the word `ready` that the postmaster writes into its pid file once it takes connections."""
        process = self._process
        assert process is not None
        clock = asyncio.get_running_loop().time
        until = clock() + _START_SECONDS
        while clock() < until:
            if process.returncode is not None:
                raise EmbeddedError(f"PostgreSQL did not start: {_last_words(self._log)}; its log is {self._log}")
            with contextlib.suppress(OSError, UnicodeDecodeError):
                lines = (data / "postmaster.pid").read_text().splitlines()
                if len(lines) >= 8 and lines[0] == str(process.pid) and lines[7].strip() == "ready":
                    return
            await asyncio.sleep(_POLL_SECONDS)
        raise EmbeddedError(f"PostgreSQL was not ready after {_START_SECONDS:.0f} s; its log is {self._log}")

    async def _open_database(self, password: str, socket: Path) -> str:
        """Prove the password and make our database if it is not there; return its URL."""
        try:
            connection = await asyncpg.connect(
                host=str(socket), port=5432, user=USER, password=password, database="postgres", timeout=60
            )
        except (asyncpg.PostgresError, OSError) as error:
            raise EmbeddedError(
                f"cannot connect to the embedded PostgreSQL: {error}; its log is {self._log}"
            ) from error
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()
        return f"postgresql://{USER}:{quote(password, safe='')}@/{DATABASE}?host={quote(str(socket), safe='')}"

    async def _stop(self) -> None:
        """Fast shutdown; if that takes too long, immediate; if that does too, the end. Recovery mends the last two."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, seconds in ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, None)):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await process.wait()
                    return

    def _open_log(self) -> BinaryIO:
        with contextlib.suppress(FileNotFoundError):
            if self._log.stat().st_size > _LOG_MAX:
                self._log.rename(self._log.with_name("server.log.1"))
        handle = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        return os.fdopen(handle, "ab", buffering=0)


_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "TZ": "UTC"}
"""All that the programs see: no secret of the owner's, and no PG* variable that would steer them."""


def _check_version(data: Path, ours: int) -> None:
    try:
        theirs = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        if data.exists():
            raise EmbeddedError(f"{data} is not a data directory of PostgreSQL: move it away to start anew") from None
        return
    if theirs != str(ours):
        kind = "newer" if theirs.isdigit() and int(theirs) > ours else "other"
        raise EmbeddedError(
            f"the data in {data} was made by PostgreSQL {theirs}, a {kind} version than {ours} which this Headrace "
            "brings: use the Headrace that made it, or move the data over with pg_dump"
        )


def _password(place: Installation, data: Path, make: Callable[[], str]) -> str:
    file = place.home / "password"
    if data.exists() and not file.exists():
        raise EmbeddedError(f"the password of the database is gone: put {file} back, or move {data} away to start anew")
    password = write_once(file, f"{make()}\n".encode()).decode("ascii", "replace").strip()
    if not password:
        raise EmbeddedError(f"{file} is empty: put the password of the database back, or remove it and {data}")
    return password


@contextlib.contextmanager
def _socket_folder(place: Installation, elsewhere: Path) -> Iterator[Path]:
    """Give a 0700 folder of the server's for its socket: beside the data if that path is short enough for one."""
    folder = place.home / "run"
    away = len(os.fsencode(folder / _SOCKET_NAME)) > _SOCKET_PATH_MAX
    if away:
        name = hashlib.sha256(os.fsencode(place.home.resolve())).hexdigest()[:16]
        folder = elsewhere / f"headrace-pg-{name}"
        if len(os.fsencode(folder / _SOCKET_NAME)) > _SOCKET_PATH_MAX:
            raise EmbeddedError(f"no socket fits below {elsewhere}: name a shorter folder for it")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        place.take_over(folder)
    there = folder.lstat()  # /tmp is everybody's: what lies there under our name must be ours
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != place.uid or stat.S_IMODE(there.st_mode) != 0o700:
        raise EmbeddedError(f"{folder} is not a folder of the server's own with mode 0700: remove it and start again")
    try:
        yield folder
    finally:
        if away:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _last_words(log: Path) -> str:
    """Return the last line of the log that names a failure, else its last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return "it said nothing"
    grave = [line for line in lines if re.search(r"\b(FATAL|PANIC|error):", line)]
    return (grave or lines or ["it said nothing"])[-1][:300].rstrip(".")
