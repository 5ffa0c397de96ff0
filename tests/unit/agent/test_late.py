"""What the agent evaluates: the wire's texts, what they see, and what an outcome may hold of them."""

from __future__ import annotations

import json

import pytest

from agent import late, outcome
from agent.problems import Cause
from agent.record import Record
from headrace.pipeline.stepping import StepOutcome
from headrace.pipeline.values import EvaluationFailed, Expression
from headrace.v1 import common_pb2 as pb


def record(**fields: object) -> Record:
    spec = pb.JobSpec(**fields)  # type: ignore[arg-type]
    return Record(attempt=7, token=b"t", attempt_try=1, slot=0, spec=spec, assigned_boot_ms=9)


def template(text: str) -> pb.Template:
    return pb.Template(parts=[pb.TemplatePart(expression=pb.Expression(text=text, place="f:1:2"))])


def test_a_condition_that_is_not_there_is_not_an_empty_one() -> None:
    """The wire tells unset from empty, and a step without condition runs by `success()`."""
    step = pb.Step(number=3, id="a", name="n", retry=pb.StepRetry(max=2, delay_ms=5))
    assert late.rules_of(step).condition is None
    assert (late.rules_of(step).retry.max, late.rules_of(step).retry.backoff) == (2, 0.0)
    step.condition.text, step.condition.place = "always()", "f:1:2"
    assert late.rules_of(step).condition == Expression("always()", "f:1:2")


def test_a_step_sees_the_jobs_environment_and_what_was_exported_and_no_more_recent_names() -> None:
    """`env` in a condition is what the step would find, but for its own variables."""
    seen = record(
        context=b'{"branch": "main"}',
        env={"A": "job", "B": "job"},
        steps=[pb.Step(number=0, id="a"), pb.Step(number=1)],
    )
    seen.env, seen.exported, seen.needs = {"L": "late"}, {"B": "exported"}, '{"w": {"outcome": "passed"}}'
    seen.steps = [pb.StepResult(number=0, cause=pb.CAUSE_STEP_FAILED, allowed=True), pb.StepResult(number=1)]
    seen.outputs = {"a": {"v": "1"}}
    values = late.values_of_step(seen)
    assert values["env"] == {"A": "job", "B": "exported", "L": "late"}
    assert values["steps"] == {"a": {"outcome": "failed", "outputs": {"v": "1"}}}
    assert (values["branch"], values["needs"]["w"]["outcome"]) == ("main", "passed")
    assert late.values_of_job(record()) == {"env": {}, "needs": {}}


def test_needs_that_fit_into_no_message_fail_the_job_with_their_sentence() -> None:
    """An expression of theirs would say only that there is no such key."""
    seen = record()
    seen.needs = '"the outputs of `w` take 9 bytes"'
    with pytest.raises(EvaluationFailed, match="cannot be computed: the outputs of `w` take 9 bytes"):
        late.values_of_job(seen)


@pytest.mark.parametrize("cause", list(Cause))
def test_only_a_steps_own_failure_is_forgiven(cause: Cause) -> None:
    """`allow_failure` speaks of the command: a machine that failed or a sandbox that is gone is another matter."""
    result = pb.StepResult(cause=outcome.on_wire(cause))
    forgiven = late.is_forgiven(pb.Step(allow_failure=True), result)
    assert forgiven == (
        cause not in {Cause.CANCELED, Cause.JOB_TIMED_OUT, Cause.EXPRESSION_FAILED, Cause.ERRORED}
        and cause not in {Cause.HOST_OOM, Cause.SANDBOX_KILLED, Cause.CONTROL_TAKEN}
    )
    assert not late.is_forgiven(pb.Step(), result)
    assert late.step_outcome(result) is (StepOutcome.CANCELED if cause is Cause.CANCELED else StepOutcome.FAILED)


def test_outputs_that_are_too_large_are_named_with_both_figures() -> None:
    """And told is what fits, so that a failed job still says what it can."""
    job = record(outputs={"big": template("env.BIG + env.BIG"), "small": template("3")}, env={"BIG": "x" * 600_000})
    found, wrong = late.outputs_of_job(job, late.values_of_job(job), {})
    assert found == {"small": 3}
    (sentence,) = wrong
    assert sentence.startswith(
        "output `big` has 1,200,002 bytes, with 0 taken: one output holds up to 1,048,576 bytes, "
    )
    assert sentence.endswith("and all outputs of a job together 16,777,216")
    many = record(outputs={f"o{n:02}": template("env.BIG") for n in range(25)}, env={"BIG": "x" * 1_000_000})
    found, wrong = late.outputs_of_job(many, late.values_of_job(many), {})
    assert len(json.dumps(found)) < 16 << 20
    assert (len(found), len(wrong)) == (16, 9)


def test_an_output_that_json_does_not_know_is_told() -> None:
    """Whoever reads the outcome would stumble over it."""
    job = record(outputs={"n": template("1.0 / 0.0")})
    assert late.outputs_of_job(job, {}, {}) == ({}, ["output `n` is no number that JSON knows"])
