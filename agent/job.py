"""An attempt's life, top to bottom: supervisor, workspace, sandbox, steps, artifacts, outcome.

`live` never raises: whatever goes wrong becomes an outcome with a cause and a sentence. Every step of the way is in
the attempt's record, so that an agent which was killed and started again goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from agent import outcome
from agent.halt import Halt, Halted
from agent.orphan import ENDING_S, LogEnd, close_orphaned_log, end_of, end_supervisor, ended_within, lives
from agent.outcome import Outcome
from agent.parts import Parts
from agent.preparing import Home, choose_sandbox, clear_home, facts_of, make_place
from agent.problems import Cause, JobProblem
from agent.record import Phase, Record
from agent.sandbox.protocol import NotRemovedError, Sandbox
from agent.services import told
from agent.steps import SLACK_MS, Steps, span
from agent.supervisor.client import SupervisorClient, SupervisorGone
from agent.supervisor.results import SupervisorSettings
from agent.workspace.removal import NotRemoved
from headrace.pipeline.plan import SandboxKind
from headrace.v1 import agent_pb2, common_pb2

_ENGINE_PAUSE_S = 5.0
"""An engine that could not kill a container is asked again after so long."""
_DEAD = "the job's supervisor died, and the sandbox with it"


class Job:
    """One attempt on this agent. `freed` is called once, when its slot can be given to another."""

    def __init__(self, record: Record, parts: Parts, freed: Callable[[], None]) -> None:
        self.record = record
        self._parts = parts
        self._freed = freed
        self._client: SupervisorClient | None = None
        self._halt = Halt()
        self._folder = parts.directory.folder(record.attempt)
        self._home = Home(parts.directory.workspaces / str(record.attempt))
        self._spool = parts.directory.logs / str(record.attempt)
        self.source = parts.forwarder.follow(record.attempt, record.token, self._spool)
        if record.cancel:
            self._halt.stop(Outcome(Cause.CANCELED, record.cancel))
        if record.timed_out:
            self._halt.stop(self._out_of_time)
        if record.aborted:
            self._halt.kill(Outcome(Cause.CANCELED, "the coordinator no longer wants this attempt"))

    # What others tell it. These do not wait.

    def cancel(self, sentence: str) -> None:
        """TERM, the job's grace, KILL. Told again: nothing more."""
        if self._halt.outcome is None and self.record.phase is not Phase.SETTLED:
            self.record.cancel = sentence or "canceled"
            self._parts.records.keep(self.record)
            self._halt.stop(Outcome(Cause.CANCELED, self.record.cancel))

    def kill(self, sentence: str) -> None:
        """Everything, at once."""
        self.cancel(sentence)
        self._halt.kill(Outcome(Cause.CANCELED, sentence or "killed"))

    def abort(self, sentence: str) -> None:
        """Nobody wants it any more: killed, its log is handed in, nothing is reported."""
        self.record.aborted = True
        self.record.reports.clear()
        self._parts.records.keep(self.record)
        self._halt.kill(Outcome(Cause.CANCELED, sentence or "the coordinator no longer wants this attempt"))

    async def heartbeat_answered(self, sent_boot_ms: int) -> None:
        """The lease lives from there."""
        if self._client is not None and self.record.spec.environment:
            with contextlib.suppress(SupervisorGone, JobProblem):
                await self._client.heartbeat_answered(sent_boot_ms)

    # Its life

    async def live(self) -> None:
        """From the assignment, or from where the record says, to the outcome. Never raises but CancelledError."""
        record = self.record
        try:
            if record.phase is Phase.SETTLED:
                self.source.finish(record.facts["records"], record.facts.get("offset"), record.facts.get("ending", ""))
            else:
                await self._settle(await self._worked())
        except Exception as error:
            self._parts.metrics.machinery_failures.inc()
            self._parts.journal.exception("job failed by a defect of the agent", attempt=record.attempt)
            await self._give_up(f"the agent failed: {type(error).__name__}: {error}")
        finally:
            if self._client is not None:
                await self._client.close()

    async def _worked(self) -> Outcome:
        if self.record.phase is Phase.CLEANUP and self.record.ended is not None:
            with contextlib.suppress(SupervisorGone, TimeoutError):  # it may have left already
                self._client = self.source.client = await SupervisorClient.find(self._folder)
            if self._client is not None:
                self._client.disk_failed = self._parts.quarantine.begin
            return self.record.ended
        ended = await self._tried(self._damaged if self.record.damage else self._begun_and_run)
        is_new = self.record.ended is None
        if is_new and self._client is not None and self.record.phase is Phase.STEPS and not self._halt.killed.is_set():
            ended = await told(ended, self.record, self._parts, self._client)
        if is_new and ended.cause is not None:
            self.record.ended = ended  # whoever comes after this agent finds the sandbox killed, and this is why
            self._write()
        if not await self._remove_sandbox():
            self._client = None  # what still runs there is the machine's: nothing is kept of it
            ended = Outcome(Cause.ERRORED, f"the job's sandbox could not be ended in {ENDING_S:g} s")
        if self._client is not None and not self._halt.killed.is_set() and self.record.phase is not Phase.PREPARING:
            self._enter(Phase.ARTIFACTS, ended)
            kept = await self._tried(lambda: self._steps.keep(ended))
            ended = kept if ended.cause is None else ended
        return ended

    async def _tried(self, work: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """The outcome of some work, whatever happens in it."""
        try:
            return await work()
        except JobProblem as problem:
            return Outcome.of(problem)
        except Halted:
            assert self._halt.outcome is not None
            return self._halt.outcome
        except (SupervisorGone, TimeoutError):
            self._client = None
            await asyncio.to_thread(end_supervisor, self._folder)  # one that is frozen, say, would go on some day
            already = self.record.ended
            return already if already and already.cause else Outcome(Cause.ERRORED, _DEAD)

    async def _damaged(self) -> Outcome:
        """Nobody knows how far it came: it is ended, and says so."""
        await asyncio.to_thread(end_supervisor, self._folder)
        return Outcome(Cause.ERRORED, self.record.damage)

    async def _begun_and_run(self) -> Outcome:
        await self._supervise()
        if self.record.ended is not None or self.record.phase is Phase.ARTIFACTS:
            return self.record.ended or outcome.of_steps(self.record.steps)
        beside = [
            asyncio.create_task(self._pass_orders_on(), name=f"orders of {self.record.attempt}"),
            asyncio.create_task(self._kill_by_engine(), name=f"refused kills of {self.record.attempt}"),
        ]
        try:
            if self.record.phase is Phase.PREPARING:
                await self._prepare()
            return await self._steps.run()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    # Supervisor

    async def _supervise(self) -> None:
        """Finds the attempt's supervisor again, or starts it."""
        record, parts = self.record, self._parts
        client = await SupervisorClient.find(self._folder)
        if client is None and record.facts.get("supervised"):
            raise SupervisorGone(_DEAD)
        if client is None:
            at_most_once = bool(record.spec.environment)
            settings = SupervisorSettings(
                lease_ms=parts.lease.of(record.spec.environment),
                at_most_once=at_most_once,
                grace_ms=record.spec.grace_ms,
                heartbeat_sent_boot_ms=parts.lease.sent_boot_ms or parts.clock.boot_ms(),
                spool=self._spool,
                spool_limit=parts.policy.spool_limit,
                log_limit=parts.policy.log_limit,
            )
            client = await SupervisorClient.start(self._folder, record.attempt, settings=settings)
        client.disk_failed = parts.quarantine.begin
        if not record.facts.get("supervised"):  # also one that was found: the agent was killed while it started
            record.facts["supervised"] = True
            self._report(started=agent_pb2.Started(at_ms=parts.clock.wall_ms()))
        self._client = self.source.client = client
        self._following = asyncio.create_task(self._follow(client), name=f"log of {record.attempt}")
        if parts.quarantine.sentence and record.phase is Phase.PREPARING:  # a restart would not know that it has begun
            raise JobProblem(Cause.ERRORED, parts.quarantine.sentence)

    async def _follow(self, client: SupervisorClient) -> None:
        async for there in client.spooled():
            self.source.grown(there)

    async def _pass_orders_on(self) -> None:
        """Hands a cancel, the end of the job's time and a kill to the supervisor when they come."""
        client = self._alive
        with contextlib.suppress(SupervisorGone, JobProblem):
            await self._wait_for_halt()
            assert self._halt.outcome is not None
            try:
                already = (await client.state()).cancels > 0
                if not already and not self._halt.killed.is_set():
                    await client.cancel(self.record.spec.grace_ms, self._halt.outcome.cause or Cause.CANCELED)
            finally:
                self._halt.passed_on.set()  # also when nobody is there to be told: whoever waits will find out
            await self._halt.killed.wait()
            await client.kill(self._halt.outcome.cause or Cause.CANCELED, self._halt.outcome.sentence)

    async def _kill_by_engine(self) -> None:
        """Ends the sandbox where the kernel does not let its supervisor: a container, and the agent is not root."""
        await self._alive.kill_refused.wait()
        while True:  # until the supervisor has seen its end, and the step with it
            await self._remove_made(self._parts.sandboxes[SandboxKind(self.record.sandbox)])
            await asyncio.sleep(_ENGINE_PAUSE_S)

    async def _wait_for_halt(self) -> None:
        while not self._halt.halted.is_set():
            left = None
            if self.record.started_boot_ms:
                end = self.record.started_boot_ms + self.record.spec.timeout_ms
                left = max(0.0, (end - self._parts.clock.boot_ms()) / 1000)
                if left == 0.0:
                    self.record.timed_out = True
                    self._write()
                    self._halt.stop(self._out_of_time)
                    return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._halt.halted.wait(), min(left, 1.0) if left is not None else 1.0)

    @property
    def _out_of_time(self) -> Outcome:
        return Outcome(Cause.JOB_TIMED_OUT, f"the job ran out of its {span(self.record.spec.timeout_ms)}")

    @property
    def _alive(self) -> SupervisorClient:
        if self._client is None:
            raise SupervisorGone(_DEAD)
        return self._client

    @property
    def _steps(self) -> Steps:
        return Steps(self.record, self._parts, self._home, halt=self._halt, client=self._alive)

    # Preparing

    async def _prepare(self) -> None:
        """Workspace, sandbox, permit: up to the moment in which the first command can be started."""
        record, parts, client = self.record, self._parts, self._alive
        state = await client.state()
        if state.phase == "idle" or not record.facts.get("env"):
            choice = await self._halt.unless_halted(choose_sandbox(record, parts, client))
            record.sandbox = choice.kind.value
            self._write()
            place = make_place(record, parts, client, self._home, choice=choice, folder=self._folder)
            prepared = await self._halt.unless_halted(place)
            record.facts |= facts_of(prepared, self._home, choice)
            self._write()
            await self._halt.unless_halted(client.launch(prepared.launch, cgroups=prepared.cgroups))
        else:  # the agent was killed while it waited for that
            await self._halt.unless_halted(client.launched())
        if record.spec.environment:
            await self._halt.unless_halted(self._permit(client))
        await client.close_section("")
        record.started_boot_ms = parts.clock.boot_ms()
        deadline = record.started_boot_ms + record.spec.timeout_ms + record.spec.grace_ms + SLACK_MS
        await client.extend(parts.lease.of(record.spec.environment), deadline_boot_ms=deadline)
        record.timings["sandbox_ms"] = record.started_boot_ms - record.assigned_boot_ms
        parts.metrics.sandbox_start.labels(record.sandbox).observe(record.timings["sandbox_ms"] / 1000)
        self._enter(Phase.STEPS)

    async def _permit(self, client: SupervisorClient) -> None:
        """The start permit of a deployment: asked of the coordinator with the supervisor's own nonce."""
        record = self.record
        request = agent_pb2.PermitRequest(
            attempt_id=record.attempt, token=record.token, nonce=await client.permit_nonce()
        )
        answer = await self._parts.permit(request)
        if not answer.granted:
            raise JobProblem(Cause.ERRORED, answer.sentence or "the coordinator gave no permit to start")
        record.facts["fencing_token"] = answer.fencing_token

    # The end

    async def _remove_sandbox(self) -> bool:
        """Kills what lives, and removes what was made for it. False: something of it still lives."""
        record, client = self.record, self._client
        with contextlib.suppress(SupervisorGone, JobProblem, TimeoutError):
            async with asyncio.timeout(ENDING_S):
                if client is not None and lives(await client.state()):
                    await client.kill(Cause.CANCELED, "the steps are over")
        if record.sandbox:
            await self._remove_made(self._parts.sandboxes[SandboxKind(record.sandbox)])
        return client is None or await ended_within(client, ENDING_S)

    async def _remove_made(self, sandbox: Sandbox) -> None:
        """All that was made for the sandbox. What resists (an engine that hangs) is left to the next sweep."""
        for pause in (0.1, 1.0, 5.0, None):
            try:
                await sandbox.remove(self.record.attempt)
                break
            except NotRemovedError as error:
                self._parts.journal.warning("sandbox not removed", attempt=self.record.attempt, error=str(error))
            if pause is not None:
                await asyncio.sleep(pause)

    async def _settle(self, ended: Outcome) -> None:
        """Removes the workspace, closes the log, and reports. The outcome stands before anything is taken away."""
        record, parts = self.record, self._parts
        if record.phase is not Phase.CLEANUP:
            self._enter(Phase.CLEANUP, ended, durable=True)
            await self._say_cleanup(ended)
        ended = record.ended or ended
        await self._remove_workspace()
        self._freed()
        log = await self._close_log(ended)
        if log.disk:
            parts.quarantine.begin(log.disk)
            ended = Outcome(Cause.ERRORED, log.disk) if ended.cause is None else ended
        parts.metrics.outcomes.labels(
            common_pb2.AttemptState.Name(ended.state).removeprefix("ATTEMPT_STATE_").lower(), ended.cause or "none"
        ).inc()
        record.outcome, record.phase = ended.state, Phase.SETTLED
        record.facts = {"records": log.records, "offset": log.offset, "ending": log.ending}
        self._report(
            ended=agent_pb2.Ended(
                state=ended.state,
                cause=ended.wire_cause,
                sentence=ended.sentence,
                steps=record.steps,
                log_records={"main": log.records},
                log_bytes={"main": log.offset},
                timings=agent_pb2.Timings(**record.timings),
                outputs=record.told.outputs,
                tests=record.told.tests if record.told.HasField("tests") else None,
                log_patterns=record.told.log_patterns,
            )
        )
        self.source.finish(log.records, log.offset, log.ending)

    async def _say_cleanup(self, ended: Outcome) -> None:
        with contextlib.suppress(SupervisorGone, JobProblem):
            if self._client is not None:
                if ended.cause is not None and not self.record.steps:
                    await self._client.say(f"headrace: {ended.sentence}\n")
                    await self._client.close_section(ended.sentence)
                await self._client.open_section("cleanup", "Clean up")

    async def _close_log(self, ended: Outcome) -> LogEnd:
        """Ends the log."""
        try:
            last = await self._alive.end()
            await self._alive.leave()
        except (SupervisorGone, JobProblem):
            await asyncio.to_thread(end_supervisor, self._folder)
            limit, clock = self._parts.policy.spool_limit, self._parts.clock
            known = self.source.reached
            return await asyncio.to_thread(
                close_orphaned_log, self._spool, ended.sentence, clock, limit=limit, known=known
            )
        finally:
            self._client = self.source.client = None
        return end_of(last)

    async def _remove_workspace(self) -> None:
        try:
            await clear_home(self.record, self._parts, self._home)
        except (NotRemoved, NotRemovedError, OSError) as error:
            self._parts.journal.warning("workspace not removed", attempt=self.record.attempt, error=str(error))

    async def _give_up(self, sentence: str) -> None:
        """The least that can be done when the way above has failed: an outcome, and the slot."""
        with contextlib.suppress(Exception):
            await self._remove_sandbox()
        with contextlib.suppress(Exception):
            await self._settle(Outcome(Cause.ERRORED, sentence))
        self._freed()

    # Small things

    def _enter(self, phase: Phase, ended: Outcome | None = None, *, durable: bool = False) -> None:
        self.record.phase, self.record.ended = phase, ended
        self._write(durable=durable)

    def _write(self, *, durable: bool = False) -> None:
        self._parts.records.keep(self.record, durable=durable)

    def _report(self, **what: agent_pb2.Started | agent_pb2.Ended) -> None:
        """Writes a report down and hands it in."""
        record = self.record
        if not record.aborted:
            report = agent_pb2.Report(
                id=self._parts.new_id(),
                attempt_id=record.attempt,
                token=record.token,
                **what,  # type: ignore[arg-type]  # one of its two kinds
            )
            record.reports[report.id] = report
        self._parts.records.keep(record, durable=True)
        if not record.aborted:
            self._parts.hand_in(report)
