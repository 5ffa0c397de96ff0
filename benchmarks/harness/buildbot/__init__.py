"""Buildbot as the peer: its own environment, one master on SQLite, ten workers, builds that do nothing."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.processes import ChildFailed, child, line_of, scratch, tail_of

VERSION = "4.3.0"
WORKERS = 10
_HERE = Path(__file__).resolve().parent
_START_S = 60.0
_SAY_S = 120.0


def environment() -> Path:
    """The `bin` folder of an environment with Buildbot, made once and kept below the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "headrace-bench"
    cache.mkdir(parents=True, exist_ok=True)
    place = cache / f"buildbot-{VERSION}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "made").exists():
            shutil.rmtree(place, ignore_errors=True)
            _run_quietly([sys.executable, "-m", "venv", str(place)])
            wanted = [f"buildbot=={VERSION}", f"buildbot-worker=={VERSION}"]
            _run_quietly([str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *wanted])
            (place / "made").touch()
    return place / "bin"


@dataclass(frozen=True, slots=True)
class Begun:
    """One build, idle: monotonic seconds when it was asked for, and when its step began at the worker."""

    asked: float
    began: float


class Buildbot:
    """A running master with its workers. One measurement at a time."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        workers: asyncio.subprocess.Process,
        log: Path,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._workers = workers
        self._log = log

    async def build(self, many: int) -> float:
        """Asks for builds at once, and returns the seconds until the last has ended well."""
        since = time.monotonic()
        await self._ask(many)
        for _ in range(many):
            await line_of(self._workers, self._log, _SAY_S)
        return time.monotonic() - since

    async def begin(self) -> Begun:
        """Asks for one build and waits until it has ended; what counts is when its step began at the worker."""
        asked = time.monotonic()
        await self._ask(1)
        return Begun(asked, float(await line_of(self._workers, self._log, _SAY_S)))

    async def _ask(self, many: int) -> None:
        self._writer.write(b"%d\n" % many)
        await self._writer.drain()
        for _ in range(many):
            line = await asyncio.wait_for(self._reader.readline(), _SAY_S)
            if not line or json.loads(line)["results"] != 0:
                raise ChildFailed(f"a build of the peer failed: {line!r}\n{tail_of(self._log)}")


@contextlib.asynccontextmanager
async def buildbot() -> AsyncIterator[Buildbot]:
    """Started in a folder of its own, all workers attached; stopped, and the folder removed, at the end."""
    programs = await asyncio.to_thread(environment)
    with scratch("buildbot") as folder:
        for source, name in (
            ("master.cfg", "master.cfg"),
            ("master.tac", "buildbot.tac"),
            ("workers.tac", "workers.tac"),
        ):
            shutil.copy(_HERE / source, folder / name)
        env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | {
            "BENCH_FOLDER": str(folder),
            "BENCH_PORT": str(_free_port()),
            "BENCH_WORKERS": str(WORKERS),
            "BENCH_PASSWORD": secrets.token_hex(16),
        }
        await asyncio.to_thread(_run_quietly, [str(programs / "buildbot"), "upgrade-master", "-q", str(folder)], env)
        twistd = [str(programs / "twistd"), "--nodaemon", "--pidfile=", "--no_save", "--reactor=epoll"]
        log = folder / "master.log"
        async with (
            child([*twistd, "-y", str(folder / "buildbot.tac")], log, env=env, cwd=folder) as master,
            child([*twistd, "-y", str(folder / "workers.tac")], folder / "workers.log", env=env, cwd=folder) as workers,
        ):
            reader, writer = await _connected(folder / "door", master, log)
            try:
                yield Buildbot(reader, writer, workers, log)
            finally:
                writer.close()


async def _connected(
    door: Path, master: asyncio.subprocess.Process, log: Path
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The master's door, once all workers are attached."""
    end = time.monotonic() + _START_S
    while True:
        if master.returncode is not None or time.monotonic() > end:
            raise ChildFailed(f"Buildbot did not start:\n{tail_of(log)}")
        try:
            reader, writer = await asyncio.open_unix_connection(door)
            break
        except OSError:
            await asyncio.sleep(0.1)
    line = await asyncio.wait_for(reader.readline(), _START_S)
    if line != b"ready\n":
        raise ChildFailed(f"Buildbot's workers did not attach:\n{tail_of(log)}")
    return reader, writer


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _run_quietly(argv: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ChildFailed(f"{argv[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
