"""Milliseconds from an assignment to the first byte of the job's first command; the value is the median.

    python benchmarks/sandbox_start.py [--samples N] [--network full|none] [--image NAME]

Ours: a real coordinator, a real agent with its supervisor; the job has no checkout and its first command says what
time it is. It counts from the moment when the database wrote that the job is the agent's. The peer: `docker run
--rm` of the same command in the same image, from the moment before the program is started. The three take turns.
Prints a line for bubblewrap, and last one for docker.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import time

from benchmarks.harness.agent import agent
from benchmarks.harness.coordinator import Coordinator, coordinator
from benchmarks.harness.fleet import SOURCE
from benchmarks.harness.processes import ChildFailed, run
from benchmarks.harness.result import median, quantile, result
from headrace.client import Client
from headrace.client.types import LogBytes
from tests.harness.docker_engine import engine
from tests.harness.images import debian

_COMMAND = "echo now=$(date +%s%N)"
_PEER_NETWORK = {"full": "bridge", "none": "none"}


def pipeline(where: str, network: str) -> bytes:
    """One job without a checkout. `where`: `sandbox: …` or `image: …`."""
    step = f"{{run: '{_COMMAND}', shell: sh}}"
    job = f"{{{where}, network: {network}, checkout: false, steps: [{step}]}}"
    return f"name: start\nstages:\n  - name: only\n    jobs:\n      only: {job}\n".encode()


async def ours(client: Client, text: bytes) -> float:
    """One sample."""
    made = await client.create_run(SOURCE, text)
    log = b"".join([each.data async for each in client.tail(made.id, "only") if isinstance(each, LogBytes)])
    shown = await client.run(made.id)
    attempt = shown.jobs[0].attempts[-1]
    if b"now=" not in log or attempt.leased_at is None:
        raise ChildFailed(f"the job did not run: {shown.jobs[0].sentence} {attempt.sentence}\n{log.decode()}")
    return (_said(log) - attempt.leased_at.timestamp()) * 1000


async def theirs(docker_host: str, image: str, network: str) -> float:
    """One sample."""
    argv = ["docker", "--host", docker_host, "run", "--rm", "--network", _PEER_NETWORK[network], image]
    since = time.time()
    ran = await asyncio.to_thread(subprocess.run, [*argv, "sh", "-c", _COMMAND], capture_output=True, check=False)
    if ran.returncode != 0:
        raise ChildFailed(f"docker run failed: {ran.stderr.decode(errors='replace')}")
    return (_said(ran.stdout) - since) * 1000


def _said(output: bytes) -> float:
    """The time that the command wrote, in seconds."""
    return int(output.split(b"now=")[1].split()[0]) / 1e9


def show(who: str, found: list[float]) -> None:
    p50, p90 = quantile(found, 0.5), quantile(found, 0.9)
    print(f"{who}: p50 {p50:.1f} ms, p90 {p90:.1f} ms of {len(found)}", flush=True)


async def measure(served: Coordinator, docker_host: str, given: argparse.Namespace) -> dict[str, list[float]]:
    """All samples; the first of each kind is not counted."""
    image = given.image or await asyncio.to_thread(debian, docker_host)
    found: dict[str, list[float]] = {"bubblewrap": [], "docker": [], "docker run": []}
    async with agent(served, docker_host=docker_host), Client(served.address, served.client_token) as client:
        for number in range(given.samples + 1):
            sample = {
                "bubblewrap": await ours(client, pipeline("sandbox: bubblewrap", given.network)),
                "docker": await ours(client, pipeline(f"image: '{image}'", given.network)),
                "docker run": await theirs(docker_host, image, given.network),
            }
            for kind, value in sample.items() if number else ():
                found[kind].append(value)
    return found


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--network", choices=sorted(_PEER_NETWORK), default="full")
    parser.add_argument("--image", default="", help="left out: Debian's smallest, made on this machine")
    given = parser.parse_args()
    with engine() as docker_host:
        async with coordinator() as served:
            found = await measure(served, docker_host, given)
    for kind, values in found.items():
        show(kind, values)
    peer = median(found["docker run"])
    for name, kind in (("sandbox_start_bubblewrap", "bubblewrap"), ("sandbox_start", "docker")):
        print(result(name, median(found[kind]), "ms", "docker run --rm", peer).line())


if __name__ == "__main__":
    run(main)
