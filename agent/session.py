"""One session with a coordinator: hello, credit, heartbeats, acknowledgements, reports, permits, cancels.

Pure of sandboxes and of gRPC: it is given a wire, a clock and the jobs behind a small protocol, so a simulation
drives exactly this code. What dies with a connection (credit, assignment numbers, heartbeats) is in `Session`;
what has to survive it (reports, permit requests, the wish to leave) is in `Outbox`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import grpc

from agent.clock import Clock
from agent.wire import SessionWire, WireClosed, until_one_ends
from headrace.v1 import agent_pb2 as pb

SILENCE = 10.0
"""Seconds after which an unanswered hello or heartbeat ends the connection."""
RESEND = 10.0
"""Seconds after which an unanswered report or permit request is sent again on the same connection."""
BATCH = 100
"""Reports in one message."""
BATCH_BYTES = 8 << 20
"""Bytes of them, but for one that is larger by itself."""

Key = TypeVar("Key", str, int)
Message = TypeVar("Message", pb.Report, pb.PermitRequest)


@dataclass(frozen=True, slots=True)
class Identity:
    """What the agent says of itself; fixed for a session."""

    instance_id: str
    name: str
    version: str
    pool: str
    slots: int
    labels: Mapping[str, str] = field(default_factory=dict)
    sandboxes: tuple[pb.SandboxAbility, ...] = ()
    slot_share: pb.SlotShare | None = None


class Jobs(Protocol):
    """The attempts of this agent, as the session sees them. No method waits or raises."""

    def held(self) -> Sequence[pb.HeldAttempt]:
        """Every attempt whose outcome is not yet acknowledged."""
        ...

    def occupying(self) -> frozenset[int]:
        """The attempts whose slot is taken: the sandbox is not yet gone."""
        ...

    def why_not(self) -> str:
        """Why no job can be taken now, in one sentence; empty: nothing speaks against it. Asked now and then."""
        ...

    def begin(self, assignment: pb.Assignment) -> str:
        """Takes an assignment, or says in one sentence why not; empty: taken, and `held` from now on."""
        ...

    def welcomed(self, welcome: pb.Welcome) -> None:
        """A session has begun: what becomes of each attempt held, and the lease."""
        ...

    def cancel(self, cancel: pb.Cancel) -> None:
        """Cancels, kills or aborts an attempt; one that is not known is ignored."""
        ...

    def answered(self, answer: pb.ReportAnswer) -> None:
        """A report was taken (or its attempt is to be aborted): it may be forgotten on disk."""
        ...

    def permitted(self, answer: pb.PermitAnswer) -> None:
        """A start permit was granted or refused."""
        ...

    def alive(self, sent_boot_ms: int) -> None:
        """A heartbeat sent at that boot time was answered: leases live from there."""
        ...


class Outbox:
    """What waits for an answer of the coordinator, over any number of connections. `changed` wakes the sender."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.reports: dict[str, pb.Report] = {}
        self.permits: dict[int, pb.PermitRequest] = {}
        self.leaving = False
        self.quarantine = ""
        """Why the agent takes no job until a person has seen to it; empty: it does."""

    def hand_in(self, report: pb.Report) -> None:
        """Sends a report until it is answered. The caller has written it to disk before."""
        self.reports[report.id] = report
        self.changed.set()

    def ask(self, request: pb.PermitRequest) -> None:
        """Asks for a start permit until there is an answer."""
        self.permits[request.attempt_id] = request
        self.changed.set()

    def forget(self, attempt_id: int) -> None:
        """Nothing more is said about this attempt."""
        self.permits.pop(attempt_id, None)
        for report in [each for each in self.reports.values() if each.attempt_id == attempt_id]:
            del self.reports[report.id]

    def leave(self) -> None:
        """The agent wants no more work, by its own decision."""
        self.leaving = True
        self.changed.set()

    def stay_away(self, sentence: str) -> None:
        """No more work for this agent, for this reason."""
        self.quarantine = sentence
        self.changed.set()

    @property
    def refusal(self) -> str:
        """Why nothing new is taken; empty: it is."""
        return self.quarantine or ("this agent is leaving" if self.leaving else "")

    def slots_changed(self) -> None:
        """A sandbox is gone: its slot can be granted again."""
        self.changed.set()


