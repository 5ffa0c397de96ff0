"""From the messages of the wire to the values of `types`, and back for what is sent. Nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from headrace.client import types
from headrace.v1 import blob_pb2, common_pb2, fleet_pb2, run_pb2

Word = TypeVar("Word", bound=StrEnum)


def moment(ms: int) -> datetime | None:
    """Milliseconds since the epoch as an aware time; 0 means not yet."""
    return datetime.fromtimestamp(ms / 1000, UTC) if ms else None


def word(known: type[Word], number: int, prefix: str) -> Word | str:
    """The enum's word for a wire number; one that is unknown here is `prefix_number`."""
    members = list(known)
    return members[number - 1] if 1 <= number <= len(members) else f"{prefix}_{number}"


def cause(number: int) -> str | None:
    """The cause's word, None for none, `cause_77` for one that is newer than this client."""
    if number == common_pb2.CAUSE_UNSPECIFIED:
        return None
    found = common_pb2.Cause.DESCRIPTOR.values_by_number.get(number)
    return found.name.removeprefix("CAUSE_").lower() if found else f"cause_{number}"


def source(message: common_pb2.Source) -> types.Source:
    """A run's source."""
    return types.Source(
        repository=message.repository,
        commit=message.commit,
        path=message.path,
        url=message.url,
        bundle_sha256=message.bundle_sha256,
        branch=message.branch,
        tag=message.tag,
        description=message.description,
        own_code=message.own_code,
    )


def source_message(value: types.Source) -> common_pb2.Source:
    """A source as it is sent; the three places to fetch from exclude each other."""
    message = common_pb2.Source(
        repository=value.repository,
        commit=value.commit,
        branch=value.branch,
        tag=value.tag,
        description=value.description,
        own_code=value.own_code,
    )
    if value.path:
        message.path = value.path
    elif value.url:
        message.url = value.url
    elif value.bundle_sha256:
        message.bundle_sha256 = value.bundle_sha256
    return message


def step(message: common_pb2.StepResult) -> types.StepResult:
    """How a step ended."""
    return types.StepResult(
        number=message.number,
        name=message.name,
        cause=cause(message.cause),
        skipped=message.skipped,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal if message.HasField("signal") else None,
        sentence=message.sentence,
        began_at=moment(message.began_ms),
        ended_at=moment(message.ended_ms),
        allowed=message.allowed,
        tries=message.tries or 1,
    )


def tests(message: common_pb2.TestReport) -> types.TestReport:
    """What the reports of an attempt say."""
    return types.TestReport(
        tests=message.tests,
        failures=message.failures,
        errors=message.errors,
        skipped=message.skipped,
        duration_ms=message.duration_ms,
        failed=tuple(
            types.TestFailure(each.suite, each.name, each.message, each.duration_ms, each.error)
            for each in message.failed
        ),
        problems=tuple(message.problems),
    )


def attempt(message: run_pb2.Attempt) -> types.Attempt:
    """One attempt."""
    return types.Attempt(
        id=message.id,
        number=getattr(message, "try"),
        state=word(types.AttemptState, message.state, "state"),
        agent=message.agent,
        cause=cause(message.cause),
        sentence=message.sentence,
        leased_at=moment(message.leased_ms),
        started_at=moment(message.started_ms),
        ended_at=moment(message.ended_ms),
        steps=tuple(step(each) for each in message.steps),
        sandbox_ms=message.sandbox_ms if message.HasField("sandbox_ms") else None,
        checkout_ms=message.checkout_ms if message.HasField("checkout_ms") else None,
        steps_ms=message.steps_ms if message.HasField("steps_ms") else None,
        artifacts_ms=message.artifacts_ms if message.HasField("artifacts_ms") else None,
        log_bytes=message.log_bytes,
        tests=tests(message.tests) if message.HasField("tests") else None,
    )


