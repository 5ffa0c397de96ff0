"""The words for what a run, a job and an attempt can be, and why. The wire has the same, in capitals."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """A run as a whole."""

    PENDING = "pending"
    RUNNING = "running"
    BLOCKED = "blocked"
    PASSED = "passed"
    FAILED = "failed"
    CANCELED = "canceled"


class JobState(StrEnum):
    """A job. `QUEUED` is claimable now, or claimed and not yet started."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    BLOCKED = "blocked"
    PASSED = "passed"
    FAILED = "failed"
    CANCELED = "canceled"
    SKIPPED = "skipped"


class AttemptState(StrEnum):
    """One claim of a job by an agent. `RETURNED` never started: it is no try and is not shown."""

    LEASED = "leased"
    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"
    ERRORED = "errored"
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"
    LOST = "lost"
    RETURNED = "returned"


class Cause(StrEnum):
    """Why something did not pass: the closed list of `headrace.v1.Cause`. `NONE`: it passed, or is not over."""

    NONE = ""
    STEP_FAILED = "step_failed"
    STEP_TIMED_OUT = "step_timed_out"
    JOB_TIMED_OUT = "job_timed_out"
    OOM = "oom"
    IMAGE_UNAVAILABLE = "image_unavailable"
    SHELL_MISSING = "shell_missing"
    WORKDIR_MISSING = "workdir_missing"
    ARTIFACT_EMPTY = "artifact_empty"
    ARTIFACT_CONFLICT = "artifact_conflict"
    CHECKOUT_FAILED = "checkout_failed"
    REFUSED = "refused"
    UNSCHEDULABLE = "unschedulable"
    EXPRESSION_FAILED = "expression_failed"
    SERVICE_FAILED = "service_failed"
    ERRORED = "errored"
    LOST = "lost"
    HOST_OOM = "host_oom"
    SANDBOX_KILLED = "sandbox_killed"
    CONTROL_TAKEN = "control_taken"
    CANCELED = "canceled"
    SKIPPED_BY_CONDITION = "skipped_by_condition"
    SKIPPED_BY_DEPENDENCY = "skipped_by_dependency"
    CELL_VANISHED = "cell_vanished"


RUN_OVER = frozenset({RunState.PASSED, RunState.FAILED, RunState.CANCELED})
JOB_OVER = frozenset({JobState.PASSED, JobState.FAILED, JobState.CANCELED, JobState.SKIPPED})
NEVER_BEGUN = frozenset({Cause.EXPRESSION_FAILED, Cause.ERRORED})
"""Causes for which a job fails that nobody has begun."""
ATTEMPT_LIVE = frozenset({AttemptState.LEASED, AttemptState.RUNNING})
ATTEMPT_OUTCOMES = frozenset(
    {
        AttemptState.PASSED,
        AttemptState.FAILED,
        AttemptState.ERRORED,
        AttemptState.TIMED_OUT,
        AttemptState.CANCELED,
    }
)


class IllegalTransition(Exception):
    """An event that the table does not know in this state: a defect of ours, told with the story of the thing."""

    def __init__(self, thing: object, event: object) -> None:
        super().__init__(f"{event!r} cannot happen to {thing!r}")


class StaleToken(Exception):
    """The event carries the token of an attempt that is no longer this one. No defect: the sender is late."""
