"""What an attempt came to. Pure: step results and problems in, the outcome of the wire out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from agent.problems import Cause, JobProblem
from agent.supervisor.results import StepResult
from headrace.v1 import common_pb2 as pb

_STATES: Mapping[Cause, pb.AttemptState.ValueType] = MappingProxyType(
    {
        Cause.STEP_FAILED: pb.ATTEMPT_STATE_FAILED,
        Cause.STEP_TIMED_OUT: pb.ATTEMPT_STATE_TIMED_OUT,
        Cause.JOB_TIMED_OUT: pb.ATTEMPT_STATE_TIMED_OUT,
        Cause.OOM: pb.ATTEMPT_STATE_FAILED,
        Cause.IMAGE_UNAVAILABLE: pb.ATTEMPT_STATE_FAILED,
        Cause.SHELL_MISSING: pb.ATTEMPT_STATE_FAILED,
        Cause.WORKDIR_MISSING: pb.ATTEMPT_STATE_FAILED,
        Cause.ARTIFACT_EMPTY: pb.ATTEMPT_STATE_FAILED,
        Cause.ARTIFACT_CONFLICT: pb.ATTEMPT_STATE_FAILED,
        Cause.CHECKOUT_FAILED: pb.ATTEMPT_STATE_FAILED,
        Cause.SERVICE_FAILED: pb.ATTEMPT_STATE_FAILED,
        Cause.EXPRESSION_FAILED: pb.ATTEMPT_STATE_FAILED,
        Cause.REFUSED: pb.ATTEMPT_STATE_FAILED,
        Cause.CONTROL_TAKEN: pb.ATTEMPT_STATE_FAILED,  # the job's own doing: it fails only itself
        Cause.ERRORED: pb.ATTEMPT_STATE_ERRORED,
        Cause.HOST_OOM: pb.ATTEMPT_STATE_ERRORED,
        Cause.SANDBOX_KILLED: pb.ATTEMPT_STATE_ERRORED,
        Cause.CANCELED: pb.ATTEMPT_STATE_CANCELED,
    }
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended. `cause` None: it passed."""

    cause: Cause | None = None
    sentence: str = ""

    @property
    def state(self) -> pb.AttemptState.ValueType:
        """The outcome as a state of the attempt."""
        return pb.ATTEMPT_STATE_PASSED if self.cause is None else _STATES[self.cause]

    @property
    def wire_cause(self) -> pb.Cause.ValueType:
        """The cause as the wire has it."""
        return on_wire(self.cause)

    @classmethod
    def of(cls, problem: JobProblem) -> Outcome:
        """The outcome that a problem is."""
        return cls(problem.cause, problem.sentence)


def on_wire(cause: Cause | None) -> pb.Cause.ValueType:
    """The wire's value of a cause."""
    return pb.CAUSE_UNSPECIFIED if cause is None else pb.Cause.Value(f"CAUSE_{cause.name}")


def from_wire(cause: pb.Cause.ValueType) -> Cause | None:
    """The cause of a wire's value; None: it passed."""
    return None if cause == pb.CAUSE_UNSPECIFIED else Cause[pb.Cause.Name(cause).removeprefix("CAUSE_")]


def step_result(step: pb.Step, result: StepResult) -> pb.StepResult:
    """A supervisor's result as the wire has it."""
    told = pb.StepResult(
        number=step.number,
        name=step.name,
        cause=on_wire(result.cause),
        sentence=result.sentence,
        began_ms=result.began_ms,
        ended_ms=result.ended_ms,
    )
    if result.exit_code is not None:
        told.exit_code = result.exit_code
    if result.signal is not None:
        told.signal = result.signal
    return told


def skipped(step: pb.Step, reason: str) -> pb.StepResult:
    """The result of a step that was not run."""
    return pb.StepResult(number=step.number, name=step.name, skipped=True, sentence=f"skipped: {reason}")


def of_steps(results: Iterable[pb.StepResult]) -> Outcome:
    """The outcome that the steps make: that of the first one that did not pass, and was not allowed to fail."""
    for result in results:
        if result.skipped or result.allowed or result.cause == pb.CAUSE_UNSPECIFIED:
            continue
        sentence = result.sentence or f"exit code {result.exit_code}"
        return Outcome(from_wire(result.cause), f"step {result.name!r}: {sentence}")
    return Outcome()
