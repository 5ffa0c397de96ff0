"""The other side of a session, simulated: a wire that delays and cuts, a coordinator that keeps the contract's
books and complains when an agent breaks them, and jobs that only sleep."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field

import grpc

from agent.session import Identity, Outbox
from agent.wire import SessionWire, WireClosed
from headrace.v1 import agent_pb2 as pb
from headrace.v1 import common_pb2

ENDED = {
    common_pb2.ATTEMPT_STATE_PASSED,
    common_pb2.ATTEMPT_STATE_FAILED,
    common_pb2.ATTEMPT_STATE_ERRORED,
    common_pb2.ATTEMPT_STATE_CANCELED,
}


class Pipe:
    """One direction: in order, each message after a random delay, nothing after a cut."""

    def __init__(self, rng: random.Random, delay: float) -> None:
        self.rng, self.delay, self.last = rng, delay, 0.0
        self.queue: asyncio.Queue[object] = asyncio.Queue()

    def put(self, message: object) -> None:
        loop = asyncio.get_running_loop()
        # Never two at one instant: the loop would deliver them in any order.
        self.last = max(self.last + 1e-6, loop.time() + self.rng.uniform(0, self.delay))
        loop.call_at(self.last, self.queue.put_nowait, message)


class SimulatedWire:
    """Both ends of one stream. `stalled`: what the agent sends goes nowhere, and nothing comes."""

    def __init__(self, rng: random.Random, delay: float) -> None:
        self.up, self.down = Pipe(rng, delay), Pipe(rng, delay)
        self.over: WireClosed | None = None
        self.stalled = False

    async def send(self, message: pb.SessionRequest) -> None:
        await asyncio.sleep(0)
        if self.over:
            raise self.over
        if not self.stalled:
            self.up.put(pb.SessionRequest.FromString(message.SerializeToString()))

    async def receive(self) -> pb.SessionResponse:
        if self.over:
            raise self.over
        message = await self.down.queue.get()
        if isinstance(message, WireClosed):
            raise message
        assert isinstance(message, pb.SessionResponse)
        return message

    async def close(self) -> None:
        self.cut(grpc.StatusCode.CANCELLED, "closed")

    def answer(self, **message: object) -> None:
        if not self.over and not self.stalled:
            self.down.put(pb.SessionResponse(**message))  # type: ignore[arg-type]

    def cut(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, sentence: str = "cut") -> None:
        if self.over is None:
            self.over = WireClosed(code, sentence)
            self.down.queue.put_nowait(self.over)
            self.up.queue.put_nowait(self.over)


@dataclass
class Job:
    """A job of the model: which attempt is the newest, and how often an outcome was accepted."""

    accepted: int = 0
    attempts: int = 0
    canceled: bool = False


@dataclass
class Given:
    """An attempt in the coordinator's books."""

    job: int
    token: bytes
    number: int
    session: str
    assigned_at: float
    acknowledged: bool = False
    started: bool = False
    over: bool = False
    reports: set[str] = field(default_factory=set)


