"""Real daemons as processes, started as an operator starts them, and what they leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from tests.harness.command_line import HEADRACE, CommandLine

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]
ANY = "127.0.0.1:0"


class Daemon:
    """A daemon's process. `start` may be called again after its end; `said` is all of its standard error. `prefix`:
    words before the command, that say where it runs.
    """

    def __init__(self, kind: str, folder: Path, arguments: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self.kind = kind
        self.folder = folder
        self.arguments = dict(arguments)
        self.environment = dict(environment)
        self.prefix: tuple[str, ...] = ()
        self.facts: dict[str, str] = {}
        self._log = folder.with_name(f"{folder.name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was not started"
        return self._process

    @property
    def said(self) -> str:
        return self._log.read_text()

    def start(self, seconds: float = 90.0) -> dict[str, str]:
        """Starts it; returns what it says once it is ready."""
        receive, send = os.pipe()
        try:
            self._launch("--ready-fd", str(send), pass_fds=(send,))
            os.close(send)
            assert select.select([receive], [], [], seconds)[0], f"not ready:\n{self.said}"
            line = os.read(receive, 4096)
        finally:
            os.close(receive)
        assert line, f"it ended with {self.process.wait(10)}:\n{self.said}"
        self.facts = json.loads(line)
        return self.facts

    def refuse(self, seconds: float = 60.0) -> tuple[int, str]:
        """Starts it where it cannot run; returns its exit code and what it said in plain words."""
        self._launch()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        return code, self.sentence

    @property
    def sentence(self) -> str:
        """What it said on standard error that is no log record, without a traceback."""
        assert "Traceback" not in self.said, self.said
        return "\n".join(line for line in self.said.splitlines() if not line.startswith("{"))

    def terminate(self, seconds: float = 30.0) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(seconds)

    def end(self) -> None:
        """Whatever it takes."""
        if self._process is None or self._process.poll() is not None:
            return
        for stop in (self._process.terminate, self._process.terminate, self._process.kill):
            stop()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
                return

    def _launch(self, *more: str, pass_fds: tuple[int, ...] = ()) -> None:
        words = [word for name, value in self.arguments.items() for word in (f"--{name}", value)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self.prefix, *HEADRACE, self.kind, "--data-dir", str(self.folder), *words, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **self.environment},
                cwd="/",
                pass_fds=pass_fds,
                start_new_session=True,
            )


def coordinator(folder: Path, **environment: str) -> Daemon:
    """A coordinator on free ports of loopback; not yet started."""
    listen = {"listen": ANY, "http-listen": ANY, "blob-listen": ANY}
    return Daemon("coordinator", folder, listen, environment)


def agent(folder: Path, of: Daemon, name: str, **environment: str) -> Daemon:
    """An agent of a coordinator that is ready; not yet started."""
    where = {"HEADRACE_TOKEN": token(of, "agent"), "HEADRACE_METRICS_LISTEN": ANY}
    return Daemon("agent", folder, {"url": of.facts["address"], "name": name, "slots": "2"}, where | environment)


def token(of: Daemon, whose: str) -> str:
    """The credential of `client` or `agent`."""
    return (of.folder / "tokens" / whose).read_text().strip()


def share_secrets(first: Path, other: Path) -> None:
    """Gives a replica that was never started, by its folder, the tokens and keys of one that was: one fleet has one
    set."""
    other.mkdir(mode=0o700)
    for name in ("tokens", "secrets"):
        shutil.copytree(first / name, other / name)


def bearer(value: str) -> Metadata:
    """The metadata of a call that shows a token."""
    return (("authorization", f"Bearer {value}"),)


def client(of: Daemon, cwd: Path, state: Path) -> CommandLine:
    """The command line of somebody who knows where the coordinator is."""
    return CommandLine(cwd, state, {"HEADRACE_URL": of.facts["address"], "HEADRACE_TOKEN": token(of, "client")})


def metric(of: Daemon, series: str) -> float:
    """What a coordinator tells now of a series, named with its labels as on the page."""
    with urllib.request.urlopen(f"http://{of.facts['http']}/metrics", timeout=20) as page:
        lines = page.read().decode().splitlines()
    return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(f"{series} ")))


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes that name something below the folder, or work in it."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        if int(each.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            line = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if str(folder) in line or (each / "cwd").readlink().is_relative_to(folder):
                found.append(f"{each.name} {line}")
    return found


def none_left(folder: Path, seconds: float) -> list[str]:
    """Waits until no process of the folder is left; returns those that are all the same."""
    end = time.monotonic() + seconds
    while (left := processes_of(folder)) and time.monotonic() < end:
        time.sleep(0.02)  # not our children: there is nothing to wait on
    return left


def forget_mounts(folder: Path) -> None:
    """Takes away the mount that an agent keeps over its workspaces (it is left for the agent's next start)."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in reversed([each for each in points if each.startswith(f"{folder}/")]):
        subprocess.run(["umount", point], check=True)
