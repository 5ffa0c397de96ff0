"""The command line as a person starts it: a process of its own, in a pipe or on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

HEADRACE = (sys.executable, "-m", "headrace")


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class CommandLine:
    """Runs `headrace` with a clean environment in one folder."""

    def __init__(self, folder: Path, state: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        quiet = {"GIT_CONFIG_NOSYSTEM": "1", "COLUMNS": "100", "XDG_STATE_HOME": str(state)}
        self.environment = keep | quiet | dict(environment or {})

    def __call__(self, *arguments: str, seconds: float = 60, **environment: str) -> Ended:
        """Runs a command to its end; a traceback anywhere fails the test."""
        done = subprocess.run(
            [*HEADRACE, *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=seconds,
            check=False,
        )
        assert "Traceback" not in done.stderr + done.stdout, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a command; the caller ends it."""
        return subprocess.Popen(
            [*HEADRACE, *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


class Terminal:
    """A command on a pseudo-terminal of fixed size; `text` is all that it has drawn."""

    def __init__(self, line: CommandLine, *arguments: str, rows: int = 24, columns: int = 80) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {k: v for k, v in line.environment.items() if k != "COLUMNS"} | {"TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [*HEADRACE, *arguments], cwd=line.folder, env=environment, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def until(self, condition: Callable[[str], bool], seconds: float = 30) -> str:
        """Reads until what was drawn satisfies the condition."""
        deadline = time.monotonic() + seconds
        while not condition(self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self._master, 65536).decode("utf-8", "replace")
                except OSError:  # the other end was closed
                    assert condition(self.text), self.text
        return self.text

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def end(self, seconds: float = 30) -> int:
        """Reads to the end and returns the exit code."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self._master, 65536).decode("utf-8", "replace")
                except OSError:
                    break
            elif self.process.poll() is not None:
                break
        code = self.process.wait(max(0.1, deadline - time.monotonic()))
        os.close(self._master)
        assert "Traceback" not in self.text, self.text
        return code


def git_repository(folder: Path, files: Mapping[str, str]) -> str:
    """A repository with one commit; returns its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    who = ["-c", "user.name=Ana", "-c", "user.email=ana@example.com"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()