class GoneAway(Exception):
    """The coordinator asked us to connect elsewhere. `seconds`: how long this address should be left alone."""

    def __init__(self, sentence: str, seconds: float) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.seconds = seconds


class Session:
    """One connection's worth of protocol. `run` ends by `WireClosed` or `GoneAway`, never otherwise."""

    def __init__(
        self, wire: SessionWire, identity: Identity, jobs: Jobs, outbox: Outbox, clock: Clock, *, number: int = 0
    ) -> None:
        self._number = number
        self._wire = wire
        self._identity = identity
        self._jobs = jobs
        self._outbox = outbox
        self._clock = clock
        self._drained = False
        self._said_refusal = ""
        self._granted = 0
        self._highest = 0
        self._sequence = 0
        self._beat: pb.Heartbeat | None = None
        self._unanswered: dict[int, tuple[int, float]] = {}
        self._acknowledgements: list[pb.Acknowledgement] = []
        self._sent: dict[str | int, float] = {}
        self._interval = 5.0

    async def greet(self) -> pb.Welcome:
        """Says hello and waits for the welcome, at most `SILENCE` seconds."""
        try:
            async with asyncio.timeout(SILENCE):
                await self._wire.send(pb.SessionRequest(hello=self._hello()))
                first = await self._wire.receive()
        except TimeoutError as error:
            raise WireClosed(grpc.StatusCode.DEADLINE_EXCEEDED, "no welcome in 10 s") from error
        if first.WhichOneof("message") == "go_away":
            raise GoneAway(first.go_away.sentence, first.go_away.retry_after_ms / 1000)
        if first.WhichOneof("message") != "welcome":
            raise WireClosed(grpc.StatusCode.INTERNAL, "the first message was no welcome")
        welcome = first.welcome
        self._interval = max(0.05, welcome.heartbeat_interval_ms / 1000)
        self._set_drained(drained=welcome.drain)
        self._jobs.welcomed(welcome)
        return welcome

    async def run(self) -> None:
        """Speaks until the connection ends. Call `greet` first."""
        await until_one_ends(receive=self._receive(), send=self._send(), heartbeat=self._beats())
        raise WireClosed(grpc.StatusCode.CANCELLED, "the session ended")

    def _hello(self) -> pb.Hello:
        held = list(self._jobs.held())
        named = {each.attempt_id for each in held} | self._jobs.occupying()
        refusal = self._said_refusal = self._outbox.refusal
        self._granted = 0 if refusal or self._jobs.why_not() else max(0, self._identity.slots - len(named))
        return pb.Hello(
            instance_id=self._identity.instance_id,
            name=self._identity.name,
            version=self._identity.version,
            pool=self._identity.pool,
            labels=self._identity.labels,
            slots=self._identity.slots,
            credit=self._granted,
            held=held,
            sandboxes=self._identity.sandboxes,
            slot_share=self._identity.slot_share,
            draining=bool(refusal),
            draining_sentence=self._outbox.quarantine,
            number=self._number,
        )

    async def _beats(self) -> None:
        """A heartbeat every interval, and the end of the connection when the oldest stays unanswered."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            now = loop.time()
            if now >= due:
                self._sequence += 1
                self._unanswered[self._sequence] = (self._clock.boot_ms(), now)
                ids = [each.attempt_id for each in self._jobs.held()]
                self._beat = pb.Heartbeat(sequence=self._sequence, highest_assignment=self._highest, attempt_ids=ids)
                self._outbox.changed.set()
                due = now + self._interval
            limit = min((since for _, since in self._unanswered.values()), default=now) + SILENCE
            if self._unanswered and now >= limit:
                raise WireClosed(grpc.StatusCode.DEADLINE_EXCEEDED, "a heartbeat was not answered in 10 s")
            await asyncio.sleep(max(0.001, min(due, limit) - now))

    async def _send(self) -> None:
        while True:
            self._outbox.changed.clear()
            for message in list(self._due()):  # all of one moment: no credit overtakes its report
                await self._wire.send(message)
            await self._outbox.changed.wait()

    def _due(self) -> Iterator[pb.SessionRequest]:
        """What there is to say now, the urgent first. An acknowledgement precedes every report of its attempt."""
        if self._acknowledgements:
            batch, self._acknowledgements = self._acknowledgements, []
            yield pb.SessionRequest(acknowledgements=pb.Acknowledgements(acknowledgements=batch))
        if self._beat is not None:
            beat, self._beat = self._beat, None
            yield pb.SessionRequest(heartbeat=beat)
        if (refusal := self._outbox.refusal) != self._said_refusal:
            self._said_refusal, self._granted = refusal, 0
            yield pb.SessionRequest(draining=pb.Draining(sentence=self._outbox.quarantine))
        for reports in batches(self._unsaid(self._outbox.reports)):
            yield pb.SessionRequest(reports=pb.Reports(reports=reports))
        # After the reports: only what is known to have started gets a permit.
        for request in self._unsaid(self._outbox.permits):
            yield pb.SessionRequest(permit_request=request)
        if (credit := self._grantable() - self._granted) > 0:
            self._granted += credit
            yield pb.SessionRequest(credit=pb.Credit(slots=credit))

    def _grantable(self) -> int:
        if self._drained or self._outbox.refusal or self._jobs.why_not():
            return 0
        return self._identity.slots - len(self._jobs.occupying())

    def _unsaid(self, waiting: Mapping[Key, Message]) -> Iterable[Message]:
        now = asyncio.get_running_loop().time()
        for key, message in list(waiting.items()):
            if now - self._sent.get(key, -RESEND) >= RESEND:
                self._sent[key] = now
                yield message

    async def _receive(self) -> None:
        while True:
            self._take(await self._wire.receive())

    def _take(self, message: pb.SessionResponse) -> None:
        match message.WhichOneof("message"):
            case "assignments":
                for assignment in message.assignments.assignments:
                    self._take_assignment(assignment)
            case "heartbeat_answer":
                self._take_answer(message.heartbeat_answer.sequence)
            case "report_answers":
                for answer in message.report_answers.answers:
                    self._outbox.reports.pop(answer.id, None)
                    self._sent.pop(answer.id, None)
                    self._jobs.answered(answer)
            case "permit_answer":
                self._take_permit(message.permit_answer)
            case "cancels":
                for cancel in message.cancels.cancels:
                    self._jobs.cancel(cancel)
            case "drain":
                self._set_drained(drained=not message.drain.undo)
            case "go_away":
                raise GoneAway(message.go_away.sentence, message.go_away.retry_after_ms / 1000)
            case _:  # a second welcome, or a message of a newer coordinator
                return
        self._outbox.changed.set()

    def _take_assignment(self, assignment: pb.Assignment) -> None:
        if assignment.number <= self._highest:
            return
        # A credit went into every number up to this one, also into one that never came.
        self._granted = max(0, self._granted - (assignment.number - self._highest))
        self._highest = assignment.number
        if self._outbox.refusal:
            sentence = self._outbox.refusal
        elif len(self._jobs.occupying()) >= self._identity.slots:
            sentence = "no slot is free"
        else:
            sentence = self._jobs.why_not() or self._jobs.begin(assignment)
        self._acknowledgements.append(
            pb.Acknowledgement(
                number=assignment.number,
                attempt_id=assignment.attempt_id,
                token=assignment.token,
                accepted=not sentence,
                sentence=sentence,
            )
        )

    def _take_answer(self, sequence: int) -> None:
        if sequence in self._unanswered:
            self._jobs.alive(self._unanswered[sequence][0])
        for number in [each for each in self._unanswered if each <= sequence]:
            del self._unanswered[number]

    def _take_permit(self, answer: pb.PermitAnswer) -> None:
        asked = self._outbox.permits.get(answer.attempt_id)
        if asked is not None and asked.nonce == answer.nonce:
            del self._outbox.permits[answer.attempt_id]
            self._sent.pop(answer.attempt_id, None)
            self._jobs.permitted(answer)

    def _set_drained(self, *, drained: bool) -> None:
        # What was granted stays granted: a credit and a drain may cross on the wire, and whoever took it back on
        # one side alone would grant a slot twice after the undo.
        self._drained = drained


def batches(reports: Iterable[pb.Report]) -> Iterator[list[pb.Report]]:
    """The reports in order, as many to a message as fit: outputs can make a single one as large as a message may be."""
    batch: list[pb.Report] = []
    size = 0
    for report in reports:
        own = report.ByteSize()
        if batch and (len(batch) >= BATCH or size + own > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(report)
        size += own
    if batch:
        yield batch
