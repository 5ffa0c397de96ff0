"""The steps of an attempt, one after another, and what is kept of them."""

from __future__ import annotations

import asyncio

from agent import environment, outcome
from agent.artifacts import keep_artifacts, use_artifact, wanted
from agent.environment import BadFile, Places
from agent.halt import Halt
from agent.outcome import Outcome
from agent.parts import Parts
from agent.preparing import Home
from agent.problems import Cause, JobProblem
from agent.record import Record
from agent.supervisor.client import SupervisorClient
from agent.supervisor.results import Step
from agent.workspace.artifacts import Ending
from agent.workspace.tree import NotThere, Tree, TreeProblem
from headrace.v1 import common_pb2

_AFTER_CANCEL_S = 300.0


class Steps:
    """Runs what the record says is not done yet."""

    def __init__(self, record: Record, parts: Parts, home: Home, *, halt: Halt, client: SupervisorClient) -> None:
        self._record = record
        self._parts = parts
        self._home = home
        self._halt = halt
        self._client = client

    async def run(self) -> Outcome:
        """All steps in order; after one that did not pass, or a halt, the rest is skipped."""
        record = self._record
        done = {result.number for result in record.steps}
        since = self._parts.clock.monotonic_ms()
        for step in record.spec.steps:
            if step.number in done:
                continue
            failed = outcome.of_steps(record.steps).cause is not None
            if failed or self._halt.outcome is not None:
                result = outcome.skipped(step)
            elif step.WhichOneof("what") == "use_artifact":
                result = await self._use(step)
            else:
                result = await self._command(step)
            record.steps.append(result)
            self._parts.records.keep(self._record)
        record.timings["steps_ms"] = record.timings.get("steps_ms", 0) + self._parts.clock.monotonic_ms() - since
        if self._halt.outcome is not None:
            return self._halt.outcome
        return outcome.of_steps(record.steps)

    async def _command(self, step: common_pb2.Step) -> common_pb2.StepResult:
        record, spec, facts = self._record, self._record.spec, self._record.facts
        places = Places(workspace=facts["workspace"], say=facts["say"])
        ours = environment.of_job(spec, record.attempt_try, places, facts.get("fencing_token", 0))
        told = await self._client.step(
            Step(
                number=step.number,
                section_title=step.name,
                script=step.run.script,
                shell=step.run.shell or "default",
                cwd=f"{places.workspace}/{step.run.workdir}".rstrip("/"),
                env=environment.of_step(facts["env"], spec, record.exported, step, ours=ours, places=places),
                timeout_ms=step.timeout_ms,
                grace_ms=spec.grace_ms,
            )
        )
        result = outcome.step_result(step, told)
        if told.cause is None:
            try:
                record.exported |= await asyncio.to_thread(self._said, step.number)
            except BadFile as error:
                result.cause, result.sentence = common_pb2.CAUSE_STEP_FAILED, str(error)
        return result

    def _said(self, step: int) -> dict[str, str]:
        """What the step wrote to its files. Blocks. Raises `BadFile`."""
        with Tree.open(self._home.say) as tree:
            try:
                environment.parse_output(_read(tree, environment.output_file(step), environment.OUTPUT_LIMIT))
                return environment.parse_env(_read(tree, environment.env_file(step), environment.ENV_LIMIT))
            except TreeProblem as error:
                raise BadFile(f"What the step wrote for Headrace cannot be read: {error}") from error

    async def _use(self, step: common_pb2.Step) -> common_pb2.StepResult:
        record, clock, client = self._record, self._parts.clock, self._client
        result = common_pb2.StepResult(number=step.number, name=step.name, began_ms=clock.wall_ms())
        await client.open_section("artifacts", step.name)
        try:
            if record.placing:
                raise JobProblem(Cause.ERRORED, "the agent was started again while it placed an artifact")
            record.placing = True
            self._parts.records.keep(self._record)
            work = use_artifact(record, self._parts, self._home.tree, step, client.say)
            async with asyncio.timeout(step.timeout_ms / 1000 or None):
                await self._halt.unless_halted(work)
        except JobProblem as problem:
            result.cause, result.sentence = outcome.on_wire(problem.cause), problem.sentence
            await client.say(f"headrace: {problem.sentence}\n")
        except TimeoutError:
            result.cause = common_pb2.CAUSE_STEP_TIMED_OUT
            result.sentence = f"it took longer than {span(step.timeout_ms)}"
        record.placing = False
        await client.close_section(result.sentence)
        result.ended_ms = clock.wall_ms()
        return result

    async def keep(self, ended: Outcome) -> Outcome:
        """Keeps the artifacts that belong to this ending; the sandbox is gone. Raises `JobProblem`, `Halted`."""
        record, client = self._record, self._client
        ending = None if ended.cause is Cause.CANCELED else Ending.PASSED if ended.cause is None else Ending.FAILED
        specs = wanted(record.spec, ending)
        if not specs:
            return Outcome()
        since = self._parts.clock.monotonic_ms()
        await client.open_section("artifacts", "Keep artifacts")
        try:
            with Tree.open(self._home.tree) as tree:
                keeping = keep_artifacts(record, self._parts, tree, specs, client.say)
                whole = record.spec.timeout_ms / 1000 + _AFTER_CANCEL_S  # as long as all the steps might have taken
                await self._halt.unless_late(keeping, whole_s=whole, after_halt_s=_AFTER_CANCEL_S)
        except JobProblem as problem:
            await client.say(f"headrace: {problem.sentence}\n")
            await client.close_section(problem.sentence)
            raise
        except TimeoutError:
            return Outcome(Cause.ERRORED, "the artifacts could not be kept in time")
        finally:
            record.timings["artifacts_ms"] = self._parts.clock.monotonic_ms() - since
        return Outcome()


def _read(tree: Tree, name: str, limit: int) -> bytes:
    try:
        return tree.read(name, limit)
    except NotThere:
        return b""


def span(milliseconds: int) -> str:
    """Milliseconds for people."""
    seconds = milliseconds / 1000
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:g} min"
