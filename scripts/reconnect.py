"""Lets a fleet come back all at once, and measures what it costs: `python scripts/reconnect.py --agents 10000`.

One real coordinator with its defaults, and in this process agents that are only streams, so many to a connection. All
say Hello in one moment, as after a restart; who is sent away comes again when it was told, or up to a quarter later, as
agents do. Meanwhile one more agent, which was there before, measures how long its heartbeats take. Prints the time
until all are back, and the heartbeats' p50, p99 and worst.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from importlib import metadata
from pathlib import Path

import grpc.aio
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness.coordinator import Coordinator, coordinator
from benchmarks.harness.result import quantile
from headrace.v1 import agent_pb2 as pb
from headrace.v1 import agent_pb2_grpc

VERSION = metadata.version("headrace")


class Fleet:
    """Agents that are streams over a few connections."""

    def __init__(self, of: Coordinator, channels: list[grpc.aio.Channel], rng: random.Random) -> None:
        self._shown = (("authorization", f"Bearer {of.agent_token}"),)
        self._stubs = [agent_pb2_grpc.AgentServiceStub(each) for each in channels]
        self._rng = rng
        self.said: Counter[str] = Counter()
        self.back = 0
        self.all_back = asyncio.Event()

    async def agent(self, number: int, count: int) -> None:
        """Comes back, and stays with its heartbeats until it is cancelled."""
        while True:
            stream = self._stubs[number % len(self._stubs)].Session(metadata=self._shown)
            answer = await self._hello(stream, number)
            if answer is not None and answer.HasField("welcome"):
                break
            self.said["sent away" if answer is not None else "cut off"] += 1
            wait = answer.go_away.retry_after_ms / 1000 if answer is not None else 1.0
            stream.cancel()
            await asyncio.sleep(wait * self._rng.uniform(1.0, 1.25))
        self.back += 1
        if self.back == count:
            self.all_back.set()
        await self._beat(stream, answer.welcome.heartbeat_interval_ms / 1000, [])

    async def honest(self, took: list[float]) -> None:
        """The agent that is there already: how long each of its heartbeats takes, ten a second."""
        stream = self._stubs[0].Session(metadata=self._shown)
        assert await self._hello(stream, -1) is not None
        await self._beat(stream, 0.1, took)

    async def _hello(self, stream: grpc.aio.StreamStreamCall, number: int) -> pb.SessionResponse | None:
        hello = pb.Hello(
            name=f"a{number}", instance_id=f"instance-{number}", version=VERSION, pool="default", slots=1, credit=1
        )
        try:
            await stream.write(pb.SessionRequest(hello=hello))
            answer = await stream.read()
        except grpc.aio.AioRpcError:
            return None
        return answer if isinstance(answer, pb.SessionResponse) else None

    async def _beat(self, stream: grpc.aio.StreamStreamCall, every_s: float, took: list[float]) -> None:
        number = 0
        while True:
            number += 1
            began = time.monotonic()
            await stream.write(pb.SessionRequest(heartbeat=pb.Heartbeat(sequence=number)))
            while True:
                answer = await stream.read()
                if not isinstance(answer, pb.SessionResponse):
                    self.said["lost its session"] += 1
                    return
                if answer.heartbeat_answer.sequence == number:
                    break
            took.append(time.monotonic() - began)
            await asyncio.sleep(max(0.0, every_s - took[-1]))


async def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Lets a fleet come back all at once, and measures what it costs.")
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    async with AsyncExitStack() as up:
        of = await up.enter_async_context(coordinator())
        channels = [
            await up.enter_async_context(
                grpc.aio.insecure_channel(of.address, options=(("grpc.use_local_subchannel_pool", 1),))
            )
            for _ in range(asked.connections + 1)
        ]
        took: list[float] = []
        rng = random.Random(asked.seed)
        first = Fleet(of, channels[:1], rng)
        tasks = [asyncio.create_task(first.honest(took))]
        await asyncio.sleep(3)
        calm, took[:] = list(took), []
        fleet, began = Fleet(of, channels[1:], rng), time.monotonic()
        tasks += [asyncio.create_task(fleet.agent(number, asked.agents)) for number in range(asked.agents)]
        await asyncio.wait_for(fleet.all_back.wait(), 600)
        seconds = time.monotonic() - began
        print(f"{asked.agents:,} agents are back after {seconds:.1f} s; {dict(fleet.said)}")
        for name, found in (("before", calm), ("meanwhile", took)):
            p50, p99 = (quantile(found, each) * 1000 for each in (0.5, 0.99))
            print(f"heartbeat {name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {max(found) * 1000:.1f} ms")
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    uvloop.run(main())
