"""A process of simulated agents: the real session code over the real wire, jobs that do nothing.

    HEADRACE_TOKEN=… python -m benchmarks.harness.agents HOST:PORT --agents 50 --slots 4

Each agent has a session and, on a connection of its own, an Append stream. A job is acknowledged, reported as
started and, when that is recorded, as passed; its log has two sections and five lines in a real zstd frame. When
its outcome is recorded and its log is durable to the end (so sealed), a line `RUN ASSIGNED DONE` is written:
monotonic seconds, the clock of the whole machine. The first line is `ready`; the end of its input ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop
import zstandard

from agent.clock import SystemClock
from agent.session import Identity, Outbox, Session
from agent.wire import Access, LogWire, appends, sessions
from headrace.v1 import agent_pb2, common_pb2, log_pb2

LINES = 5
_RECORDS = 5
_WRITE_S = 0.01


@dataclass(slots=True)
class Simulated:
    """One job in hand."""

    attempt: int
    token: bytes
    run: int
    assigned: float
    bytes: int = 0
    running: bool = False
    recorded: bool = False
    durable: bool = False


class SimulatedJobs:
    """The jobs of one agent: what `agent.session.Jobs` asks for, without a sandbox."""

    def __init__(self, outbox: Outbox, log: AppendStream, finished: Finished) -> None:
        self._outbox = outbox
        self._log = log
        self._finished = finished
        self._jobs: dict[int, Simulated] = {}
        log.durable = self._durable

    def held(self) -> Sequence[agent_pb2.HeldAttempt]:
        """Every attempt whose outcome is not yet acknowledged."""
        return [
            agent_pb2.HeldAttempt(
                attempt_id=job.attempt, token=job.token, state=common_pb2.ATTEMPT_STATE_RUNNING, log_records=_RECORDS
            )
            for job in self._jobs.values()
            if not job.recorded
        ]

    def occupying(self) -> frozenset[int]:
        """The attempts whose slot is taken."""
        return frozenset(job.attempt for job in self._jobs.values() if not job.running)

    def why_not(self) -> str:
        """Nothing is ever short here."""
        return ""

    def begin(self, assignment: agent_pb2.Assignment) -> str:
        """The sandbox would start here."""
        spec = common_pb2.JobSpec.FromString(assignment.spec)
        job = Simulated(assignment.attempt_id, assignment.token, spec.run_id, time.monotonic())
        self._jobs[job.attempt] = job
        self._log.append(job, _begin_of_log())
        self._outbox.hand_in(
            agent_pb2.Report(
                id=secrets.token_hex(16),
                attempt_id=job.attempt,
                token=job.token,
                started=agent_pb2.Started(at_ms=_now_ms()),
            )
        )
        return ""

    def answered(self, answer: agent_pb2.ReportAnswer) -> None:
        """Started: so it ends. Ended: so its outcome is recorded."""
        job = self._jobs[answer.attempt_id]
        if answer.abort:
            raise RuntimeError(f"attempt {job.attempt} was aborted: {answer.sentence}")
        if not job.running:
            self._end(job)
            return
        job.recorded = True
        self._settle(job)

    def _end(self, job: Simulated) -> None:
        job.running = True
        job.bytes, records = _end_of_log(job.attempt)
        self._log.append(job, records)
        now = _now_ms()
        step = common_pb2.StepResult(number=0, name="true", exit_code=0, began_ms=now, ended_ms=now)
        self._outbox.hand_in(
            agent_pb2.Report(
                id=secrets.token_hex(16),
                attempt_id=job.attempt,
                token=job.token,
                ended=agent_pb2.Ended(
                    state=common_pb2.ATTEMPT_STATE_PASSED,
                    steps=[step],
                    log_records={"main": _RECORDS},
                    log_bytes={"main": job.bytes},
                    timings=agent_pb2.Timings(sandbox_ms=1, steps_ms=1),
                ),
            )
        )
        self._outbox.slots_changed()

    def _durable(self, durable: log_pb2.Durable) -> None:
        """Batches that were stored together are all answered with the end of the last: then the job may be over."""
        if durable.rejected:
            raise RuntimeError(f"the log of attempt {durable.attempt_id} was rejected: {durable.sentence}")
        if (job := self._jobs.get(durable.attempt_id)) is not None:
            job.durable = durable.sequence == _RECORDS
            self._settle(job)

    def _settle(self, job: Simulated) -> None:
        if job.recorded and job.durable:
            del self._jobs[job.attempt]
            self._finished.tell(job)

    def welcomed(self, welcome: agent_pb2.Welcome) -> None:
        """A session has begun."""

    def cancel(self, cancel: agent_pb2.Cancel) -> None:
        """Nobody cancels in a benchmark: an assignment came too late to be believed."""
        raise RuntimeError(f"attempt {cancel.attempt_id} was canceled: {cancel.sentence}")

    def permitted(self, answer: agent_pb2.PermitAnswer) -> None:
        """Nothing is deployed."""

    def alive(self, sent_boot_ms: int) -> None:
        """A heartbeat was answered."""


class AppendStream:
    """The log stream of one agent: what waits is one message, as the forwarder does it."""

    def __init__(self) -> None:
        self._waiting: list[log_pb2.RecordBatch] = []
        self._something = asyncio.Event()
        self.durable = _nothing

    def append(self, job: Simulated, records: Sequence[log_pb2.Record]) -> None:
        """Sends records of a job."""
        self._waiting.append(
            log_pb2.RecordBatch(attempt_id=job.attempt, token=job.token, stream="main", records=records)
        )
        self._something.set()

    async def run(self, wire: LogWire) -> None:
        """Sends and takes answers until the stream ends, which raises."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send(wire))
            while True:
                for each in (await wire.receive()).durable:
                    self.durable(each)

    async def _send(self, wire: LogWire) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            batches, self._waiting = self._waiting, []
            await wire.send(log_pb2.AppendRequest(batches=batches))


