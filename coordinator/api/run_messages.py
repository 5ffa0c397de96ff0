"""The wire of clients and the rows of the store: pure translation, both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from coordinator.api.agent_messages import cause_value
from coordinator.core.matching import Requirement
from coordinator.store.runs import NewJob, NewRun
from coordinator.store.views import Row, RunView
from headrace.pipeline.plan import Plan, PlannedJob, RunStep, SandboxKind, Step
from headrace.v1 import agent_pb2 as agents
from headrace.v1 import common_pb2 as common
from headrace.v1 import fleet_pb2 as fleet
from headrace.v1 import run_pb2 as wire


def project_name(repository: str) -> str:
    """What people call a project: the last part of its path or URL."""
    return repository.rstrip("/").removesuffix(".git").rsplit("/", 1)[-1].rsplit(":", 1)[-1] or repository


def new_run(request: wire.CreateRunRequest, plan: Plan, run_id: int, job_ids: Sequence[int], run_url: str) -> NewRun:
    """The rows of a run from its plan. What agents will need is serialised here, once."""
    project = project_name(request.source.repository)
    jobs = []
    for job_id, job in zip(job_ids, plan.jobs, strict=True):
        spec = _spec(request, plan, job, project)
        spec.run_id, spec.job_id, spec.run_url = run_id, job_id, run_url
        jobs.append(
            NewJob(
                id=job_id,
                key=job.key,
                stage=job.stage,
                needs=job.needs,
                spec=spec.SerializeToString(),
                requirement=_requirement(job),
                environment=job.environment,
            )
        )
    return NewRun(
        id=run_id,
        repository=request.source.repository,
        project=project,
        pipeline=plan.name,
        pipeline_file=request.pipeline_file,
        pipeline_text=request.pipeline_text,
        source=request.source.SerializeToString(),
        commit=request.source.commit,
        event=request.event or "manual",
        trusted=True,
        parameters=dict(request.parameters),
        priority=plan.priority,
        stages=tuple((stage.name, stage.environment) for stage in plan.stages),
        jobs=tuple(jobs),
        bundle=bytes.fromhex(request.source.bundle_sha256) or None,
    )


def _requirement(job: PlannedJob) -> Requirement:
    # A job with an image needs docker; the loader has refused any other sandbox beside one.
    sandbox = SandboxKind.DOCKER if job.image else job.sandbox
    return Requirement(job.pool, tuple(sorted(job.requires.items())), sandbox, job.network, trusted=True)


def _spec(request: wire.CreateRunRequest, plan: Plan, job: PlannedJob, project: str) -> common.JobSpec:
    return common.JobSpec(
        project=project,
        pipeline=plan.name,
        stage=plan.stages[job.stage].name,
        job=job.key,
        event=request.event or "manual",
        source=request.source,
        steps=[_step(step) for step in job.steps],
        env=dict(job.env),
        image=job.image,
        sandbox=job.sandbox,
        network=job.network,
        timeout_ms=job.timeout_ms,
        grace_ms=job.grace_ms,
        artifacts=[
            common.ArtifactSpec(
                name=each.name, paths=each.paths, keep_ms=each.keep_ms, when=each.when, if_empty=each.if_empty
            )
            for each in job.artifacts
        ],
        checkout=common.Checkout(
            enabled=job.checkout.enabled,
            depth=job.checkout.depth,
            submodules=job.checkout.submodules,
            lfs=job.checkout.lfs,
        ),
        environment=job.environment,
        trusted=True,
    )


def _step(step: Step) -> common.Step:
    if isinstance(step, RunStep):
        return common.Step(
            number=step.number,
            id=step.id,
            name=step.name,
            timeout_ms=step.timeout_ms,
            run=common.RunStep(script=step.script, shell=step.shell, workdir=step.workdir, env=dict(step.env)),
        )
    return common.Step(
        number=step.number,
        id=step.id,
        name=step.name,
        timeout_ms=step.timeout_ms,
        use_artifact=common.UseArtifactStep(artifact=step.artifact, path=step.path),
    )


def run_message(view: RunView) -> wire.Run:
    """A run as it is shown, with the jobs that are in the view, in the order of the file."""
    row = view.run
    source = common.Source.FromString(row["source"])
    jobs = sorted(view.jobs, key=lambda each: each["place"])
    attempts = view.attempts or {}
    return wire.Run(
        id=row["id"],
        project=row["project"],
        pipeline=row["pipeline"],
        source=source,
        event=row["event"],
        state=common.RunState.Value(f"RUN_STATE_{row['state'].upper()}"),
        created_ms=_ms(row["created_at"]),
        started_ms=_ms(row["started_at"]),
        ended_ms=_ms(row["ended_at"]),
        sequence=row["sequence"],
        sentence=row["sentence"],
        parameters=row["parameters"],
        stages=[
            wire.Stage(index=each["index"], name=each["name"], environment=each["environment"]) for each in view.stages
        ],
        jobs=[job_message(job, attempts.get(job["id"], ())) for job in jobs],
    )


def job_message(row: Row, attempts: Sequence[Row]) -> wire.Job:
    """A job as it is shown."""
    return wire.Job(
        id=row["id"],
        key=row["key"],
        stage=row["stage"],
        needs=row["needs"] or (),
        state=common.JobState.Value(f"JOB_STATE_{row['state'].upper()}"),
        cause=cause_value(row["cause"]),
        sentence=row["sentence"],
        queued_ms=_ms(row["queued_at"]),
        started_ms=_ms(row["started_at"]),
        ended_ms=_ms(row["ended_at"]),
        pool=row["pool"],
        attempts=[_attempt_message(each) for each in attempts],
    )


def _attempt_message(row: Row) -> wire.Attempt:
    told = agents.Ended.FromString(row["steps"])
    fields: dict[str, Any] = {"try": row["try"]}
    return wire.Attempt(
        id=row["id"],
        state=common.AttemptState.Value(f"ATTEMPT_STATE_{row['state'].upper()}"),
        agent=row["agent"],
        cause=cause_value(row["cause"]),
        sentence=row["sentence"],
        leased_ms=_ms(row["leased_at"]),
        started_ms=_ms(row["started_at"]),
        ended_ms=_ms(row["ended_at"]),
        steps=told.steps,
        sandbox_ms=told.timings.sandbox_ms,
        checkout_ms=told.timings.checkout_ms,
        steps_ms=told.timings.steps_ms,
        artifacts_ms=told.timings.artifacts_ms,
        log_bytes=row["log_bytes"],
        **fields,
    )


def agent_message(row: Row) -> fleet.Agent:
    """An agent as it is shown."""
    draining = row["drained"] or row["leaving"]
    presence = fleet.AGENT_PRESENCE_DRAINING if draining else fleet.AGENT_PRESENCE_CONNECTED
    return fleet.Agent(
        name=row["name"],
        pool=row["pool"],
        labels=row["labels"],
        slots=row["slots"],
        busy=len(row["jobs"]),
        version=row["version"],
        presence=presence if row["connected"] else fleet.AGENT_PRESENCE_GONE,
        seen_ms=_ms(row["seen_at"]),
        sandboxes=[
            agents.SandboxAbility(
                kind=each["kind"],
                networks=each["networks"],
                hard_limits=each["hard_limits"],
                why_not=each["why_not"],
            )
            for each in row["sandboxes"]
        ],
        jobs=row["jobs"],
    )


def pool_message(row: Mapping[str, Any]) -> fleet.Pool:
    """A pool as it is shown."""
    return fleet.Pool(
        name=row["name"],
        paused=row["paused"],
        agents=row["agents"],
        slots=row["slots"],
        busy=row["busy"],
        queued=row["queued"],
    )


def _ms(when: datetime | None) -> int:
    """Milliseconds since the epoch; 0 for never."""
    return int(when.timestamp() * 1000) if when is not None else 0
