"""What jobs did outside: each writes lines through a pipe of the test's, which no retry takes back."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.harness.outside import machine

_AT_ONCE = 16
"""Ledgers on one machine, each at an address of its own."""
_COUNTER = """
import socketserver, sys

class Counter(socketserver.StreamRequestHandler):
    timeout = 60  # whoever calls may be killed, and his network with him

    def handle(self):
        line = self.rfile.readline()
        if line.endswith(b"\\n"):
            with open(sys.argv[1], "ab", buffering=0) as ledger:
                ledger.write(line)
            self.wfile.write(b"noted\\n")

socketserver.ThreadingTCPServer.daemon_threads = True
with socketserver.ThreadingTCPServer(("", 80), Counter) as server:
    print("ready", flush=True)
    server.serve_forever()
"""


@dataclass(frozen=True)
class Entry:
    """One line: `RUN JOB ATTEMPT WHAT`. `attempt` counts from 1."""

    run: int
    job: str
    attempt: int
    what: str


class Ledger:
    """A FIFO in a folder that sandboxes may see read-only: a line of less than PIPE_BUF arrives whole or not at all.

    Containers reach it over the network instead, at `address`, port 80, as a machine elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "ledger"
        self.entries: list[Entry] = []
        self.torn: list[str] = []
        """Lines that are none of ours."""
        self._machine = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._read, name="ledger")

    def __enter__(self) -> Self:
        self.folder.mkdir(mode=0o755)
        os.mkfifo(self.file)
        self.file.chmod(0o622)  # whoever is in a sandbox has a uid of the slot's
        self._end = os.open(self.file, os.O_RDWR)  # our own end keeps it open between two writers
        self._thread.start()
        self.address = self._listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._machine.close()
        os.write(self._end, b"end\n")
        self._thread.join()
        os.close(self._end)

    def count(self, what: str) -> Counter[tuple[int, str]]:
        """By run and job, how often this was written."""
        return Counter((each.run, each.job) for each in self.entries if each.what == what)

    def _listen(self) -> str:
        """A machine elsewhere, at the first address that no other test has taken."""
        counter = (sys.executable, "-c", _COUNTER, str(self.file))
        for number in range(_AT_ONCE):
            address = f"203.0.113.{100 + number}"
            with contextlib.suppress(subprocess.CalledProcessError):
                self._machine.enter_context(machine(f"book{number}", f"198.51.{110 + number}", (address,), counter))
                return address
        raise AssertionError(f"none of {_AT_ONCE} addresses is free: `ip netns` shows who has them")

    def _read(self) -> None:
        with os.fdopen(os.dup(self._end), "r") as lines:
            for line in lines:
                if line == "end\n":
                    return
                match line.split():
                    case [run, job, attempt, what] if run.isdigit() and attempt.isdigit():
                        self.entries.append(Entry(int(run), job, int(attempt), what))
                    case _:
                        self.torn.append(line)
