"""A Docker engine for the tests: the one that runs, or one started for the session and stopped after it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import docker
from docker.errors import DockerException
from requests.exceptions import RequestException

from tests.harness.images import CACHE

START_S = 60.0
FOLDER = Path("/tmp/headrace-test-docker")
URL = f"unix://{FOLDER}/docker.sock"
_LOCK = CACHE / "docker.lock"
"""Beside the cached images: two empty files that stay."""


class NoEngineError(Exception):
    """No engine answers and none can be started; the message says why."""


def answers(url: str | None) -> bool:
    """Whether an engine answers at `url` (None: DOCKER_HOST or the default socket)."""
    path = (url or "").removeprefix("unix://")
    if path.startswith("/"):
        with socket.socket(socket.AF_UNIX) as probe:  # the client's own would be left open by a failure
            if probe.connect_ex(path) != 0:
                return False
    try:
        client = docker.APIClient(base_url=url, version="auto", timeout=10)
    except (DockerException, RequestException):
        return False
    with contextlib.closing(client):
        try:
            return bool(client.ping())
        except (DockerException, RequestException):
            return False


@contextlib.contextmanager
def engine() -> Iterator[str]:
    """The address of an engine, good for the length of the block. Raises `NoEngineError`.

    A started one is shared by all test sessions of the machine, because engines share their firewall
    chains; the last session stops it, and leaves no process, mount, bridge or rule.
    """
    running = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if answers(running):
        yield running
        return
    if os.geteuid() != 0:
        raise NoEngineError("no Docker engine answers, and only root can start one")
    if shutil.which("dockerd") is None:
        raise NoEngineError("no Docker engine answers, and dockerd is not installed: apt-get install docker.io")
    CACHE.mkdir(parents=True, exist_ok=True)
    with _LOCK.with_suffix(".users").open("w") as users:
        with _gate():
            if not answers(URL):
                _start()
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield URL
        finally:
            with _gate():
                fcntl.flock(users, fcntl.LOCK_UN)
                if _is_last(users):
                    _stop()


@contextlib.contextmanager
def _gate() -> Iterator[None]:
    with _LOCK.open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield


def _is_last(users: IO[str]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start() -> None:
    """Starts dockerd, detached: whichever session is the last will stop it."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    log = FOLDER / "log"
    for stale in ("docker.sock", "pid"):
        (FOLDER / stale).unlink(missing_ok=True)
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [
                "dockerd",
                f"--host={URL}",
                f"--data-root={FOLDER}/data",
                f"--exec-root={FOLDER}/exec",
                f"--pidfile={FOLDER}/pid",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "TMPDIR": str(FOLDER)},  # where containerd writes its last words
            start_new_session=True,
        )
    end = time.monotonic() + START_S
    while not answers(URL):
        if daemon.poll() is not None or time.monotonic() > end:
            daemon.kill()
            daemon.wait()
            raise NoEngineError(f"dockerd does not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)  # there is no event to wait for: the socket appears when it appears
    daemon.returncode = 0  # another session may stop it: this one is not to wait for it


def _stop() -> None:
    pid = int((FOLDER / "pid").read_text())
    descriptor = os.pidfd_open(pid)
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], 30)[0]:
                break
    finally:
        os.close(descriptor)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True, check=False)
    for table in ("filter", "nat"):
        _forget_rules(table)
    mounts = [line.split(" ")[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{FOLDER}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False)
    shutil.rmtree(FOLDER)


def _forget_rules(table: str) -> None:
    """Takes the engine's chains away, and the rules that lead to them; everybody else's stay."""

    def rules(*words: str) -> str:
        command = ["iptables", "--wait", "-t", table, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    lines = rules("-S").splitlines()
    for line in lines:
        if line.startswith("-A ") and ("DOCKER" in line or "docker0" in line or "172.17." in line):
            rules("-D", *shlex.split(line)[1:])
    for chain in (line.split()[1] for line in lines if line.startswith("-N DOCKER")):
        rules("-X", chain)
    if table == "filter":
        rules("-P", "FORWARD", "ACCEPT")
