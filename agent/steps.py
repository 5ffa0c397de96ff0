"""The steps of an attempt, one after another, and what is kept of them.

Which step runs is decided by `headrace.pipeline.stepping`; here it is made true, so that an agent which was killed goes
on from the record: a step that has begun is never decided anew.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent import environment, late, outcome
from agent.artifacts import keep_artifacts, use_artifact, wanted
from agent.environment import BadFile, Files, Places
from agent.extending import extend_run, read_fragment
from agent.findings import find_patterns, read_tests
from agent.halt import Halt, Halted, Result
from agent.outcome import Outcome
from agent.parts import Parts
from agent.preparing import Home
from agent.problems import Cause, JobProblem
from agent.record import Record
from agent.supervisor.client import SupervisorClient
from agent.supervisor.results import Step, SupervisorState
from agent.workspace.artifacts import Ending
from agent.workspace.digest import digest_of
from agent.workspace.tree import NotThere, TooMuch, Tree, TreeProblem
from headrace.pipeline import stepping
from headrace.pipeline.stepping import CLEANING_MS, Skip
from headrace.pipeline.values import EvaluationFailed
from headrace.v1 import common_pb2

SLACK_MS = 30_000
"""The supervisor's own end of the job comes so long after the agent's: for an agent that is not there."""
_AFTER_CANCEL_S = 300.0
_APART = 1_000_000
"""Between the supervisor's numbers for two tries of a step: far more than a job has steps."""
_TIME_TO_CLEAN = "the 5 min that steps have after a cancel or the end of the job's time"
_TRIED_AGAIN = (common_pb2.CAUSE_STEP_FAILED, common_pb2.CAUSE_STEP_TIMED_OUT, common_pb2.CAUSE_OOM)


@dataclass(frozen=True, slots=True)
class _Try:
    """One try of a command, and what it wrote."""

    result: common_pb2.StepResult
    outputs: Mapping[str, str] = field(default_factory=dict)
    exported: Mapping[str, str] = field(default_factory=dict)


