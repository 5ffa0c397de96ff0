"""What can go wrong with a job, told apart by cause.

A failed command is not a problem: it is a `StepResult`. A `JobProblem` ends the attempt with a cause from the
closed list of the wire (`headrace.v1.common_pb2.Cause`) and one sentence for the person who reads the run.
"""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """Why an attempt did not pass. The names are those of `headrace.v1.Cause`, lower case."""

    STEP_FAILED = "step_failed"
    STEP_TIMED_OUT = "step_timed_out"
    JOB_TIMED_OUT = "job_timed_out"
    OOM = "oom"
    HOST_OOM = "host_oom"
    SANDBOX_KILLED = "sandbox_killed"
    CONTROL_TAKEN = "control_taken"
    IMAGE_UNAVAILABLE = "image_unavailable"
    SHELL_MISSING = "shell_missing"
    WORKDIR_MISSING = "workdir_missing"
    ARTIFACT_EMPTY = "artifact_empty"
    ARTIFACT_CONFLICT = "artifact_conflict"
    CHECKOUT_FAILED = "checkout_failed"
    SERVICE_FAILED = "service_failed"
    EXPRESSION_FAILED = "expression_failed"
    ERRORED = "errored"
    REFUSED = "refused"
    CANCELED = "canceled"


class JobProblem(Exception):
    """Ends the attempt. `cause` names whose fault it is; the message is one sentence with its mend."""

    def __init__(self, cause: Cause, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause
        self.sentence = sentence
