"""What only the agent can evaluate: a job's and its steps' texts and conditions, with the names that they see.

The expressions were checked when the pipeline was loaded; here they get their values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agent.environment import BOTH_LIMITS, OUTPUT_LIMIT, VALUE_LIMIT
from agent.outcome import from_wire
from agent.problems import Cause
from agent.record import Record
from headrace.pipeline.stepping import Ended, Facts, Retry, Rules, StepOutcome, seen
from headrace.pipeline.values import EvaluationFailed, Expression, Functions, Template, rendered, text_of
from headrace.v1 import common_pb2 as pb


def expression_of(told: pb.Expression) -> Expression:
    """An expression of the wire."""
    return Expression(told.text, told.place)


def template_of(told: pb.Template) -> Template:
    """A text of the wire."""
    return Template(
        tuple(
            expression_of(part.expression) if part.WhichOneof("what") == "expression" else part.text
            for part in told.parts
        )
    )


def rules_of(step: pb.Step) -> Rules:
    """What decides about a step."""
    retry = step.retry
    return Rules(
        number=step.number,
        id=step.id,
        condition=expression_of(step.condition) if step.HasField("condition") else None,
        allow_failure=step.allow_failure,
        retry=Retry(retry.max, retry.delay_ms, retry.backoff),
        name=step.name,
    )


def earlier_steps(record: Record) -> tuple[Ended, ...]:
    """The steps that are over, as the rules and later expressions see them."""
    steps = {step.number: step for step in record.spec.steps}
    return tuple(
        Ended(
            rules_of(steps[result.number]),
            step_outcome(result),
            allowed=result.allowed,
            outputs=record.outputs.get(steps[result.number].id, {}),
        )
        for result in record.steps
    )


def step_outcome(result: pb.StepResult) -> StepOutcome:
    """A result in the four words of expressions."""
    if result.skipped:
        return StepOutcome.SKIPPED
    if result.cause == pb.CAUSE_UNSPECIFIED:
        return StepOutcome.PASSED
    return StepOutcome.CANCELED if result.cause == pb.CAUSE_CANCELED else StepOutcome.FAILED


def facts_of(record: Record, halted: Cause | None) -> Facts:
    """What the rules decide by. `halted`: why the job is to stop."""
    return Facts(
        earlier_steps(record),
        canceled=halted is Cause.CANCELED,
        out_of_time=halted is not None and halted is not Cause.CANCELED,
    )


def values_of_job(record: Record) -> dict[str, Any]:
    """What expressions see before the first step. Raises `EvaluationFailed` for needs that fit into no message."""
    context = json.loads(record.spec.context or b"{}")
    needs = json.loads(record.needs or "{}")
    if isinstance(needs, str):
        raise EvaluationFailed(Expression("needs"), needs)
    return {"env": job_env(record), **context, "needs": needs}


def values_of_step(record: Record) -> dict[str, Any]:
    """What they see between steps: `env` is that of pipeline, stage and job and what steps exported."""
    return {**values_of_job(record), "env": job_env(record) | record.exported, "steps": seen(earlier_steps(record))}


def job_env(record: Record) -> dict[str, str]:
    """The environment of pipeline, stage and job, as far as it is evaluated."""
    return {**record.spec.env, **record.env}


def evaluated_env(
    late: Mapping[str, pb.Template], values: Mapping[str, Any], functions: Functions | None = None
) -> dict[str, str]:
    """Variables that were left to the agent. Raises `EvaluationFailed`."""
    return {name: text_of(template_of(told), values, functions) for name, told in sorted(late.items())}


def outputs_of_job(
    record: Record, values: Mapping[str, Any], functions: Functions
) -> tuple[dict[str, Any], Sequence[str]]:
    """The job's outputs that can be computed, and a sentence for each other one."""
    found: dict[str, Any] = {}
    wrong, left = [], OUTPUT_LIMIT
    for name, told in sorted(record.spec.outputs.items()):
        try:
            value = rendered(template_of(told), values, functions)
            size = len(json.dumps(value, allow_nan=False).encode())
        except EvaluationFailed as error:
            wrong.append(f"output `{name}`: {error}")
            continue
        except ValueError:
            wrong.append(f"output `{name}` is no number that JSON knows")
            continue
        if size > VALUE_LIMIT or size > left:
            wrong.append(f"output `{name}` has {size:,} bytes, with {OUTPUT_LIMIT - left:,} taken: {BOTH_LIMITS}")
            continue
        found[name] = value
        left -= size
    return found, wrong


def is_forgiven(step: pb.Step, result: pb.StepResult) -> bool:
    """Whether a step's failure counts for nothing: the step's own failure, under `allow_failure`."""
    cause = from_wire(result.cause)
    return step.allow_failure and cause is not None and cause not in _UNFORGIVEN


_UNFORGIVEN = {
    Cause.CANCELED,
    Cause.JOB_TIMED_OUT,
    Cause.EXPRESSION_FAILED,
    # The machinery failed, or the sandbox is no more: what follows could not run.
    Cause.ERRORED,
    Cause.HOST_OOM,
    Cause.SANDBOX_KILLED,
    Cause.CONTROL_TAKEN,
}
