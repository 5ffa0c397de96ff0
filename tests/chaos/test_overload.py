"""Floods of logs and readers that do not read: who makes them has the harm, and nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import metadata
from pathlib import Path

import grpc.aio
import psutil
import pytest
import zstandard

from headrace.client import Client, Source
from headrace.client.types import LogBytes, LogEnd
from headrace.v1 import agent_pb2 as pb
from headrace.v1 import agent_pb2_grpc, log_pb2, log_pb2_grpc
from tests.harness.command_line import git_repository
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon, bearer, client, processes_of, token

pytestmark = pytest.mark.timeout(400)

MIB = 1 << 20
LOG = 200 * MIB
FRAME = 64 << 10
READERS = 30
"""Who never read."""
GROWTH_MIB = 250.0
"""Of a coordinator while a log of 200 MiB goes through it, beside readers that would each have it in memory."""
CALM_AT_LEAST_S = 0.05
RATIO = 12.0
"""What others may lose of their latency while a flood takes all of the machine's cores."""
LINE = 1 << 30
LIMIT = 16 * MIB
SOURCE = Source(
    repository="https://git.example/flood.git",
    url="https://git.example/flood.git",
    commit="0123456789abcdef0123456789abcdef01234567",
    branch="main",
)


class Watched:
    """The largest growth of some processes' memory, looked at five times a second."""

    def __init__(self, of: Callable[[], dict[str, int]]) -> None:
        self._of = of
        self.first: dict[str, float] = {}
        self.most: dict[str, float] = {}

    async def run(self) -> None:
        while True:
            for name, pid in self._of().items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    now = psutil.Process(pid).memory_info().rss / MIB
                    self.first.setdefault(name, now)
                    self.most[name] = max(now, self.most.get(name, 0.0))
            await asyncio.sleep(0.2)

    @property
    def growth(self) -> dict[str, float]:
        return {name: round(self.most[name] - first, 1) for name, first in self.first.items()}


@contextlib.asynccontextmanager
async def beside(coroutine: object) -> AsyncIterator[None]:
    task = asyncio.ensure_future(coroutine)  # type: ignore[arg-type]  # a coroutine
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def assigned(session: grpc.aio.StreamStreamCall, person: Client) -> tuple[int, pb.Assignment]:
    """A run with one job, given to an agent that is only a stream."""
    ability = pb.SandboxAbility(kind="bubblewrap", networks=["full", "none"])
    hello = pb.Hello(
        name="a",
        instance_id="instance",
        version=metadata.version("headrace"),
        pool="default",
        slots=1,
        credit=1,
        sandboxes=[ability],
    )
    await session.write(pb.SessionRequest(hello=hello))
    assert (await session.read()).HasField("welcome")
    run = await person.create_run(SOURCE, b"name: p\nstages: [{name: s, jobs: {j: {steps: [{run: 'true'}]}}}]\n")
    given: pb.Assignment = (await session.read()).assignments.assignments[0]
    said = {"attempt_id": given.attempt_id, "token": given.token}
    taken = pb.Acknowledgement(number=given.number, accepted=True, **said)  # type: ignore[arg-type]
    await session.write(pb.SessionRequest(acknowledgements=pb.Acknowledgements(acknowledgements=[taken])))
    started = pb.Report(id="0123456789abcdef", started=pb.Started(at_ms=1), **said)  # type: ignore[arg-type]
    await session.write(pb.SessionRequest(reports=pb.Reports(reports=[started])))
    return run.id, given


