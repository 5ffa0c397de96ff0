"""Replicas and agents whose lives end at a point, and begin again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.integration.coordinator.processes import forget_mounts, none_left

READY_S = 90.0
PATIENCE_S = 6.0
"""Within which a point has to be reached, once all is imported: there is work all the time."""
_LIFE_OF = Path(__file__).resolve().parents[3]
_EPHEMERAL = 32_768
"""The kernel takes ports from here on for connections, and would sit on that of a replica that is away."""


class Keeper:
    """A launcher, and the daemon that it starts again and again. `said` is what all lives wrote on standard error."""

    def __init__(self, kind: str, folder: Path, arguments: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self.kind = kind
        self.folder = folder
        self.hits = folder.with_name("hits")
        self._words = [word for name, value in arguments.items() for word in (f"--{name}", value)]
        self._environment = dict(environment)
        self._log = folder.with_name(f"{folder.name}.log")
        self.pid = 0
        self.facts: dict[str, str] = {}
        self.lives = 0

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.chaos.failpoints.launcher", self.kind, str(self.hits)),
                *("--data-dir", str(self.folder), *self._words),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **self._environment},
                cwd=_LIFE_OF,
            )

    async def live(self, point: str = "", nth: int = 0, supervisors: Sequence[tuple[str, int]] = ()) -> None:
        """Begins a life."""
        assert self._process.stdin is not None
        asked = {"point": point, "nth": nth, "supervisors": supervisors}
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self.pid = (await self._hear())["pid"]
        self.lives += 1

    async def ready(self) -> None:
        """Waits until the daemon serves."""
        async with asyncio.timeout(READY_S):
            self.facts = await self._hear()
        assert "code" not in self.facts, f"it ended:\n{self.said[-4000:]}"

    async def end(self) -> int:
        """Waits for the end of this life; returns its exit code, negative for a signal."""
        while "code" not in (said := await self._hear()):
            self.facts = said
        self.pid = 0
        return int(said["code"])

    async def die_at(self, point: str, nth: int) -> bool:
        """A life that ends at a point, and nowhere else. False: it did not come there and was killed, for agents may
        have their sessions at this replica and hand their logs in at another, which waits for a session.
        """
        await self.live(point, nth)
        pid = self.pid
        try:
            async with asyncio.timeout(PATIENCE_S):
                code = await self.end()
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            code = await self.end()
        last = next((each for each in reversed(hits(self.hits)) if each["pid"] == pid), None)
        assert code == -signal.SIGKILL, f"{point}: ended with {code}:\n{self.said[-4000:]}"
        assert last is None or last["point"] == point
        return last is not None

    async def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        os.kill(self.pid, signal.SIGTERM)
        async with asyncio.timeout(60):
            return await self.end()

    async def close(self) -> None:
        """The launcher ends, and what lives with it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, f"the launcher of {self.folder.name} is gone:\n{self.said[-4000:]}"
        said: dict[str, Any] = json.loads(line)
        return said


def hits(file: Path) -> list[dict[str, Any]]:
    """Deaths at points so far, in order."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def free_ports(count: int, rng: random.Random) -> list[int]:
    """Ports that nobody has, and that no connection gets while their owner is away."""
    found: list[int] = []
    while len(found) < count:
        port = rng.randrange(_EPHEMERAL // 2, _EPHEMERAL)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found


def clear(folder: Path) -> list[str]:
    """Ends what still lives below a folder and takes mounts away; returns what had to be ended."""
    left = none_left(folder, 20)
    for line in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line.split()[0]), signal.SIGKILL)
    forget_mounts(folder)
    for file in folder.glob("*/instance"):
        shutil.rmtree(Path("/run/headrace", file.read_text().strip()), ignore_errors=True)
    return left