class Coordinator:
    """Keeps one agent's books by the contract; what the agent breaks is collected in `complaints`."""

    LEASE = 30.0

    def __init__(self, rng: random.Random, jobs: int, *, delay: float = 0.5) -> None:
        self.rng, self.delay = rng, delay
        self.jobs = {number: Job() for number in range(jobs)}
        self.queued = deque(self.jobs)
        self.given: dict[int, Given] = {}
        self.session = ""
        self.slots = self.credit = self.number = 0
        self.drained = False
        self.heartbeats = 0
        self.complaints: list[str] = []
        self.wires: list[SimulatedWire] = []
        self.hellos: list[pb.Hello] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.refuse: WireClosed | None = None
        self.loses_reports = 0
        self.changed = asyncio.Event()

    async def dial(self, address: str) -> SessionWire:
        await asyncio.sleep(self.rng.uniform(0, self.delay))
        if self.refuse is not None:
            raise self.refuse
        wire = SimulatedWire(self.rng, self.delay)
        self.wires.append(wire)
        self.spawn(self.serve(wire))
        return wire

    def spawn(self, coroutine: object) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def live(self) -> dict[int, Given]:
        return {key: given for key, given in self.given.items() if not given.over}

    async def serve(self, wire: SimulatedWire) -> None:
        first = await wire.up.queue.get()
        if not isinstance(first, pb.SessionRequest):
            return
        hello = first.hello
        self.hellos.append(hello)
        for old in self.wires:  # a newer session fences the older
            if old is not wire:
                old.cut()
        self.session = session = f"s{len(self.hellos)}"
        named = {each.attempt_id: each.token for each in hello.held}
        self.slots, self.credit, self.number, self.drained = hello.slots, hello.credit, 0, False
        if hello.credit > hello.slots - len(named):
            self.complaints.append(f"hello grants {hello.credit} of {hello.slots} with {len(named)} held")
        for key, given in self.live().items():
            if key not in named:
                self.settle(key)
            given.session = session
        verdicts = [
            pb.Verdict(attempt_id=key, resume=key in self.live() and self.given[key].token == token)
            for key, token in named.items()
        ]
        wire.answer(
            welcome=pb.Welcome(
                session_id=session, heartbeat_interval_ms=5000, lease_ms=30_000, verdicts=verdicts, drain=self.drained
            )
        )
        self.assign(wire)
        while self.session == session:
            message = await wire.up.queue.get()
            if not isinstance(message, pb.SessionRequest):
                return
            self.take(wire, message)
            self.assign(wire)
            self.changed.set()

    def settle(self, key: int) -> None:
        """An attempt is given up: its job is queued again."""
        given = self.given[key]
        given.over = True
        self.queued.append(given.job)

    def assign(self, wire: SimulatedWire) -> None:
        if wire.over or wire.stalled or self.drained:
            return
        found = []
        while self.credit and self.queued:
            self.credit -= 1
            self.number += 1
            job = self.queued.popleft()
            self.jobs[job].attempts += 1
            key, token = len(self.given) + 1, self.rng.randbytes(16)
            self.given[key] = Given(job, token, self.number, self.session, asyncio.get_running_loop().time())
            found.append(pb.Assignment(number=self.number, attempt_id=key, token=token, **{"try": 1}))
            asyncio.get_running_loop().call_later(3.0, self.check_acknowledged, key)
        if len([1 for each in self.live().values() if each.session == self.session]) > self.slots:
            self.complaints.append("more attempts than slots")
        if found:
            wire.answer(assignments=pb.Assignments(assignments=found))

    def check_acknowledged(self, key: int) -> None:
        if not self.given[key].acknowledged and not self.given[key].over:
            self.settle(key)

    def take(self, wire: SimulatedWire, message: pb.SessionRequest) -> None:
        match message.WhichOneof("message"):
            case "heartbeat":
                self.heartbeats += 1
                named = set(message.heartbeat.attempt_ids)
                for key, given in self.live().items():
                    if given.number <= message.heartbeat.highest_assignment and key not in named:
                        self.settle(key)
                wire.answer(heartbeat_answer=pb.HeartbeatAnswer(sequence=message.heartbeat.sequence))
            case "credit":
                self.credit += message.credit.slots
                if self.credit > self.slots:
                    self.complaints.append(f"{self.credit} credits for {self.slots} slots")
            case "draining":
                self.credit = 0
            case "acknowledgements":
                for each in message.acknowledgements.acknowledgements:
                    given = self.given[each.attempt_id]
                    if given.token == each.token and not given.over:
                        given.acknowledged = True
                        if not each.accepted:
                            self.settle(each.attempt_id)
            case "reports" if self.loses_reports:
                self.loses_reports -= 1
            case "reports":
                answers = [self.judge(report) for report in message.reports.reports]
                wire.answer(report_answers=pb.ReportAnswers(answers=answers))

    def judge(self, report: pb.Report) -> pb.ReportAnswer:
        given = self.given[report.attempt_id]
        answer = pb.ReportAnswer(id=report.id, attempt_id=report.attempt_id)
        if report.id in given.reports:
            return answer
        if given.over or given.token != report.token:
            answer.abort = True
            return answer
        given.reports.add(report.id)
        if report.WhichOneof("what") == "started":
            given.started = True
        else:
            if not given.started:
                self.complaints.append("an outcome without a start")
            given.over = True
            self.jobs[given.job].accepted += 1
        return answer


