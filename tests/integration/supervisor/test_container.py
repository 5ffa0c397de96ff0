"""What the engine starts: proved by its cgroup, and killed by the guard. The engine itself is another room's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from agent.problems import Cause, JobProblem
from agent.sandbox.protocol import Attach
from tests.integration.supervisor.conftest import Held, Starter, when_dead

CONTAINER = f"{os.getpid():064x}"


@pytest.fixture
def group() -> Iterator[Path]:
    """A cgroup with the name of a container."""
    root = Path("/sys/fs/cgroup/pids") if Path("/sys/fs/cgroup/pids").is_dir() else Path("/sys/fs/cgroup")
    place = root / CONTAINER
    place.mkdir()
    yield place
    while left := (place / "cgroup.procs").read_text().split():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.01)
    place.rmdir()


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


class Container:
    """A pid namespace in a cgroup, as an engine would start it."""

    def __init__(self, folder: Path, group: Path) -> None:
        inner = f"echo $$ > {group}/cgroup.procs; exec unshare --mount --pid --fork --mount-proc --kill-child "
        self._process = subprocess.Popen(["sh", "-c", f"{inner} sh {folder}/io/control {folder}/io"], env={}, cwd="/")

    async def pid(self) -> int:
        """pid 1, as the machine knows it."""
        while not (found := children(self._process.pid)):  # noqa: ASYNC110 - a child has no event
            await asyncio.sleep(0.005)
        return int(found[0])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
async def attached(start: Starter, group: Path) -> Held:
    """A supervisor that was told of a container; the engine's own process is collected at the end."""
    held = await start()
    container = Container(held.folder, group)
    start.also.append(container.close)
    await held.client.launch(Attach(await container.pid(), CONTAINER))
    return held


@pytest.mark.root
async def test_a_container_is_taken_over_and_its_steps_are_the_same(attached: Held) -> None:
    """Its processes are those of its pid namespace."""
    assert (await attached.run("echo in; exit 4")).exit_code == 4
    result = await attached.run(
        "setsid sleep 100 & trap '' TERM; while :; do sleep 0.05; done", timeout_ms=200, grace_ms=100
    )
    assert result.cause is Cause.STEP_TIMED_OUT
    await attached.run("ls -d /proc/[0-9]* | wc -l")
    assert int(attached.text(3)) <= 5
    assert (await attached.client.end()).cause is None


@pytest.mark.root
async def test_a_container_dies_with_its_supervisor_by_the_guard(attached: Held) -> None:
    """Its step would run on, without a deadline and with nobody to read its exit code."""
    running = asyncio.create_task(attached.run("echo up; sleep 100"))
    await attached.until(b"up")
    dead = when_dead((await attached.client.state()).pid)
    os.kill(attached.client.pid, signal.SIGKILL)
    async with asyncio.timeout(2):
        await dead
    await asyncio.wait([running])
    assert running.exception() is not None


@pytest.mark.root
async def test_a_process_that_is_not_the_containers_is_refused(start: Starter) -> None:
    """A reused number must never be killed in a container's stead."""
    held = await start()
    other = await asyncio.create_subprocess_exec("sleep", "100")
    with pytest.raises(JobProblem, match="does not belong to container"):
        await held.client.launch(Attach(other.pid, "ab" * 32))
    assert other.returncode is None
    other.kill()
    await other.wait()
    assert (await held.client.end()).cause is Cause.ERRORED


def test_the_supervisor_imports_nothing_that_is_large() -> None:
    """One for each attempt, started while someone waits: the standard library and zstandard alone."""
    root, site = Path(__file__).parents[3], Path(zstandard.__file__).parents[1]
    code = (
        f"import sys; sys.path += [{str(root)!r}, {str(site)!r}]; import agent.supervisor.run, agent.supervisor.server;"
        "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names);"
        "print(*({'asyncio', 'inspect', 'subprocess', 'ctypes', 'logging'} & set(sys.modules)))"
    )
    told = subprocess.check_output([sys.executable, "-I", "-S", "-c", code], text=True).splitlines()
    assert (set(told[0].split()) - {"__main__", "_cffi_backend"}, told[1]) == ({"agent", "zstandard"}, "")