def mapping(text: str) -> dict[str, Any]:
    """A JSON object of the wire; what is none (one that is newer than this client) is empty."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def job(message: run_pb2.Job) -> types.Job:
    """One job with its attempts."""
    cell = mapping(message.cell)
    shard = cell.get("shard")
    return types.Job(
        id=message.id,
        key=message.key,
        stage=message.stage,
        needs=None if message.waits_for_stages else tuple(message.needs),
        state=word(types.JobState, message.state, "state"),
        cause=cause(message.cause),
        sentence=message.sentence,
        pool=message.pool,
        queued_at=moment(message.queued_ms),
        started_at=moment(message.started_ms),
        ended_at=moment(message.ended_ms),
        attempts=tuple(attempt(each) for each in message.attempts),
        name=message.name or message.key,
        matrix=cell.get("matrix") or {},
        shard=types.Shard(shard["index"], shard["total"]) if shard else None,
        may_fail=message.may_fail,
        outputs=mapping(message.outputs),
        due_at=moment(message.due_ms),
        expanded=message.expanded,
    )


def stage(message: run_pb2.Stage) -> types.Stage:
    """One stage, and how its approval stands."""
    return types.Stage(
        index=message.index,
        name=message.name,
        environment=message.environment,
        url=message.url,
        approval=approval(message.approval) if message.HasField("approval") else None,
    )


def approval(message: run_pb2.Approval) -> types.Approval:
    """How an approval stands."""
    return types.Approval(
        state=message.state,
        sentence=message.sentence,
        count=message.count,
        decisions=tuple(types.Decision(each.person, each.approved, each.comment) for each in message.decisions),
        expires_at=moment(message.expires_ms),
    )


def run(message: run_pb2.Run) -> types.Run:
    """A run, with its jobs where the message has them."""
    return types.Run(
        id=message.id,
        project=message.project,
        pipeline=message.pipeline,
        state=word(types.RunState, message.state, "state"),
        event=message.event,
        source=source(message.source),
        parameters=dict(message.parameters),
        sentence=message.sentence,
        created_at=moment(message.created_ms),
        started_at=moment(message.started_ms),
        ended_at=moment(message.ended_ms),
        sequence=message.sequence,
        stages=tuple(stage(each) for each in message.stages),
        jobs=tuple(job(each) for each in message.jobs),
        warnings=message.warnings,
    )


def change(message: run_pb2.RunChange) -> types.RunChange:
    """One change of a watched run."""
    match message.WhichOneof("what"):
        case "snapshot":
            return types.RunChange(message.sequence, snapshot=run(message.snapshot))
        case "job":
            return types.RunChange(message.sequence, job=job(message.job))
        case "run":
            return types.RunChange(message.sequence, run=run(message.run))
        case _:  # a kind of change that is newer than this client: its number counts all the same
            return types.RunChange(message.sequence)


def artifact(message: blob_pb2.Artifact) -> types.Artifact:
    """One artifact with its files."""
    return types.Artifact(
        name=message.name,
        job=message.job,
        attempt=getattr(message, "try"),
        files=tuple(types.ArtifactFile(each.path, each.sha256, each.size, each.executable) for each in message.files),
        published_at=moment(message.published_ms),
        expires_at=moment(message.expires_ms),
        expired=message.expired,
    )


def agent(message: fleet_pb2.Agent) -> types.Agent:
    """One agent."""
    return types.Agent(
        name=message.name,
        pool=message.pool,
        presence=word(types.Presence, message.presence, "presence"),
        labels=dict(message.labels),
        slots=message.slots,
        busy=message.busy,
        version=message.version,
        seen_at=moment(message.seen_ms),
        sandboxes=tuple(
            types.Sandbox(each.kind, tuple(each.networks), each.hard_limits, each.why_not) for each in message.sandboxes
        ),
        jobs=tuple(message.jobs),
        sentence=message.sentence,
    )


def pool(message: fleet_pb2.Pool) -> types.Pool:
    """One pool."""
    return types.Pool(
        name=message.name,
        paused=message.paused,
        agents=message.agents,
        slots=message.slots,
        busy=message.busy,
        queued=message.queued,
    )