class SleepingJobs:
    """An agent's jobs that only sleep. `disk` survives a crash of the agent."""

    def __init__(self, outbox: Outbox, slots: int, disk: dict[int, pb.HeldAttempt], rng: random.Random) -> None:
        self.outbox, self.slots, self.disk, self.rng = outbox, slots, disk, rng
        self.taken: set[int] = set()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.most = 0
        self.beats: list[int] = []
        self.refusal = ""
        self.offers = 0
        self.lasts: float | None = None
        for key in disk:
            self.start(key)

    def start(self, key: int) -> None:
        self.taken.add(key)
        self.most = max(self.most, len(self.taken))
        self.tasks[key] = asyncio.get_running_loop().create_task(self.live(key))

    async def live(self, key: int) -> None:
        token = self.disk[key].token
        self.outbox.hand_in(pb.Report(id=f"{key}-started", attempt_id=key, token=token, started=pb.Started()))
        await asyncio.sleep(self.rng.uniform(0.1, 40) if self.lasts is None else self.lasts)
        self.taken.discard(key)
        self.outbox.slots_changed()
        if key in self.disk:
            ended = pb.Ended(state=common_pb2.ATTEMPT_STATE_PASSED)
            self.outbox.hand_in(pb.Report(id=f"{key}-ended", attempt_id=key, token=token, ended=ended))

    def held(self) -> list[pb.HeldAttempt]:
        return list(self.disk.values())

    def occupying(self) -> frozenset[int]:
        return frozenset(self.taken)

    def why_not(self) -> str:
        return self.refusal

    def begin(self, assignment: pb.Assignment) -> str:
        self.offers += 1
        if not self.refusal:
            self.disk[assignment.attempt_id] = pb.HeldAttempt(
                attempt_id=assignment.attempt_id, token=assignment.token, state=common_pb2.ATTEMPT_STATE_RUNNING
            )
            self.start(assignment.attempt_id)
        return self.refusal

    def drop(self, key: int) -> None:
        self.disk.pop(key, None)
        self.outbox.forget(key)
        if key in self.taken:
            self.tasks.pop(key).cancel()
            self.taken.discard(key)
        self.outbox.slots_changed()

    def welcomed(self, welcome: pb.Welcome) -> None:
        for verdict in welcome.verdicts:
            if not verdict.resume:
                self.drop(verdict.attempt_id)

    def cancel(self, cancel: pb.Cancel) -> None:
        self.drop(cancel.attempt_id)

    def answered(self, answer: pb.ReportAnswer) -> None:
        if answer.abort or answer.id.endswith("-ended"):
            self.drop(answer.attempt_id)

    def permitted(self, answer: pb.PermitAnswer) -> None: ...

    def alive(self, sent_boot_ms: int) -> None:
        self.beats.append(sent_boot_ms)


class Told:
    """A listener that only remembers."""

    def __init__(self) -> None:
        self.sessions: list[tuple[str, str]] = []
        self.partings: list[tuple[str, str]] = []

    def welcomed(self, address: str, session_id: str) -> None:
        self.sessions.append((address, session_id))

    def parted(self, address: str, sentence: str) -> None:
        self.partings.append((address, sentence))


def identity(slots: int) -> Identity:
    return Identity(instance_id="i", name="n", version="1", pool="default", slots=slots)