class Steps:
    """Runs what the record says is not done yet."""

    def __init__(self, record: Record, parts: Parts, home: Home, *, halt: Halt, client: SupervisorClient) -> None:
        self._record = record
        self._parts = parts
        self._home = home
        self._halt = halt
        self._client = client

    async def run(self) -> Outcome:
        """All steps in order, as far as their conditions let them run; then the job's outputs."""
        record = self._record
        done = {result.number for result in record.steps}
        since = self._parts.clock.monotonic_ms()
        known = await self._client.state()
        for step in record.spec.steps:
            if step.number in done:
                continue
            result = await self._one(step, known)
            record.steps.append(result)
            record.trying = None
            self._parts.records.keep(self._record)
        record.timings["steps_ms"] = record.timings.get("steps_ms", 0) + self._parts.clock.monotonic_ms() - since
        return await self._with_outputs(self._halt.outcome or outcome.of_steps(record.steps))

    async def _one(self, step: common_pb2.Step, known: SupervisorState) -> common_pb2.StepResult:
        """One step to its end, whatever that is."""
        began = self._parts.clock.wall_ms()
        try:
            if step.WhichOneof("what") == "use_artifact":
                skip, _ = (None, {}) if self._record.placing else await self._decided(step)
                return await (self._use(step) if skip is None else self._skipped(step, skip))
            return await self._command(step, known)
        except Halted:
            return outcome.skipped(step, "everything was killed")
        except EvaluationFailed as error:
            await self._client.open_section("step", step.name)
            await self._client.say(f"headrace: {error}\n")
            await self._client.close_section(str(error))
            return common_pb2.StepResult(
                number=step.number,
                name=step.name,
                cause=common_pb2.CAUSE_EXPRESSION_FAILED,
                sentence=str(error),
                began_ms=began,
                ended_ms=self._parts.clock.wall_ms(),
            )

    async def _skipped(self, step: common_pb2.Step, skip: Skip) -> common_pb2.StepResult:
        """The reason has values in it: masked, like all that is told."""
        (reason,) = await self._client.masked([skip.reason])
        return outcome.skipped(step, reason or "its condition is false")

    # Whether it runs, and with what

    async def _decided(self, step: common_pb2.Step) -> tuple[Skip | None, Mapping[str, str]]:
        """Why the step is skipped, or None and its evaluated variables. Raises `EvaluationFailed`, `Halted`."""
        while True:
            halted = self._halt.outcome
            work = asyncio.to_thread(self._judged, step, None if halted is None else halted.cause)
            skip, env = await self._halt.unless_killed(work)
            if skip is None and halted is not None and not await self._time_to_clean():
                skip = Skip(f"{_TIME_TO_CLEAN} are over")
            if self._halt.outcome is halted:  # else it was stopped meanwhile: other rules hold
                return skip, env

    def _judged(self, step: common_pb2.Step, halted: Cause | None) -> tuple[Skip | None, Mapping[str, str]]:
        """Blocks: `hash` reads files."""
        asks = step.HasField("condition") or step.run.late_env
        values, functions = late.values_of_step(self._record) if asks else {}, {"hash": self._hash}
        if self._record.trying is None:
            facts = late.facts_of(self._record, halted)
            decision = stepping.decide(late.rules_of(step), facts, values, functions)
            if isinstance(decision, Skip):
                return decision, {}
        return None, late.evaluated_env(step.run.late_env, values, functions)

    def _hash(self, *globs: str) -> str:
        with Tree.open(self._home.tree) as tree:
            return digest_of(tree, globs, self._seconds)

    def _seconds(self) -> float:
        return self._parts.clock.monotonic_ms() / 1000

    async def _time_to_clean(self) -> int:
        """Milliseconds that are left to steps after a halt, from the moment in which the supervisor knows of it."""
        record = self._record
        await self._halt.unless_killed(self._halt.passed_on.wait())
        now = self._parts.clock.boot_ms()
        if not record.cleaning_until_boot_ms:
            record.cleaning_until_boot_ms = now + CLEANING_MS
            self._parts.records.keep(record)
        deadline = record.cleaning_until_boot_ms + record.spec.grace_ms + SLACK_MS
        await self._client.extend(self._parts.lease.of(record.spec.environment), deadline_boot_ms=deadline)
        return max(0, record.cleaning_until_boot_ms - now)

    # A command

    async def _command(self, step: common_pb2.Step, known: SupervisorState) -> common_pb2.StepResult:
        record = self._record
        while True:
            attempted = record.trying.tries + 1 if record.trying is not None else 1
            env: Mapping[str, str] = {}
            if _number(step, attempted) not in known.begun:
                try:
                    await self._wait_for_next_try()
                    skip, env = await self._decided(step)
                except Halted:
                    if record.trying is None:
                        raise
                    return self._over(step, _Try(record.trying))
                if skip is not None:
                    return await self._skipped(step, skip)
            tried = await self._tried(step, env, attempted)
            delay = await self._delay(step, tried.result, attempted)
            if delay is None:
                result = self._over(step, tried)
                if record.spec.log_patterns and outcome.of_steps(record.steps).cause is None:
                    await self._look_at_log(result)
                return result
            record.trying = tried.result
            record.again_boot_ms = self._parts.clock.boot_ms() + delay
            self._parts.records.keep(record)

    async def _wait_for_next_try(self) -> None:
        """Raises `Halted`: a job that is to stop tries nothing again."""
        if self._record.trying is not None:
            left = self._record.again_boot_ms - self._parts.clock.boot_ms()
            await self._halt.unless_halted(asyncio.sleep(max(0, left) / 1000))

    async def _tried(self, step: common_pb2.Step, env: Mapping[str, str], attempted: int) -> _Try:
        until = self._record.cleaning_until_boot_ms
        left = max(1, until - self._parts.clock.boot_ms()) if until else 0
        is_cut = bool(until) and not 0 < step.timeout_ms <= left
        told = await self._client.step(self._asked(step, env, attempted, left if is_cut else step.timeout_ms))
        result = outcome.step_result(step, told)
        result.tries = attempted if step.retry.max else 0
        if is_cut and told.cause is Cause.STEP_TIMED_OUT:
            result.sentence = f"{_TIME_TO_CLEAN} were over"
        try:
            outputs, exported = await asyncio.to_thread(self._said, step, attempted)
        except BadFile as error:
            if told.cause is None:
                result.cause, result.sentence = common_pb2.CAUSE_STEP_FAILED, str(error)
            return _Try(result)
        if told.cause is None:
            await self._extend(result, Files(step.number, attempted))
        return _Try(result, outputs, exported)

    async def _extend(self, result: common_pb2.StepResult, files: Files) -> None:
        """Adds to the run what a step that passed wrote for it; what is wrong with that fails the step."""
        try:
            if text := await asyncio.to_thread(read_fragment, self._home.say, files):
                work = extend_run(self._record, self._parts.calls, self._client, result.number, text)
                async with asyncio.timeout(self._seconds_left(0)):
                    result.sentence = await self._unless(work)
                result.cause = common_pb2.CAUSE_STEP_FAILED if result.sentence else common_pb2.CAUSE_UNSPECIFIED
        except BadFile as error:
            result.cause, result.sentence = common_pb2.CAUSE_STEP_FAILED, str(error)
        except JobProblem as problem:
            result.cause, result.sentence = outcome.on_wire(problem.cause), problem.sentence
        except TimeoutError:
            result.cause, result.sentence = common_pb2.CAUSE_STEP_TIMED_OUT, f"{_TIME_TO_CLEAN} were over"
        except Halted:
            assert self._halt.outcome is not None
            result.cause, result.sentence = self._halt.outcome.wire_cause, self._halt.outcome.sentence

    def _unless(self, work: Coroutine[Any, Any, Result]) -> Coroutine[Any, Any, Result]:
        """The work, ended by a halt; by a kill alone, where steps clean up after a halt."""
        halt = self._halt
        return halt.unless_killed(work) if self._record.cleaning_until_boot_ms else halt.unless_halted(work)

    def _asked(self, step: common_pb2.Step, env: Mapping[str, str], attempted: int, timeout_ms: int) -> Step:
        record, spec, facts = self._record, self._record.spec, self._record.facts
        places = Places(workspace=facts["workspace"], say=facts["say"])
        ours = environment.of_job(spec, record.attempt_try, places, facts.get("fencing_token", 0))
        most = step.retry.max + 1
        before = f", after {record.trying.sentence or 'a failure'}" if record.trying is not None else ""
        return Step(
            number=_number(step, attempted),
            step=step.number,
            section_title=step.name if attempted == 1 else f"{step.name} (try {attempted} of {most})",
            say=f"headrace: try {attempted} of {most}{before}\n" if most > 1 else "",
            script=step.run.script,
            shell=step.run.shell or "default",
            cwd=f"{places.workspace}/{step.run.workdir}".rstrip("/"),
            env=environment.of_step(
                facts["env"],
                late.job_env(record) | record.exported,
                {**step.run.env, **env},
                ours=ours,
                say=places.say,
                files=Files(step.number, attempted),
            ),
            timeout_ms=timeout_ms,
            grace_ms=spec.grace_ms,
        )

    async def _delay(self, step: common_pb2.Step, result: common_pb2.StepResult, attempted: int) -> int | None:
        """Milliseconds until the next try; None: there is none."""
        if result.cause not in _TRIED_AGAIN:
            return None
        halted = self._halt.outcome
        facts = late.facts_of(self._record, None if halted is None else halted.cause)
        delay = stepping.delay_before_next_try(late.rules_of(step), late.step_outcome(result), attempted, facts)
        lives = delay is not None and (await self._client.state()).sandbox is None
        return delay if lives else None

    async def _look_at_log(self, result: common_pb2.StepResult) -> None:
        """While the end of the log of a step that fails the job is still there."""
        if outcome.of_steps([result]).cause is not None:
            await find_patterns(self._record, self._client, self._parts.journal)

    def _over(self, step: common_pb2.Step, tried: _Try) -> common_pb2.StepResult:
        """Takes in what the step wrote: also one that failed may have said why."""
        tried.result.allowed = late.is_forgiven(step, tried.result)
        self._record.exported |= tried.exported
        if step.id:
            self._record.outputs[step.id] = dict(tried.outputs)
        return tried.result

    def _said(self, step: common_pb2.Step, attempted: int) -> tuple[dict[str, str], dict[str, str]]:
        """Outputs and variables that the step wrote to its files. Blocks. Raises `BadFile`."""
        files = Files(step.number, attempted)
        with Tree.open(self._home.say) as tree:
            try:
                outputs = environment.parse_output(_read(tree, files.output, environment.OUTPUT_LIMIT))
                exported = environment.parse_env(_read(tree, files.env, environment.ENV_LIMIT))
            except TooMuch as error:
                raise BadFile(
                    f"What the step wrote for Headrace is too much: {error} In general {environment.BOTH_LIMITS}."
                ) from error
            except TreeProblem as error:
                raise BadFile(f"What the step wrote for Headrace cannot be read: {error}") from error
        if step.id:
            environment.check_together([*self._record.outputs.values(), outputs])
        return outputs, exported

    # An artifact

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
            async with asyncio.timeout(self._seconds_left(step.timeout_ms)):
                await self._unless(work)
        except JobProblem as problem:
            result.cause, result.sentence = outcome.on_wire(problem.cause), problem.sentence
            await client.say(f"headrace: {problem.sentence}\n")
        except TimeoutError:
            result.cause = common_pb2.CAUSE_STEP_TIMED_OUT
            result.sentence = f"it took longer than {span(step.timeout_ms)}"
        except Halted:
            assert self._halt.outcome is not None
            result.cause, result.sentence = self._halt.outcome.wire_cause, self._halt.outcome.sentence
        record.placing = False
        result.allowed = late.is_forgiven(step, result)
        await client.close_section(result.sentence)
        result.ended_ms = clock.wall_ms()
        return result

    def _seconds_left(self, timeout_ms: int) -> float | None:
        """How long what we do for a step may take; None: as long as it takes. `timeout_ms` 0: no bound of its own."""
        until = self._record.cleaning_until_boot_ms
        left = [timeout_ms] if timeout_ms else []
        left += [max(1, until - self._parts.clock.boot_ms())] if until else []
        return min(left) / 1000 if left else None

    # What is left of them

    async def _with_outputs(self, ended: Outcome) -> Outcome:
        """Evaluates the job's outputs. Those of a job that did not pass are told as far as they can be computed."""
        record = self._record
        if not record.spec.outputs or self._halt.killed.is_set():
            return ended
        values = late.values_of_step(record)
        work = asyncio.to_thread(late.outputs_of_job, record, values, {"hash": self._hash})
        try:
            found, wrong = await self._halt.unless_killed(work)
        except Halted:
            return self._halt.outcome or ended
        record.told.outputs = json.dumps(found).encode()
        if ended.cause is not None or not wrong:
            return ended
        await self._client.open_section("artifacts", "Set outputs")
        await self._client.say("".join(f"headrace: {sentence}\n" for sentence in wrong))
        await self._client.close_section(wrong[0])
        return Outcome(Cause.EXPRESSION_FAILED, wrong[0])

    async def keep(self, ended: Outcome) -> Outcome:
        """Reads the job's reports and keeps the artifacts that belong to this ending; the sandbox is gone.

        Raises `JobProblem`, `Halted`.
        """
        record, client = self._record, self._client
        if record.spec.junit:
            await self._halt.unless_killed(read_tests(record, self._home.tree, client, self._seconds))
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


def _number(step: common_pb2.Step, attempted: int) -> int:
    """What a try is called where the supervisor runs it: asked again, it is the same one."""
    return step.number + (attempted - 1) * _APART


def _read(tree: Tree, name: str, limit: int) -> bytes:
    try:
        return tree.read(name, limit)
    except NotThere:
        return b""


def span(milliseconds: int) -> str:
    """Milliseconds for people."""
    seconds = milliseconds / 1000
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:g} min"
