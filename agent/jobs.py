"""All attempts of this agent: takes assignments, finds attempts again after a restart, forgets what is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from agent.job import Job
from agent.parts import Parts
from agent.record import Phase, Record
from agent.sandbox.protocol import NotRemovedError
from agent.session import Outbox
from agent.workspace.removal import NotRemoved, remove_tree
from headrace.v1 import agent_pb2 as pb
from headrace.v1 import common_pb2

LEAST_FREE = 32 << 20
"""Bytes that have to be free on the agent's disk when a job begins."""


class RunningJobs:
    """The session's `Jobs`. `run` owns the jobs' tasks; leave it last."""

    def __init__(self, outbox: Outbox, slots: int) -> None:
        self._outbox = outbox
        self._slots = slots
        self._parts: Parts | None = None
        self._jobs: dict[int, Job] = {}
        self._taken: dict[int, int] = {}
        self._permits: dict[int, asyncio.Future[pb.PermitAnswer]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def parts(self) -> Parts:
        """Set by `open`."""
        assert self._parts is not None
        return self._parts

    async def open(self, parts: Parts, tasks: asyncio.TaskGroup) -> None:
        """Takes up what an earlier process of this agent left, and sweeps what nobody holds."""
        self._parts, self._tasks = parts, tasks
        found = await asyncio.to_thread(parts.records.read, self._broken)
        over = (Phase.CLEANUP, Phase.SETTLED)
        await self._sweep_sandboxes(frozenset(r.attempt for r in found if r.phase not in over))
        await asyncio.to_thread(self._sweep_folders, {record.attempt for record in found})  # nothing lives there now
        if not found:
            await self._tidy_sources()
        for record in found:
            if _is_over(record) and record.log_done:  # the last agent died while it forgot this one
                self._spawn(asyncio.to_thread(self._remove, record.attempt), f"forget {record.attempt}")
                continue
            parts.journal.info("attempt found again", attempt=record.attempt, phase=record.phase.value)
            for report in record.reports.values():
                self._outbox.hand_in(report)
            self._take_up(record)

    async def permit(self, request: pb.PermitRequest) -> pb.PermitAnswer:
        """Asks for a start permit, over any number of connections."""
        future: asyncio.Future[pb.PermitAnswer] = asyncio.get_running_loop().create_future()
        self._permits[request.attempt_id] = future
        self._outbox.ask(request)
        try:
            return await future
        finally:
            self._permits.pop(request.attempt_id, None)

    @property
    def idle(self) -> bool:
        """Whether no attempt is left."""
        return self._idle.is_set()

    async def wait_idle(self) -> None:
        """Returns when no attempt is left: every outcome acknowledged, every log handed in."""
        await self._idle.wait()

    def cancel_all(self, sentence: str) -> None:
        """Cancels whatever runs."""
        for job in self._jobs.values():
            job.cancel(sentence)

    def kill_all(self, sentence: str) -> None:
        """Ends whatever runs, without grace."""
        for job in self._jobs.values():
            job.kill(sentence)

    # What the session asks

    def held(self) -> Sequence[pb.HeldAttempt]:
        """Every attempt whose outcome is not yet acknowledged."""
        return [_held(job) for job in self._jobs.values() if not _is_over(job.record)]

    def occupying(self) -> frozenset[int]:
        """The attempts whose slot is taken."""
        return frozenset(self._taken)

    def why_not(self) -> str:
        """No job is taken while logs that nobody takes fill the disk, or it has no room at all. Those that run are held
        to their own bounds."""
        if sentence := self._no_room():
            return sentence
        if len(self._jobs) == len(self._taken):
            return ""
        limit = self.parts.policy.spool_agent
        if self.parts.directory.spooled() <= limit:
            return ""
        return f"logs that are not handed in yet take more than {limit >> 20} MiB of the agent's disk"

    def _no_room(self) -> str:
        """Why the disk cannot take a job's log and outcome; empty: it can."""
        directory = self.parts.directory
        try:
            free = directory.free()
        except OSError as error:
            return f"the agent's data directory cannot be used: {error.strerror}"
        if free >= LEAST_FREE:
            return ""
        least = f"a job needs {LEAST_FREE >> 20} MiB: make room there"
        return f"the agent's disk is full: {free >> 20} MiB are free in {directory.root}, and {least}"

    def begin(self, assignment: pb.Assignment) -> str:
        """Takes an assignment, or says why not."""
        if (job := self._jobs.get(assignment.attempt_id)) is not None:
            if job.record.token != assignment.token:
                # The database has lost the commit that gave it to us, and counts anew.
                self._abort(assignment.attempt_id, "the coordinator has given its number to another")
            return "this agent still has an attempt of that number"
        try:
            spec = common_pb2.JobSpec.FromString(assignment.spec)
            needs = assignment.needs.decode()
        except (DecodeError, UnicodeDecodeError):
            return "the job's spec cannot be read"
        free = set(range(self._slots)) - set(self._taken.values())
        if not free:
            return "no slot is free"
        record = Record(
            attempt=assignment.attempt_id,
            token=assignment.token,
            attempt_try=getattr(assignment, "try"),
            slot=min(free),
            spec=spec,
            needs=needs,
            assigned_boot_ms=self.parts.clock.boot_ms(),
        )
        try:
            self.parts.records.write(record)
        except OSError as error:
            return f"the agent's data directory cannot be written: {error.strerror}"
        self._take_up(record)
        return ""

    def welcomed(self, welcome: pb.Welcome) -> None:
        """A session has begun."""
        self.parts.lease.lease_ms = welcome.lease_ms or self.parts.lease.lease_ms
        self.parts.lease.long_lease_ms = welcome.long_lease_ms or self.parts.lease.long_lease_ms
        for verdict in welcome.verdicts:
            if not verdict.resume:
                self._abort(verdict.attempt_id, verdict.sentence)

    def cancel(self, cancel: pb.Cancel) -> None:
        """Cancels, kills or aborts."""
        job = self._jobs.get(cancel.attempt_id)
        if cancel.abort:
            self._abort(cancel.attempt_id, cancel.sentence)
        elif job is not None and cancel.kill:
            job.kill(cancel.sentence)
        elif job is not None:
            job.cancel(cancel.sentence)

    def answered(self, answer: pb.ReportAnswer) -> None:
        """A report was taken, or its attempt is stale."""
        job = self._jobs.get(answer.attempt_id)
        if job is None:
            return
        job.record.reports.pop(answer.id, None)
        if answer.abort and not job.record.aborted:
            self._abort(answer.attempt_id, answer.sentence)
        self.parts.records.keep(job.record)
        self._forget_if_done(job)

    def permitted(self, answer: pb.PermitAnswer) -> None:
        """A start permit was granted or refused."""
        future = self._permits.get(answer.attempt_id)
        if future is not None and not future.done():
            future.set_result(answer)

    def alive(self, sent_boot_ms: int) -> None:
        """A heartbeat was answered."""
        self.parts.lease.sent_boot_ms = sent_boot_ms
        self.parts.records.pay()
        for job in self._jobs.values():
            if job.record.spec.environment:
                self._spawn(job.heartbeat_answered(sent_boot_ms), f"heartbeat of {job.record.attempt}")

    # Inside

    def _take_up(self, record: Record) -> None:
        if record.phase is not Phase.SETTLED:
            self._taken[record.attempt] = record.slot
        self._count()
        job = Job(record, self.parts, lambda: self._slot_freed(record.attempt))
        self._jobs[record.attempt] = job
        self._idle.clear()
        self._spawn(self._live(job), f"job {record.attempt}")

    async def _live(self, job: Job) -> None:
        await job.live()
        self._slot_freed(job.record.attempt)
        if job.record.log_done:  # it may be forgotten at any moment, and nobody would ever end the waiting
            self._forget_if_done(job)
        else:
            await self._close_log(job)

    async def _close_log(self, job: Job) -> None:
        """Until the coordinator has all of the log, and knows that it has."""
        await job.source.done.wait()
        if job.record.aborted:
            job.source.hand_in()
            await job.source.done.wait()
        if job.source.rejected:
            self.parts.journal.warning("log rejected", attempt=job.record.attempt, error=job.source.rejected)
        job.record.log_done = True
        self.parts.records.keep(job.record)
        self._forget_if_done(job)

    def _forget_if_done(self, job: Job) -> None:
        """Nothing of an attempt stays whose outcome is acknowledged and whose log is handed in."""
        record = job.record
        if record.attempt in self._jobs and _is_over(record) and record.log_done:
            del self._jobs[record.attempt]
            self.parts.forwarder.forget(record.attempt)
            self._spawn(self._forget(record.attempt), f"forget {record.attempt}")

    async def _forget(self, attempt: int) -> None:
        await asyncio.to_thread(self._remove, attempt)
        self._outbox.slots_changed()  # there is room again

    def _remove(self, attempt: int) -> None:
        self.parts.records.remove(attempt)  # first: what a killed agent leaves of the rest is swept at its next start
        self._clear(self.parts.directory.folder(attempt))
        self._clear(self.parts.directory.logs / str(attempt))

    def _abort(self, attempt: int, sentence: str) -> None:
        self._outbox.forget(attempt)
        if (job := self._jobs.get(attempt)) is not None and not job.record.aborted:
            self.parts.journal.warning("attempt aborted", attempt=attempt, why=sentence)
            job.abort(sentence)
            if job.record.log_done:
                job.record.log_done = False
                self._spawn(self._close_log(job), f"log of {attempt}")

    def _slot_freed(self, attempt: int) -> None:
        if self._taken.pop(attempt, None) is not None:
            self._count()
            self._outbox.slots_changed()

    def _count(self) -> None:
        self.parts.metrics.running.set(len(self._taken))

    def _spawn(self, work: object, name: str) -> None:
        assert self._tasks is not None
        self._tasks.create_task(self._guarded(work), name=name)

    async def _guarded(self, work: object) -> None:
        """A task that raises would cancel its neighbours: this one says so and ends."""
        try:
            await work  # type: ignore[misc]  # coroutines of any result
        except Exception:
            self.parts.metrics.machinery_failures.inc()
            self.parts.journal.exception("a task of the agent failed")
        finally:
            if not self._jobs:
                self._idle.set()

    def _broken(self, file: Path, error: Exception) -> None:
        self.parts.metrics.damaged_records.inc()
        self.parts.journal.warning("record cannot be read", file=str(file), error=str(error))

    async def _sweep_sandboxes(self, held: frozenset[int]) -> None:
        for kind, sandbox in self.parts.sandboxes.items():
            if not self.parts.offer.abilities[kind].why_not:
                try:
                    await sandbox.sweep(held)
                except NotRemovedError as error:
                    self.parts.journal.warning("sweep failed", sandbox=kind.value, error=str(error))

    async def _tidy_sources(self) -> None:
        parts = self.parts
        try:
            await asyncio.to_thread(parts.sources.tidy, parts.clock.wall_ms() / 1000)
        except (NotRemoved, OSError) as error:
            parts.journal.warning("mirror not removed", error=str(error))

    def _sweep_folders(self, held: set[int]) -> None:
        """Removes folders of attempts that nobody holds: the agent was killed while it removed them."""
        directory = self.parts.directory
        for parent in (directory.attempts, directory.logs, directory.workspaces):
            for folder in parent.iterdir() if parent.is_dir() else ():
                if folder.name.isdecimal() and int(folder.name) not in held:
                    self._clear(folder)

    def _clear(self, folder: Path) -> None:
        """Removes what an attempt left, however deep a job made it. What resists is left to the next start."""
        try:
            remove_tree(folder)
        except (NotRemoved, OSError) as error:
            self.parts.journal.warning("folder not removed", folder=str(folder), error=str(error))


def _is_over(record: Record) -> bool:
    """Whether there is nothing left to report."""
    return record.aborted or (record.phase is Phase.SETTLED and not record.reports)


def _held(job: Job) -> pb.HeldAttempt:
    record = job.record
    state = record.outcome or (
        common_pb2.ATTEMPT_STATE_RUNNING if record.facts.get("supervised") else common_pb2.ATTEMPT_STATE_LEASED
    )
    return pb.HeldAttempt(
        attempt_id=record.attempt,
        token=record.token,
        state=state,  # type: ignore[arg-type]  # a value of the enum, read from disk as a number
        log_records=int(record.facts.get("records", 0)),
    )