class Finished:
    """Tells the parent, a few lines at a time."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._something = asyncio.Event()

    def tell(self, job: Simulated) -> None:
        """A job is over."""
        self._lines.append(f"{job.run} {job.assigned:.6f} {time.monotonic():.6f}\n")
        self._something.set()

    async def run(self) -> None:
        """Writes until it is cancelled."""
        while True:
            await self._something.wait()
            self._something.clear()
            lines, self._lines = self._lines, []
            sys.stdout.write("".join(lines))
            sys.stdout.flush()
            await asyncio.sleep(_WRITE_S)


def _nothing(durable: log_pb2.Durable) -> None:
    """Before the jobs are there."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _begin_of_log() -> list[log_pb2.Record]:
    """The setup section, and the step's beginning: no bytes of the job yet."""
    now = _now_ms()
    return [
        log_pb2.Record(
            sequence=1, time_ms=now, opened=log_pb2.SectionOpened(section=1, kind="setup", title="setup", step=-1)
        ),
        log_pb2.Record(sequence=2, time_ms=now, closed=log_pb2.SectionClosed(section=1)),
        log_pb2.Record(
            sequence=3, time_ms=now, opened=log_pb2.SectionOpened(section=2, kind="step", title="true", step=0)
        ),
    ]


def _end_of_log(attempt: int) -> tuple[int, list[log_pb2.Record]]:
    """Five lines as the supervisor frames them (they come within 100 ms), and the step's end."""
    now = _now_ms()
    raw = b"".join(b"%d: line %d of a job that does nothing, attempt %d\n" % (now, n, attempt) for n in range(LINES))
    frame = log_pb2.Frame(raw_length=len(raw), zstd=zstandard.compress(raw, 1), section=2)
    return len(raw), [
        log_pb2.Record(sequence=4, time_ms=now, frame=frame),
        log_pb2.Record(sequence=5, offset=len(raw), time_ms=now, closed=log_pb2.SectionClosed(section=2)),
    ]


async def agent(identity: Identity, address: str, access: Access, finished: Finished, ready: asyncio.Event) -> None:
    """One agent, until it is cancelled; a connection that ends is a failure here."""
    outbox, log = Outbox(), AppendStream()
    jobs = SimulatedJobs(outbox, log, finished)
    wire = await sessions(lambda _: access).dial(address)
    logs = await appends(lambda _: access).dial(address)
    try:
        async with asyncio.TaskGroup() as tasks:
            session = Session(wire, identity, jobs, outbox, SystemClock())
            await session.greet()
            ready.set()
            tasks.create_task(session.run())
            tasks.create_task(log.run(logs))
    finally:
        await wire.close()
        await logs.close()


async def _end_of_input() -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


async def main() -> None:
    """Runs the agents until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--agents", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    options = parser.parse_args()
    access = Access(os.environ["HEADRACE_TOKEN"], secure=False)
    finished = Finished()
    ready = [asyncio.Event() for _ in range(options.agents)]
    ability = agent_pb2.SandboxAbility(kind="docker", networks=["full", "none"])
    identities = [
        Identity(secrets.token_hex(8), f"bench-{n}", "0", "default", options.slots, sandboxes=(ability,))
        for n in range(options.agents)
    ]
    async with asyncio.TaskGroup() as fleet:
        writing = fleet.create_task(finished.run())
        working = [
            fleet.create_task(agent(identity, options.address, access, finished, event))
            for identity, event in zip(identities, ready, strict=True)
        ]
        for event in ready:
            await event.wait()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await _end_of_input()
        for task in (writing, *working):
            task.cancel()


if __name__ == "__main__":
    uvloop.run(main())
