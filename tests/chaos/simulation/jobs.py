"""What an agent of the simulation does about its attempts, as `agent.jobs` and `agent.job`: its commands take a random
time, and print.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.forwarder import Forwarder, LogSource
from agent.orphan import LogEnd, close_orphaned_log, end_of
from agent.session import Outbox
from agent.supervisor.client import SupervisorGone
from agent.supervisor.results import Ended
from headrace.v1 import agent_pb2 as pb
from headrace.v1 import common_pb2
from tests.chaos.simulation.spooling import LIMIT
from tests.chaos.simulation.supervisor import Supervisor
from tests.harness.virtual_time import VirtualClock

if TYPE_CHECKING:
    from tests.chaos.simulation.machine import Machine

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
    ended: str = ""
    """The outcome, once the commands are over: from then on the log is ended."""
    settled: bool = False
    log: LogEnd | None = None
    aborted: bool = False
    log_done: bool = False
    reports: dict[str, pb.Report] = field(default_factory=dict)

    @property
    def nothing_to_report(self) -> bool:
        return self.aborted or (self.settled and not self.reports)


class SimulatedJobs:
    """`agent.session.Jobs`: as `agent.jobs.RunningJobs`, with commands that only take time."""

    def __init__(self, machine: Machine, outbox: Outbox, forwarder: Forwarder) -> None:
        self._machine = machine
        self._outbox = outbox
        self._forwarder = forwarder
        self._taken: set[int] = set()
        self._permits: dict[int, asyncio.Future[pb.PermitAnswer]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        for record in list(machine.disk.values()):
            for report in record.reports.values():
                outbox.hand_in(report)
            self._take_up(record)
        self._beside = [
            asyncio.create_task(self._ping_all(), name="pings"),
            asyncio.create_task(forwarder.run(), name="forwarder"),
        ]

    def stop(self) -> list[asyncio.Task[None]]:
        tasks = [*self._tasks.values(), *self._beside]
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
        task = asyncio.create_task(self._live(record), name=f"attempt {record.attempt_id}")
        task.add_done_callback(self._machine.judge.ended)
        self._tasks[record.attempt_id] = task

    async def _live(self, record: Record) -> None:
        machine = self._machine
        source = self._forwarder.follow(record.attempt_id, record.token, machine.spool_of(record.attempt_id))
        if record.log is None:
            record.ended = record.ended or await self._worked(record, source)
            await asyncio.sleep(machine.rng.uniform(0, 0.5))
            end = await self._close_log(record, source)
            outcome = "errored" if end.disk else record.ended
            record.log, record.settled = end, True
            machine.judge.logs.ends(record.attempt_id, end)
            if not record.aborted:
                state = common_pb2.AttemptState.Value(f"ATTEMPT_STATE_{outcome.upper()}")
                told = pb.Ended(state=state, log_records={"main": end.records}, log_bytes={"main": end.offset})
                self._report(record, ended=told)
        self._taken.discard(record.attempt_id)
        self._outbox.slots_changed()
        source.finish(record.log.records, record.log.offset, record.log.ending)
        await source.done.wait()
        if record.aborted:
            source.hand_in()
            await source.done.wait()
        self._forwarder.forget(record.attempt_id)
        machine.handed_in(record.attempt_id, source.rejected)
        record.log_done = True
        self._forget_if_done(record)

    async def _close_log(self, record: Record, source: LogSource) -> LogEnd:
        """As `agent.job.Job._close_log`."""
        machine = self._machine
        try:
            last = await self._end_of_supervisor(record.attempt_id)
        except SupervisorGone:
            machine.judge.logs.orphaned(record.attempt_id)
            machine.kill_supervisor(record.attempt_id)
            known = source.reached
            folder = machine.spool_of(record.attempt_id)
            return await asyncio.to_thread(
                close_orphaned_log, folder, "dead", VirtualClock(), limit=LIMIT, known=known, disk=machine.spools
            )
        return end_of(last)

    async def _end_of_supervisor(self, attempt_id: int) -> Ended:
        while True:
            supervisor = self._machine.supervisors.get(attempt_id)
            if supervisor is None:
                raise SupervisorGone("it is dead")
            supervisor.log.news.clear()
            if not supervisor.process.frozen and (ended := supervisor.log.end()) is not None:
                return ended
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await supervisor.log.news.wait()

    async def _follow(self, source: LogSource, supervisor: Supervisor) -> None:
        """What is durable at the supervisor may be sent."""
        source.client = _Acknowledging(supervisor)  # type: ignore[assignment]  # all that a source asks of it
        while supervisor.log.is_open:
            if not supervisor.process.frozen:
                source.grown(supervisor.log.spool.synced.sequence)
            supervisor.log.more.clear()
            await supervisor.log.more.wait()
        source.client = None

    async def _worked(self, record: Record, source: LogSource) -> str:
        machine = self._machine
        if not record.supervised:
            if not machine.supervise(record):
                return "errored"
            record.supervised = True
            self._report(record, started=pb.Started())
        supervisor = machine.supervisors.get(record.attempt_id)
        if supervisor is None:
            return "errored"
        supervisor.hear()
        self._beside.append(asyncio.create_task(self._follow(source, supervisor), name=f"log of {record.attempt_id}"))
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
            self._machine.forget(record.attempt_id)


class _Acknowledging:
    """A supervisor's end of its socket, for acknowledgements."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def acknowledge(self, sequence: int) -> None:
        await asyncio.sleep(0.001)
        while self._supervisor.process.frozen:  # noqa: ASYNC110  whoever thaws it tells nobody
            await asyncio.sleep(0.5)
        self._supervisor.log.acknowledge(sequence)
