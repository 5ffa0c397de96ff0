"""No-op jobs a second, from the first CreateRun to the last recorded outcome and sealed log.

    python benchmarks/dispatch_throughput.py [--jobs N] [--run-jobs N] [--peer-builds N] [--rounds N]

Ours: one coordinator process with its defaults and the embedded PostgreSQL (fsync on), simulated agents that speak
the real protocol from another process, runs of several jobs that depend on each other, five log lines a job. The
peer: Buildbot, one master on SQLite, ten workers, builds of one step that does nothing on the worker and logs five
lines. Both are up all the time; rounds take turns, and the median round counts.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from benchmarks.harness.buildbot import VERSION, Buildbot, buildbot
from benchmarks.harness.coordinator import coordinator
from benchmarks.harness.fleet import Fleet, fleet, pipeline
from benchmarks.harness.processes import run
from benchmarks.harness.result import median, result


async def ours(agents: Fleet, runs: int, run_jobs: int, clients: int) -> float:
    """Jobs a second of one round."""
    text = pipeline(run_jobs)
    todo = iter(range(runs))

    async def client() -> None:
        for _ in todo:
            await agents.create(text)

    since = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            tasks.create_task(client())
        last = max([(await agents.done()).done for _ in range(runs * run_jobs)])
    await agents.check(runs)
    return runs * run_jobs / (last - since)


async def theirs(peer: Buildbot, builds: int) -> float:
    """Builds a second of one round."""
    return builds / await peer.build(builds)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2_000, help="jobs of a round")
    parser.add_argument("--run-jobs", type=int, default=10, help="jobs of a run")
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--slots", type=int, default=4, help="of each agent")
    parser.add_argument("--clients", type=int, default=8, help="CreateRun calls under way at once")
    parser.add_argument("--peer-builds", type=int, default=60, help="Buildbot's builds of a round")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    runs = max(1, given.jobs // given.run_jobs)
    speeds: list[tuple[float, float]] = []
    async with (
        buildbot() as peer,
        coordinator() as served,
        fleet(served, agents=given.agents, slots=given.slots) as agents,
    ):
        await ours(agents, 1, given.run_jobs, 1)  # both have been used once before they are measured
        await theirs(peer, 1)
        for number in range(given.rounds):
            pair = await ours(agents, runs, given.run_jobs, given.clients), await theirs(peer, given.peer_builds)
            print(f"round {number + 1}: headrace {pair[0]:.1f} jobs/s, Buildbot {pair[1]:.1f} builds/s", flush=True)
            speeds.append(pair)
    found = result(
        "dispatch_throughput",
        median([pair[0] for pair in speeds]),
        "jobs/s",
        f"Buildbot {VERSION}, 10 workers, SQLite",
        median([pair[1] for pair in speeds]),
    )
    print(found.line())


if __name__ == "__main__":
    run(main)