def messages(given: pb.Assignment) -> Iterator[log_pb2.AppendRequest]:
    """200 MiB that nothing compresses, in messages of a MiB."""
    opened = log_pb2.SectionOpened(section=1, kind="step", title="flood", step=0)
    records, offset = [log_pb2.Record(sequence=1, time_ms=1, opened=opened)], 0
    for number in range(LOG // FRAME):
        frame = log_pb2.Frame(raw_length=FRAME, zstd=zstandard.compress(os.urandom(FRAME), 1), section=1)
        records.append(log_pb2.Record(sequence=number + 2, offset=offset, time_ms=1, frame=frame))
        offset += FRAME
        if len(records) >= 16 or offset == LOG:
            batch = log_pb2.RecordBatch(attempt_id=given.attempt_id, token=given.token, stream="main", records=records)
            yield log_pb2.AppendRequest(batches=[batch])
            records = []


async def latency(person: Client, *, until: asyncio.Future[object] | None = None, times: int = 20) -> float:
    """The median of what it takes to list runs: so many times, or until something is over."""
    took = []
    while len(took) < times or (until is not None and not until.done()):
        began = time.monotonic()
        await person.runs(limit=5)
        took.append(time.monotonic() - began)
        await asyncio.sleep(0.05)
    return statistics.median(took)


def test_readers_that_do_not_read_hold_no_memory_and_keep_nobody_waiting(make_coordinator: Make) -> None:
    """A laptop that is closed over `headrace logs -f` must not cost the coordinator what the job still writes."""
    of = make_coordinator(HEADRACE_LEASE_S="600", HEADRACE_HEARTBEAT_S="60", HEADRACE_STREAMS_MOST=str(READERS + 1))
    of.start()
    address = of.facts["address"]

    async def main() -> None:
        async with contextlib.AsyncExitStack() as up:
            person = await up.enter_async_context(Client(address, token(of, "client")))
            channels = [await up.enter_async_context(grpc.aio.insecure_channel(address)) for _ in range(READERS + 2)]
            agents = bearer(token(of, "agent"))
            session = agent_pb2_grpc.AgentServiceStub(channels[0]).Session(metadata=agents)
            run, given = await assigned(session, person)
            tails = [unread(channel, of, run) for channel in channels[2:]]
            calm = await latency(person)
            memory = Watched(lambda: {"coordinator": of.process.pid})
            await up.enter_async_context(beside(memory.run()))
            live = asyncio.ensure_future(read_live(person, run))
            await append(log_pb2_grpc.LogServiceStub(channels[1]), agents, given, live, person, calm)
            assert await live == LOG
            assert memory.growth["coordinator"] < GROWTH_MIB, memory.growth
            assert not any(tail.done() for tail in tails)
            assert await read_late(tails[-1]) == LOG

    async def append(
        stub: log_pb2_grpc.LogServiceStub, agents: object, given: pb.Assignment, live: asyncio.Future[int],
        person: Client, calm: float,
    ) -> None:  # fmt: skip
        call = stub.Append(metadata=agents)

        async def write() -> None:
            for message in messages(given):
                await call.write(message)
            await call.done_writing()

        async with beside(write()):
            flooded = asyncio.ensure_future(latency(person, until=live))
            durable = 0
            async for answer in call:
                for each in answer.durable:
                    assert not each.rejected, each.sentence
                    durable = each.offset
            assert durable == LOG
            slow = await flooded
        assert slow < RATIO * max(calm, CALM_AT_LEAST_S), (calm, slow)

    asyncio.run(main())


def unread(channel: grpc.aio.Channel, of: Daemon, run: int) -> grpc.aio.UnaryStreamCall:
    """A tail that has been asked for, and of which nothing is read."""
    asks = log_pb2.TailRequest(run_id=run, job="j", follow=True)
    return log_pb2_grpc.LogServiceStub(channel).Tail(asks, metadata=bearer(token(of, "client")))


async def read_late(tail: grpc.aio.UnaryStreamCall) -> int:
    """Reads, after all that time, what such a tail has to say; returns how much it was."""
    size = 0
    while size < LOG:
        record = (await tail.read()).record
        if record.HasField("frame"):
            assert record.offset == size
            size += record.frame.raw_length
    return size


async def read_live(person: Client, run: int) -> int:
    """Reads a log while it is written; returns how much it was when all of it had come."""
    size = 0
    async for each in person.tail(run, "j"):
        assert not isinstance(each, LogEnd)
        if isinstance(each, LogBytes):
            assert each.offset == size
            size += len(each.data)
            if size == LOG:
                break
    return size


TICKS = "while true; do date +%s.%N; sleep 0.2; done"
QUIET = f"name: quiet\nstages: [{{name: a, jobs: {{tick: {{network: none, steps: [{{run: '{TICKS}'}}]}}}}}}]\n"
FLOOD = f"""
name: flood
stages:
  - name: a
    jobs:
      line: {{network: none, steps: [{{run: "head -c {LINE} /dev/zero | tr '\\\\0' x; echo; echo behind it"}}]}}
"""


class Ticks:
    """What another job prints, and how long it was on its way. Reads until it is cancelled."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    async def run(self, person: Client, run: int) -> None:
        async for each in person.tail(run, "tick"):
            if isinstance(each, LogBytes) and not each.ours:
                now = time.time()
                self.delays += [now - float(line) for line in re.findall(rb"^(\d+\.\d+)$", each.data, re.MULTILINE)]

    async def gather(self, count: int) -> float:
        """The median of the next ones."""
        begin = len(self.delays)
        async with asyncio.timeout(120):
            while len(self.delays) < begin + count:  # noqa: ASYNC110 - another machine's clock ticks
                await asyncio.sleep(0.05)
        return statistics.median(self.delays[begin:])


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a bubblewrap sandbox of an agent that is root")
def test_a_line_of_a_gib_is_cut_at_the_limit_and_other_jobs_do_not_notice(
    make_coordinator: Make, make_agent: Make, tmp_path: Path
) -> None:
    """Whoever prints a binary file by mistake gets a failed look at the log, not a failed fleet: the job goes on to its
    end, the log says where it was cut and how much is missing, no process grows with it, and a job beside it on the
    same agent is shown as live as before."""
    of = make_coordinator()
    of.start()
    side = make_agent(of, HEADRACE_LOG_LIMIT=str(LIMIT))
    side.start()
    runs = []
    for name, text in (("quiet", QUIET), ("flood", FLOOD)):
        git_repository(tmp_path / name, {"headrace.yml": text})
        runs.append(client(of, tmp_path / name, tmp_path / "state"))

    async def main() -> None:
        async with Client(of.facts["address"], token(of, "client")) as person:
            assert runs[0]("run", "--detach").code == 0
            ticks = Ticks()
            memory = Watched(lambda: pids(of, side))
            async with beside(ticks.run(person, 1)), beside(memory.run()):
                calm = await ticks.gather(15)
                assert (await asyncio.to_thread(runs[1], "run", "--detach")).code == 0
                flooded = asyncio.ensure_future(ticks.gather(15))
                log = await whole_log(person, 2)
                slow = await flooded
            judge(log)
            assert (await person.run(2)).state == "passed"
            assert slow < RATIO * max(calm, CALM_AT_LEAST_S), (calm, slow)
            assert all(growth < 60 for growth in memory.growth.values()), memory.growth
            assert {"coordinator", "agent"} < set(memory.growth)
            await person.cancel(1)
            await person.cancel(1)
            async for change in person.watch(1):
                if change.run is not None and change.run.ended:
                    break

    asyncio.run(main())


def pids(of: Daemon, side: Daemon) -> dict[str, int]:
    """The daemons, and each supervisor by its process id."""
    found = {"coordinator": of.process.pid, "agent": side.process.pid}
    for line in processes_of(side.folder):
        pid, _, command = line.partition(" ")
        if "supervisor/main.py" in command:
            found[f"supervisor {pid}"] = int(pid)
    return found


async def whole_log(person: Client, run: int) -> bytes:
    parts = [each.data async for each in person.tail(run, "line") if isinstance(each, LogBytes)]
    return b"".join(parts)


def judge(log: bytes) -> None:
    assert LIMIT < len(log) < LIMIT + 64 * 1024
    assert log.count(b"x") >= LIMIT - 64 * 1024
    assert b"*** headrace: the log is cut here: it has reached its limit of %d bytes ***" % LIMIT in log
    missing = re.search(rb"\*\*\* headrace: (\d+) bytes are missing: the log had reached its limit \*\*\*", log)
    assert missing is not None
    assert LINE - LIMIT <= int(missing[1]) <= LINE - LIMIT + 64 * 1024
