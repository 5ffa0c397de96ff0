"""The three FIFOs between a supervisor and the control shell, and the files of a step.

The supervisor's own names lie in the attempt's folder `A`, which no job sees; `A/io`, mounted read-only in the
sandbox, holds links to them until the control shell has opened them, and then the run file and script of the step.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import termios
from pathlib import Path
from typing import Final

from agent.supervisor.control import CONTROL

NAMES: Final = ("in", "out", "res")
_WIDE: Final = 1 << 20
_LINE: Final = 256
_READ: Final = 64 << 10


class Lines:
    """Whole lines of what comes in pieces; those longer than 256 bytes are dropped. Pure."""

    def __init__(self) -> None:
        self._rest = b""
        self.dropped = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now, empty ones left out."""
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest[: _LINE + 1]  # enough to know later that it is too long
        lines = [line for line in whole if line and len(line) <= _LINE]
        self.dropped += sum(len(line) > _LINE for line in whole)
        return lines


class Channels:
    """Makes the FIFOs and holds an end of each: nobody ever waits in an open, meets an end of file, or SIGPIPE."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError, also when the folder has been used before."""
        self._folder = folder
        self._io = folder / "io"
        self._lines = Lines()
        self._io.mkdir(mode=0o755, exist_ok=True)
        ends = []
        for name in NAMES:
            os.mkfifo(folder / name)
            (folder / name).chmod(0o666)  # nobody knows the job's uid; the folder keeps out everyone else
            ends.append(os.open(folder / name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            os.link(folder / name, self._io / name)
        (self._io / "control").write_text(CONTROL)
        self._in, self.out, self.res = ends
        self.widen()

    def widen(self) -> None:
        """Makes the output pipe large, again: a job may have shrunk it."""
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.out, fcntl.F_SETPIPE_SZ, _WIDE)

    def hide(self) -> None:
        """The control shell has opened them: takes their names out of the sandbox."""
        for name in NAMES:
            (self._io / name).unlink(missing_ok=True)

    def send(self, line: str) -> None:
        """One command to the control shell, in one write. What a job has filled up is the job's own loss."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._in, f"{line}\n".encode())

    def said(self) -> list[bytes]:
        """The lines that came from the control shell, or from a job that pretends to be it."""
        try:
            return self._lines.feed(os.read(self.res, _READ))
        except BlockingIOError:
            return []

    def waiting(self) -> int:
        """Bytes of output that stand in the pipe."""
        return int.from_bytes(fcntl.ioctl(self.out, termios.FIONREAD, b"\0\0\0\0"), "little")

    def read(self, most: int) -> bytes:
        """Output, up to `most` bytes; empty when there is none."""
        try:
            return os.read(self.out, most)
        except BlockingIOError:
            return b""

    def place(self, number: int, run: str, script: str) -> None:
        """Puts a step's files where the control shell finds them. They hold secrets: `remove` them."""
        folder = self._io / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o755)
        for name, text in (("run", run), ("script", script)):
            (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))

    def remove(self, number: int) -> None:
        """Removes a step's files."""
        shutil.rmtree(self._io / str(number), ignore_errors=True)

    def close(self) -> None:
        """Closes the ends and removes all names."""
        for end in (self._in, self.out, self.res):
            os.close(end)
        for name in NAMES:
            (self._folder / name).unlink(missing_ok=True)
        shutil.rmtree(self._io, ignore_errors=True)
