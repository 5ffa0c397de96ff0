"""Whether the agent is heard while jobs take all that there is: `python scripts/hold_out.py`, as root.

For each class of load, in the same minute: the load outside of jobs, as a control, and the same load in jobs that fill
all slots. What is measured is how late heartbeats arrive (at a coordinator of the tests that gets the CPU before
everybody), how long work takes that is done beside the agent, and a kill to the end of the attempt. Nothing takes more
than a GiB of memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agent.workspace.mounts import release_workspaces
from headrace.v1 import common_pb2 as pb
from tests.integration.agent.conftest import Agent, job
from tests.integration.agent.other_side import OtherSide, other_side

SLOTS = 2
BEAT_S = 0.5
"""Between two heartbeats, as the coordinator of the tests asks for them."""
MEMORY = 1 << 30
LOADS = {
    "cpu": "--cpu 8",
    "memory": "--vm 2 --vm-bytes 400M --vm-keep --oomable",
    "fork": "--fork 8",
    "files": "--open 4",
}
"""stress-ng's, for each slot."""
ENOUGH = "stress-ng --quiet --temp-path . --timeout 20 {}"
WORK = "import hashlib; [hashlib.sha256(bytes(1 << 20)).digest() for _ in range(1400)]"
"""What the agent might have to do: about a second of CPU, of a process beside it."""
FIRST, OTHERS = -20, ("nice", "-n", "20")


async def main(seconds: float) -> None:
    """All classes, one after the other."""
    if os.geteuid() != 0 or shutil.which("stress-ng") is None:
        raise SystemExit("this takes root, and stress-ng: apt-get install stress-ng")
    os.setpriority(os.PRIO_PROCESS, 0, FIRST)
    folder = Path(tempfile.mkdtemp(prefix="hro"))
    async with other_side() as side:
        agent = Agent(side, folder / "data", {"slots": SLOTS, "memory": MEMORY}, python=(*OTHERS, sys.executable))
        try:
            await agent.start()
            await report("nothing", side, seconds)
            for name, load in LOADS.items():
                async with outside(load):
                    await report(f"{name}, outside", side, seconds)
                await in_jobs(name, load, side, seconds)
            if len(side.hellos) != 1:
                raise SystemExit(f"the agent connected {len(side.hellos)} times")
        finally:
            await agent.left()
            await release_workspaces(agent.data / "workspaces")
            shutil.rmtree(folder)


async def report(name: str, side: OtherSide, seconds: float) -> None:
    """Listens for so long, and prints by how much heartbeats were late."""
    begun, idle = time.monotonic(), idle_s()
    work = await asyncio.create_subprocess_exec(*OTHERS, sys.executable, "-c", WORK)
    await work.wait()
    worked = time.monotonic() - begun
    await side.until(lambda: side.heard and side.heard[-1] > begun + seconds, seconds + 60)
    late = [max(0.0, b - a - BEAT_S) * 1000 for a, b in itertools.pairwise(side.heard) if b > begun]
    busy = 1 - (idle_s() - idle) / (time.monotonic() - begun) / (os.cpu_count() or 1)
    words = f"{len(late)} heartbeats, late by {statistics.median(late):.1f} ms, at most {max(late):.1f} ms"
    print(f"{name:18}CPU {busy:4.0%} busy, {words}; a second of work takes {worked:.1f} s", flush=True)


def idle_s() -> float:
    """Seconds that all CPUs together have been idle."""
    words = Path("/proc/stat").read_text().split(maxsplit=6)
    return (int(words[4]) + int(words[5])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def outside(load: str) -> AsyncIterator[None]:
    """The load of all slots without any job around it, but for a bound that keeps this machine alive."""
    group = Path("/sys/fs/cgroup/memory") / f"headrace-hold-out-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(MEMORY))
    folder = tempfile.mkdtemp(prefix="hro")
    commands = " & ".join([ENOUGH.format(load)] * SLOTS)
    words = [*OTHERS, "sh", "-c", f"echo 0 >{group}/cgroup.procs; {commands} & wait"]
    process = await asyncio.create_subprocess_exec(*words, cwd=folder, start_new_session=True)
    try:
        await asyncio.sleep(1)
        yield
    finally:
        while pids := (group / "cgroup.procs").read_text().split():
            kill(map(int, pids))
            await asyncio.sleep(0.05)
        await process.wait()
        group.rmdir()
        shutil.rmtree(folder)


def kill(pids: Sequence[int] | map[int]) -> None:
    """KILL; those that have ended do not matter."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def in_jobs(name: str, load: str, side: OtherSide, seconds: float) -> None:
    """The load in a job for each slot."""
    script = f"echo up; exec {ENOUGH.format(load)}"
    attempts = [side.give(job(None, script, timeout_ms=120_000)) for _ in range(SLOTS)]
    await side.until(lambda: all("up" in side.logs[attempt].text for attempt in attempts))
    await asyncio.sleep(1)
    await report(f"{name}, in jobs", side, seconds)
    early = [side.ended[attempt] for attempt in attempts if attempt in side.ended]
    asked = time.monotonic()
    for attempt in attempts:
        side.cancel(attempt, kill=True)
    await side.until(lambda: all(attempt in side.ended for attempt in attempts))
    states = {pb.AttemptState.Name(side.ended[attempt].state) for attempt in attempts}
    told = f", ended before: {[each.sentence for each in early]}" if early else ""
    print(f"{'':18}killed in {time.monotonic() - asked:.1f} s: {', '.join(sorted(states))}{told}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=10, help="for each measurement")
    asyncio.run(main(options.parse_args().seconds))
