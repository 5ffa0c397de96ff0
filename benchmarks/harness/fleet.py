"""The simulated agents as a benchmark holds them, and the runs that it gives them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.coordinator import Coordinator
from benchmarks.harness.processes import child, line_of, plain_environment, scratch, tail_of
from headrace.client import Client, Run, Source
from headrace.client.types import LogBytes, LogEnd

_SAY_S = 60.0
_LINES = 5

SOURCE = Source(
    repository="https://git.example/bench.git",
    url="https://git.example/bench.git",
    commit="0123456789abcdef0123456789abcdef01234567",
    branch="main",
)


def pipeline(jobs: int) -> bytes:
    """A pipeline as many have it: one job first, the others side by side, the last one behind them all."""
    stages = ["  - name: build\n    jobs:\n      wheel: {steps: [{run: 'true'}]}\n"]
    if jobs > 2:
        middle = "".join(f"      unit-{n}: {{steps: [{{run: 'true'}}]}}\n" for n in range(jobs - 2))
        stages.append(f"  - name: test\n    jobs:\n{middle}")
    if jobs > 1:
        stages.append("  - name: report\n    jobs:\n      report: {steps: [{run: 'true'}]}\n")
    return ("name: bench\nstages:\n" + "".join(stages)).encode()


@dataclass(frozen=True, slots=True)
class Done:
    """A job that is over: its outcome recorded, its log sealed. Monotonic seconds of the machine."""

    run: int
    assigned: float
    done: float


class Fleet:
    """No-op jobs on simulated agents, which are another process."""

    def __init__(self, client: Client, process: asyncio.subprocess.Process, log: Path) -> None:
        self._client = client
        self._process = process
        self._log = log

    async def create(self, text: bytes) -> Run:
        """Starts a run."""
        return await self._client.create_run(SOURCE, text)

    async def done(self) -> Done:
        """The next job that is over. Raises ChildFailed when the agents fail or say nothing for a minute."""
        run, assigned, done = (await line_of(self._process, self._log, _SAY_S)).split()
        return Done(int(run), float(assigned), float(done))

    async def check(self, runs: int) -> None:
        """The newest runs passed, and the logs of the last of them are whole, as the API shows it."""
        seen, before = 0, 0
        while seen < runs:
            page = await self._client.runs(before=before, limit=min(200, runs - seen))
            wrong = [run for run in page if run.state != "passed"]
            assert not wrong, f"run {wrong[0].id} is {wrong[0].state}"
            seen, before = seen + len(page), page[-1].id
        for job in (await self._client.run(before)).jobs:
            records = [each async for each in self._client.tail(before, job.key, follow=False)]
            text = b"".join(each.data for each in records if isinstance(each, LogBytes))
            end = records[-1]
            assert isinstance(end, LogEnd), f"the log of {job.key} in run {before} does not end"
            assert end.complete, f"the log of {job.key} in run {before} is not sealed"
            assert text.count(b"\n") == _LINES, f"the log of {job.key} in run {before} is {text!r}"


@contextlib.asynccontextmanager
async def fleet(of: Coordinator, *, agents: int, slots: int) -> AsyncIterator[Fleet]:
    """Connected agents, ready for work; gone at the end."""
    with scratch("agents") as folder:
        log = folder / "log"
        argv = [sys.executable, "-m", "benchmarks.harness.agents", of.address, f"--agents={agents}", f"--slots={slots}"]
        async with (
            child(argv, log, env=plain_environment(HEADRACE_TOKEN=of.agent_token)) as process,
            Client(of.address, of.client_token) as client,
        ):
            await line_of(process, log, _SAY_S)
            try:
                yield Fleet(client, process, log)
            except Exception as error:
                error.add_note(f"the agents said:\n{tail_of(log)}")
                raise
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
