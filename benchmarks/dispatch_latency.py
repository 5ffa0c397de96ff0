"""Idle: milliseconds from the trigger to the job at the agent. The value is the median; p99 is printed above it.

    python benchmarks/dispatch_latency.py [--samples N] [--peer-samples N] [--rounds N]

Ours: from the moment before CreateRun is sent (so its parsing, planning and commit are counted, too) until the
assignment is at a simulated agent in another process. The peer: Buildbot, from the moment before a build is asked
for, by the call that its force scheduler makes, until the build's first step begins at the worker. One after
another, each after the one before has ended; both are up all the time, rounds take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time

from benchmarks.harness.buildbot import VERSION, Buildbot, buildbot
from benchmarks.harness.coordinator import coordinator
from benchmarks.harness.fleet import Fleet, fleet, pipeline
from benchmarks.harness.processes import run
from benchmarks.harness.result import quantile, result

_PAUSE_S = 0.05
"""At most so long is waited between two samples, by chance, so that they fall in step with no timer."""


async def ours(agents: Fleet, samples: int, rng: random.Random) -> list[float]:
    """Milliseconds of each sample."""
    found = []
    for _ in range(samples):
        await asyncio.sleep(rng.uniform(0, _PAUSE_S))
        asked = time.monotonic()
        made = await agents.create(pipeline(1))
        job = await agents.done()
        assert job.run == made.id
        found.append((job.assigned - asked) * 1000)
    return found


async def theirs(peer: Buildbot, samples: int, rng: random.Random) -> list[float]:
    """Milliseconds of each sample."""
    found = []
    for _ in range(samples):
        await asyncio.sleep(rng.uniform(0, _PAUSE_S))
        build = await peer.begin()
        found.append((build.began - build.asked) * 1000)
    return found


def show(who: str, found: list[float]) -> None:
    p50, p99 = quantile(found, 0.5), quantile(found, 0.99)
    print(f"{who}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {max(found):.1f} ms of {len(found)}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--peer-samples", type=int, default=60)
    parser.add_argument("--agents", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rng = random.Random(1)
    mine: list[float] = []
    peers: list[float] = []
    async with buildbot() as peer, coordinator() as served, fleet(served, agents=given.agents, slots=1) as agents:
        await ours(agents, 1, rng)  # both have been used once before they are measured
        await theirs(peer, 1, rng)
        for _ in range(given.rounds):
            mine += await ours(agents, max(1, given.samples // given.rounds), rng)
            peers += await theirs(peer, max(1, given.peer_samples // given.rounds), rng)
    show("headrace", mine)
    show("Buildbot", peers)
    peer_name = f"Buildbot {VERSION}, 10 workers, SQLite"
    print(result("dispatch_latency", quantile(mine, 0.5), "ms", peer_name, quantile(peers, 0.5)).line())


if __name__ == "__main__":
    run(main)
