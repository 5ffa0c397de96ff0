"""A build machine of the simulation: a disk, supervisors that outlive the agent, and the agent's process.

The session, the connection and the outbox are the agent's own; what they call jobs are commands that take a random
time here, with the same records on disk as `agent/jobs.py` keeps.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.connection import Connection, Ending
from agent.session import Identity, Outbox
from agent.supervisor.deadline import Terms
from agent.wire import SessionDialer
from headrace.v1 import agent_pb2 as pb
from headrace.v1 import common_pb2
from tests.chaos.simulation.freezing import Process, within
from tests.chaos.simulation.judge import Judge
from tests.chaos.simulation.supervisor import Supervisor, now_ms
from tests.harness.virtual_time import VirtualClock

LEASE_MS = 30_000
GRACE_MS = 5_000
PING_S = 10.0
"""How often an agent asks its supervisors whether they are there, as `agent.supervisor.client` does."""


@dataclass
class Record:
    """What the agent keeps on disk of an attempt."""

    attempt_id: int
    token: bytes
    job_id: int
    at_most_once: bool
    supervised: bool = False
    commands: bool = False
    """The permit was given, if one was needed: the commands may begin."""
    settled: bool = False
    aborted: bool = False
    log_done: bool = False
    reports: dict[str, pb.Report] = field(default_factory=dict)

    @property
    def nothing_to_report(self) -> bool:
        return self.aborted or (self.settled and not self.reports)


class SimulatedJobs:
    """`agent.session.Jobs`: as `agent.jobs.RunningJobs`, with commands that only take time."""

    def __init__(self, machine: Machine, outbox: Outbox) -> None:
        self._machine = machine
        self._outbox = outbox
        self._taken: set[int] = set()
        self._permits: dict[int, asyncio.Future[pb.PermitAnswer]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        for record in list(machine.disk.values()):
            for report in record.reports.values():
                outbox.hand_in(report)
            self._take_up(record)
        self._ping = asyncio.create_task(self._ping_all(), name="pings")

    def stop(self) -> list[asyncio.Task[None]]:
        tasks = [*self._tasks.values(), self._ping]
        for task in tasks:
            task.cancel()
        return tasks

    async def _ping_all(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            for supervisor in list(self._machine.supervisors.values()):
                supervisor.hear()

    def held(self) -> Sequence[pb.HeldAttempt]:
        return [
            pb.HeldAttempt(attempt_id=each.attempt_id, token=each.token)
            for each in self._machine.disk.values()
            if not each.nothing_to_report
        ]

    def occupying(self) -> frozenset[int]:
        return frozenset(self._taken)

    def why_not(self) -> str:
        return ""

    def begin(self, assignment: pb.Assignment) -> str:
        machine = self._machine
        if assignment.attempt_id in machine.disk:
            return "this agent still has an attempt of that number"
        if machine.rng.random() < machine.refuses:
            return "the agent's data directory cannot be written"
        job_id, environment = assignment.spec.decode().split("|")
        record = Record(assignment.attempt_id, assignment.token, int(job_id), bool(environment))
        machine.disk[record.attempt_id] = record
        self._take_up(record)
        machine.judge.holds_slots(machine.name, len(self._taken), machine.slots)
        return ""

    def welcomed(self, welcome: pb.Welcome) -> None:
        for verdict in welcome.verdicts:
            if not verdict.resume:
                self._abort(verdict.attempt_id)

    def cancel(self, cancel: pb.Cancel) -> None:
        supervisor = self._machine.supervisors.get(cancel.attempt_id)
        if cancel.abort:
            self._abort(cancel.attempt_id)
        elif cancel.attempt_id in self._machine.disk:
            self._machine.judge.say(f"{self._machine.name} is told to cancel attempt {cancel.attempt_id}")
            self._machine.canceled.add(cancel.attempt_id)
            if supervisor is not None:
                delay = 0.0 if cancel.kill else self._machine.rng.uniform(0, GRACE_MS / 1000)
                asyncio.get_running_loop().call_later(delay, supervisor.stop, "canceled")

    def answered(self, answer: pb.ReportAnswer) -> None:
        record = self._machine.disk.get(answer.attempt_id)
        if record is None:
            return
        report = record.reports.pop(answer.id, None)
        if answer.abort:
            self._abort(answer.attempt_id)
        elif report is not None and report.HasField("ended"):
            self._machine.judge.outcome_accepted(answer.attempt_id, answer.id)
        self._forget_if_done(record)

    def permitted(self, answer: pb.PermitAnswer) -> None:
        future = self._permits.get(answer.attempt_id)
        if future is not None and not future.done():
            future.set_result(answer)

    def alive(self, sent_boot_ms: int) -> None:
        self._machine.sent_ms = sent_boot_ms
        for record in self._machine.disk.values():
            if record.at_most_once and (found := self._machine.supervisors.get(record.attempt_id)) is not None:
                found.hear(heartbeat_sent=sent_boot_ms)

    def _take_up(self, record: Record) -> None:
        if not record.settled:
            self._taken.add(record.attempt_id)
        self._tasks[record.attempt_id] = asyncio.create_task(self._live(record), name=f"attempt {record.attempt_id}")

    async def _live(self, record: Record) -> None:
        machine = self._machine
        if not record.settled:
            outcome = await self._worked(record)
            await asyncio.sleep(machine.rng.uniform(0, 0.5))
            record.settled = True
            if not record.aborted:
                ended = pb.Ended(state=common_pb2.AttemptState.Value(f"ATTEMPT_STATE_{outcome.upper()}"))
                self._report(record, ended=ended)
        self._taken.discard(record.attempt_id)
        self._outbox.slots_changed()
        await asyncio.sleep(machine.rng.uniform(0, 2.0))
        record.log_done = True
        self._forget_if_done(record)

    async def _worked(self, record: Record) -> str:
        machine = self._machine
        if not record.supervised:
            machine.supervise(record)
            record.supervised = True
            self._report(record, started=pb.Started())
        supervisor = machine.supervisors.get(record.attempt_id)
        if supervisor is None:
            return "errored"
        supervisor.hear()
        if not record.commands:
            await asyncio.sleep(machine.rng.uniform(0, 2.0))
            if record.attempt_id in machine.canceled or record.aborted:
                supervisor.stop("canceled")
            elif record.at_most_once and not await self._permit(record, supervisor):
                supervisor.stop("errored")
            record.commands = True
        supervisor.begin()
        await supervisor.over.wait()
        return supervisor.outcome

    async def _permit(self, record: Record, supervisor: Supervisor) -> bool:
        future: asyncio.Future[pb.PermitAnswer] = asyncio.get_running_loop().create_future()
        self._permits[record.attempt_id] = future
        self._outbox.ask(pb.PermitRequest(attempt_id=record.attempt_id, token=record.token, nonce=supervisor.nonce))
        stopped = asyncio.create_task(supervisor.over.wait())
        try:
            await asyncio.wait((future, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not (future.done() and future.result().granted):
                return False
            self._machine.judge.fenced(record.job_id, future.result().fencing_token)
            return True
        finally:
            stopped.cancel()
            self._permits.pop(record.attempt_id, None)

    def _report(self, record: Record, **what: Any) -> None:
        report = pb.Report(id=self._machine.new_id(), attempt_id=record.attempt_id, token=record.token, **what)
        record.reports[report.id] = report
        self._outbox.hand_in(report)

    def _abort(self, attempt_id: int) -> None:
        self._outbox.forget(attempt_id)
        record = self._machine.disk.get(attempt_id)
        if record is not None and not record.aborted:
            self._machine.judge.say(f"{self._machine.name} drops attempt {attempt_id}")
            record.aborted = True
            record.reports.clear()
            if (supervisor := self._machine.supervisors.get(attempt_id)) is not None:
                supervisor.stop("canceled")
            self._forget_if_done(record)

    def _forget_if_done(self, record: Record) -> None:
        if record.nothing_to_report and record.log_done:
            self._machine.disk.pop(record.attempt_id, None)
            self._machine.supervisors.pop(record.attempt_id, None)


class Machine:
    """The machine and, while it runs, the agent's process on it."""

    def __init__(
        self,
        name: str,
        slots: int,
        *,
        dialer: SessionDialer,
        addresses: Sequence[str],
        rng: random.Random,
        judge: Judge,
        long_lease: float,
    ) -> None:
        self.name, self.slots = name, slots
        self.rng, self.judge = rng, judge
        self.disk: dict[int, Record] = {}
        self.supervisors: dict[int, Supervisor] = {}
        self.canceled: set[int] = set()
        self.refuses = 0.0
        self.gone = False
        """For ever."""
        self.longest = rng.choice((60.0, 400.0))
        """Seconds that the commands of a deployment take at most."""
        self.process = Process()
        self.crashes = 0
        self._instance = self.new_id()
        self._generation = 0
        self._dialer, self._addresses = dialer, addresses
        self.long_lease_ms = round(long_lease * 1000)
        self.sent_ms = 0
        """When the last answered heartbeat was sent; what the agent's process knows."""
        self._agent: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        return self._agent is not None

    def new_id(self) -> str:
        return self.rng.randbytes(8).hex()

    def has_to_report(self, attempt_id: int) -> bool:
        record = self.disk.get(attempt_id)
        return record is not None and not record.nothing_to_report

    def supervise(self, record: Record) -> None:
        longest = self.longest if record.at_most_once else 60.0
        self.supervisors[record.attempt_id] = supervisor = Supervisor(
            job_id=record.job_id,
            attempt_id=record.attempt_id,
            terms=Terms(
                self.long_lease_ms if record.at_most_once else LEASE_MS,
                record.at_most_once,
                GRACE_MS,
                heartbeat_sent=self.sent_ms or now_ms(),
                heard=now_ms(),
            ),
            nonce=self.new_id(),
            lasts=self.rng.choice(
                (0.05, self.rng.uniform(0.1, 5), self.rng.uniform(5, 60), self.rng.uniform(5, longest))
            ),
            outcome_by_itself=self.rng.choices(("passed", "failed", "errored", "timed_out"), (85, 8, 5, 2))[0],
            judge=self.judge,
        )
        supervisor.start()

    def boot(self) -> None:
        """Starts the agent's process; it finds its supervisors again."""
        if self._agent is None and not self.gone:
            self.judge.say(f"{self.name} starts")
            self.process = Process()
            body: Coroutine[Any, Any, None] = self._run()
            self._agent = asyncio.get_running_loop().create_task(body, context=within(self.process), name=self.name)

    async def crash(self) -> None:
        """kill -9 of the agent: its memory is gone, the disk and the supervisors are not."""
        if self._agent is not None:
            self.judge.say(f"{self.name} is killed")
            agent, self._agent = self._agent, None
            self.process.thaw()
            agent.cancel()
            await asyncio.wait([agent])

    async def lose_power(self) -> None:
        """Agent and supervisors are gone, and with them what was not synced: a record may be as it was at first."""
        await self.crash()
        self.judge.say(f"{self.name} loses power")
        for supervisor in self.supervisors.values():
            supervisor.process.thaw()
            supervisor.stop("lost with its machine")
        self.supervisors.clear()
        for key, record in list(self.disk.items()):
            if self.rng.random() < 0.5 and not record.settled:
                self.disk[key] = Record(record.attempt_id, record.token, record.job_id, record.at_most_once)

    @property
    def deploys(self) -> bool:
        """Whether the commands of a deployment run here."""
        return any(each.terms.at_most_once and each.begun and not each.outcome for each in self.supervisors.values())

    def kill_supervisor(self, attempt_id: int) -> None:
        """kill -9 of a supervisor: its sandbox dies with it, and it is not adopted."""
        self.judge.say(f"the supervisor of attempt {attempt_id} on {self.name} is killed")
        supervisor = self.supervisors.pop(attempt_id)
        supervisor.process.thaw()
        supervisor.stop("errored")

    async def lose(self) -> None:
        """The whole machine is gone; another one gets its name."""
        await self.crash()
        self.judge.say(f"{self.name} is lost with all that was on it")
        for supervisor in self.supervisors.values():
            supervisor.stop("lost with its machine")
        self.disk.clear()
        self.supervisors.clear()
        self._instance = self.new_id()

    async def _run(self) -> None:
        """As systemd runs it: an agent that was refused is started again."""
        while True:
            self._generation += 1
            self.sent_ms = 0
            outbox = Outbox()
            jobs = SimulatedJobs(self, outbox)
            identity = Identity(self._instance, self.name, "1", "default", self.slots, sandboxes=(_ABILITY,))
            connection = Connection(
                self._dialer,
                self._addresses,
                identity,
                jobs,
                outbox,
                clock=VirtualClock(),
                rng=self.rng,
                listener=self,
                generation=self._generation,
            )
            try:
                ending = await connection.run(asyncio.Event())
                assert isinstance(ending, Ending)
                self.judge.say(f"{self.name} ends: {ending.sentence}")
            finally:
                if stopped := jobs.stop():
                    await asyncio.wait(stopped)
            await asyncio.sleep(self.rng.uniform(2, 8))

    # agent.connection.Listener

    def welcomed(self, address: str, session_id: str) -> None:
        self.judge.say(f"{self.name} has session {session_id[:8]} at {address}")

    def parted(self, address: str, sentence: str) -> None:
        self.judge.say(f"{self.name} parts from {address}: {sentence}")


_ABILITY = pb.SandboxAbility(kind="bubblewrap", networks=["full", "none"])
