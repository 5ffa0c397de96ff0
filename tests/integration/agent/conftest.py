"""A real agent process beside a coordinator of the tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.v1 import common_pb2 as pb
from tests.harness.docker_engine import NoEngineError, engine
from tests.harness.leftovers import Leftovers
from tests.harness.sandbox_world import cannot
from tests.integration.agent.other_side import TOKEN, OtherSide, other_side

_START = "import sys; from agent.app import main; sys.exit(main(__import__('json').loads(sys.argv[1])))"


@dataclass
class Agent:
    """An agent's process. `start` may be called again after its end."""

    side: OtherSide
    data: Path
    flags: dict[str, object] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    python: tuple[str, ...] = (sys.executable,)
    """The interpreter, or a command that ends in it."""
    process: asyncio.subprocess.Process | None = None
    said: str = ""

    async def start(self, *, wait: bool = True) -> dict[str, object]:
        """Starts it; returns what it says once it is welcomed."""
        read, write = os.pipe()
        flags = {"url": self.side.address, "data_dir": str(self.data), "slots": 2, "name": "tested", "ready_fd": write}
        with (self.data.parent / "agent.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.python,
                "-c",
                _START,
                json.dumps(flags | self.flags),
                pass_fds=(write,),
                stderr=log,
                env={"PATH": os.environ["PATH"], "HEADRACE_TOKEN": TOKEN, "HOME": "/nowhere", **self.env},
            )
        os.close(write)
        try:
            if not wait:
                return {}
            line = await asyncio.wait_for(asyncio.to_thread(os.read, read, 4096), 30)
        finally:
            if wait:
                os.close(read)
        if not line:
            raise AssertionError(self.log)
        return dict(json.loads(line))

    @property
    def log(self) -> str:
        """What it said on standard error."""
        return (self.data.parent / "agent.log").read_text()

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()

    def terminate(self) -> None:
        """SIGTERM."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    async def ended(self, seconds: float = 20.0) -> int:
        """Waits for its end; returns the exit code."""
        assert self.process is not None
        return await asyncio.wait_for(self.process.wait(), seconds)

    async def left(self) -> None:
        """Has it leave at once, if it runs; what resists is killed."""
        if self.process is None or self.process.returncode is not None:
            return
        self.terminate()
        self.terminate()
        try:
            await self.ended(15)
        except TimeoutError:
            self.kill()
            await self.ended()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a short path, on disk."""
    folder = Path(tempfile.mkdtemp(prefix="hra"))
    yield folder
    with contextlib.suppress(OSError):
        subprocess.run(["umount", str(folder / "data" / "workspaces")], stderr=subprocess.DEVNULL, check=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def side() -> AsyncIterator[OtherSide]:
    """The coordinator."""
    async with other_side() as found:
        yield found


@pytest.fixture
async def agent(side: OtherSide, short_path: Path) -> AsyncIterator[Agent]:
    """An agent that is not yet started; whatever it leaves behind fails the test."""
    found = Agent(side, short_path / "data")
    yield found
    await found.left()
    left = supervisors(found.data)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"supervisors were left: {left}\n{found.log}"


@pytest.fixture(scope="session")
def engine_url() -> Iterator[str]:
    """The engine of the session."""
    with contextlib.ExitStack() as up:
        try:
            url = up.enter_context(engine())
        except NoEngineError as error:
            cannot(str(error))
            raise
        yield url


@pytest.fixture
async def dockered(agent: Agent, short_path: Path, engine_url: str) -> AsyncIterator[Agent]:
    """An agent with that engine; nothing of its jobs may be left."""
    agent.env["DOCKER_HOST"] = engine_url
    left = Leftovers.begin(short_path)
    left.watch_engine(engine_url)
    yield agent
    left.agents = [(agent.data / "instance").read_text().strip()]
    # The agent itself still lives, and its folder with it.
    assert [each for each in (*left._docker(), *left._kernel()) if not each.startswith("mount ")] == []


def supervisors(data: Path) -> list[int]:
    """Supervisors whose spool is below this data directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if b"supervisor/main.py" in words and str(data).encode() in words:
                found.append(int(process.name))
    return found


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A git repository with one commit."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "hello.txt").write_text("hello from the repository\n")
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True, stdout=subprocess.DEVNULL)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    return folder, commit


def job(repository: tuple[Path, str] | None, *scripts: str, **fields: object) -> pb.JobSpec:
    """A job with these commands."""
    steps = [
        pb.Step(number=n, name=f"step {n}", run=pb.RunStep(script=script, shell="default"))
        for n, script in enumerate(scripts)
    ]
    source = pb.Source(path=str(repository[0]), commit=repository[1]) if repository else pb.Source()
    defaults: dict[str, object] = {
        "run_id": 1,
        "job_id": 2,
        "project": "project",
        "pipeline": "web",
        "stage": "test",
        "job": "unit",
        "source": source,
        "steps": steps,
        "sandbox": "bubblewrap",
        "network": "none",
        "timeout_ms": 60_000,
        "grace_ms": 1000,
        "checkout": pb.Checkout(enabled=repository is not None),
    }
    return pb.JobSpec(**(defaults | fields))  # type: ignore[arg-type]
