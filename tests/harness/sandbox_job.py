"""Starts a prepared sandbox the way a supervisor does, and runs scripts in it, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import select
import shlex
import signal
import struct
import subprocess
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.sandbox.protocol import Attach, Prepared, Spawn

CONTROL = r"""d=$1; trap '' INT
exec 3<"$d/in" 4<>"$d/out" 5<>"$d/res" </dev/null >&4 2>&1
printf '\nhello %s\n' "$$" >&5
while read -r verb seq <&3; do case $verb in
  run) ( trap - INT; exec 3<&- 5>&- >/proc/self/fd/4 2>&1 4>&-; . "$d/$seq/run" )
       printf '\ndone %s %s\n' "$seq" "$?" >&5 ;;
  end) exit 0 ;;
esac; done; exit 70
"""
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Ran:
    """How a script ended, and what it wrote."""

    code: int
    out: str


def make_folder(folder: Path) -> Path:
    """An attempt's folder as a supervisor lays it out: FIFOs, and the control script in `io`."""
    (folder / "io").mkdir(parents=True)
    for name in ("in", "out", "res"):
        os.mkfifo(folder / name)
        (folder / name).chmod(0o666)
        os.link(folder / name, folder / "io" / name)
    (folder / "io").chmod(0o755)
    (folder / "io" / "control").write_text(CONTROL)
    (folder / "io" / "control").chmod(0o644)
    return folder


class SandboxJob:
    """A started sandbox. `pid` is that of its pid 1, as the host sees it."""

    def __init__(self, folder: Path, prepared: Prepared) -> None:
        self.folder, self.prepared = folder, prepared
        self.pid = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._fifos = {n: os.open(folder / n, os.O_RDWR | os.O_NONBLOCK) for n in ("in", "out", "res")}
        self._status: BinaryIO | None = None
        self._seq = 0
        self._results = b""

    async def start(self) -> SandboxJob:
        """Starts a `Spawn`, or takes over an `Attach`; returns when the control script has said hello."""
        match self.prepared.launch:
            case Spawn() as spawn:
                self._spawn(spawn)
            case Attach(pid=pid):
                self.pid = pid
        await self._line(b"hello ")
        return self

    def _spawn(self, spawn: Spawn) -> None:
        status, child_end = os.pipe()
        numbers = {"status_fd": child_end}
        numbers |= {name: os.open(path, os.O_RDONLY) for name, path in spawn.pass_files.items()}
        places = {f"{{{name}}}": str(number) for name, number in numbers.items()}

        def join() -> None:
            for folder in spawn.cgroups:
                (folder / "cgroup.procs").write_text(str(os.getpid()))

        with (self.folder / "log").open("wb") as log:
            self._child = subprocess.Popen(
                [places.get(word, word) for word in spawn.argv],
                env=dict(spawn.env),
                pass_fds=tuple(numbers.values()),
                preexec_fn=join,  # noqa: PLW1509 - what a supervisor does
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for number in numbers.values():
            os.close(number)
        self.pid = self._child.pid
        if "{status_fd}" in spawn.argv:
            self._status = os.fdopen(status, "rb")  # kept: bwrap writes to it at its end
            first = self._status.readline()
            assert first, (self.folder / "log").read_text()
            self.pid = json.loads(first)["child-pid"]
        else:
            os.close(status)

    async def run(self, script: str, env: dict[str, str] | None = None) -> Ran:
        """Runs a shell script as a step, in the workspace, with the sandbox's own environment."""
        self._seq += 1
        place = self.folder / "io" / str(self._seq)
        place.mkdir()
        (place / "script").write_text(script)
        words = [f"{name}={value}" for name, value in {**self.prepared.env, **(env or {})}.items()]
        (place / "run").write_text(
            f"cd -- {shlex.quote(self.prepared.workspace)} || exit 125\n"
            f"exec /usr/bin/env -i {shlex.join(words)} sh -e {self.prepared.control}/{self._seq}/script\n"
        )
        os.write(self._fifos["in"], f"run {self._seq}\n".encode())
        for made, mode in ((place, 0o755), (place / "script", 0o644), (place / "run", 0o644)):
            made.chmod(mode)
        done = await self._line(f"done {self._seq} ".encode())
        return Ran(int(done.split()[2]), self._output())

    def _output(self) -> str:
        (size,) = struct.unpack("i", fcntl.ioctl(self._fifos["out"], termios.FIONREAD, b"\0" * 4))
        return os.read(self._fifos["out"], size).decode() if size else ""

    async def _line(self, start: bytes) -> bytes:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                for line in self._results.split(b"\n"):
                    if line.startswith(start) and b"\n" in self._results.split(line, 1)[1]:
                        self._results = self._results.split(line, 1)[1]
                        return line
                await asyncio.to_thread(select.select, [self._fifos["res"]], [], [], 0.5)
                with contextlib.suppress(BlockingIOError):
                    self._results += os.read(self._fifos["res"], 65536)
                if self._child is not None and self._child.poll() is not None:
                    raise AssertionError(f"ended: {self._child.returncode} {(self.folder / 'log').read_text()}")

    def kill(self) -> None:
        """Ends the sandbox at once, as its supervisor would."""
        with contextlib.suppress(ProcessLookupError):
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
        if self._child is not None:
            self._child.wait(TIMEOUT_S)
            self._child = None

    def close(self) -> None:
        """Kills the sandbox and lets go of its FIFOs."""
        self.kill()
        for number in self._fifos.values():
            os.close(number)
        self._fifos = {}
        if self._status is not None:
            self._status.close()
