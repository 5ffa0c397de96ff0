"""A run and its jobs from their plan: the rows of the store, and what agents will need, serialised once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordinator.core.door_rules import rules_to_json
from coordinator.core.matching import Requirement
from coordinator.core.rules import Rules, survives
from coordinator.core.stages import Group
from coordinator.errors import BadInput, Violation
from coordinator.store.new_rows import NewJob, NewRun, NewStage
from headrace.pipeline import Event
from headrace.pipeline.fragments import Origin
from headrace.pipeline.late import late_expressions, roots_of
from headrace.pipeline.plan import Plan, PlannedJob, PlannedStage, Retry, RunStep, SandboxKind, Step
from headrace.pipeline.values import Expression, Template, Text, as_text
from headrace.v1 import common_pb2 as common
from headrace.v1 import run_pb2 as wire

INDEXED_MOST = 1_024
"""Bytes of what stands in an index of the database, whose entries have at most a third of a page."""


def project_name(repository: str) -> str:
    """What people call a project: the last part of its path or URL."""
    return repository.rstrip("/").removesuffix(".git").rsplit("/", 1)[-1].rsplit(":", 1)[-1] or repository


@dataclass(frozen=True, slots=True)
class Planned:
    """A run's plan, and what its jobs are told of the run. `trusted`: what the run is, and so all that it has."""

    request: wire.CreateRunRequest
    plan: Plan
    run_id: int
    run_url: str
    trusted: bool

    @property
    def guarded(self) -> frozenset[int]:
        """The stages that have a door."""
        stages = enumerate(self.plan.stages)
        return frozenset(index for index, stage in stages if _is_guarded(self.plan, index, stage))


def origin_of(request: wire.CreateRunRequest) -> Origin:
    """What a run is planned from. Raises BadInput for a sandbox that there is not."""
    source = request.source
    event = Event(
        type=request.event or "manual",
        branch=source.branch,
        tag=source.tag,
        commit=source.commit,
        params=dict(request.parameters),
    )
    try:
        sandbox = SandboxKind(request.sandbox) if request.sandbox else None
    except ValueError as error:
        kinds = ", ".join(kind for kind in SandboxKind)
        raise BadInput(f"there is no sandbox `{request.sandbox}`: there are {kinds}") from error
    file = request.pipeline_file or "headrace.yml"
    return Origin(request.pipeline_text, file, event, request.included.get, request.only_job, sandbox)


def new_run(request: wire.CreateRunRequest, plan: Plan, run_id: int, job_ids: Sequence[int], run_url: str) -> NewRun:
    """The rows of a run from its plan. Raises BadInput for what is planned and cannot be carried out yet."""
    planned = Planned(request, plan, run_id, run_url, trusted=True)
    context = {name: each for name, each in (plan.jobs[0].context if plan.jobs else {}).items() if name != "matrix"}
    return NewRun(
        id=run_id,
        repository=request.source.repository,
        project=project_name(request.source.repository),
        pipeline=plan.name,
        pipeline_file=request.pipeline_file,
        pipeline_text=request.pipeline_text,
        asked=_asked(request),
        source=request.source.SerializeToString(),
        commit=request.source.commit,
        event=request.event or "manual",
        trusted=planned.trusted,
        parameters={name: as_text(value) for name, value in plan.parameters.items() if value is not None},
        priority=plan.priority,
        stages=new_stages(planned),
        jobs=new_jobs(planned, plan.jobs, job_ids, depth=0),
        bundle=bytes.fromhex(request.source.bundle_sha256) or None,
        concurrency=plan.concurrency,
        groups=new_groups(plan, plan.jobs),
        context=json.dumps(context),
    )


def _asked(request: wire.CreateRunRequest) -> bytes:
    kept = wire.CreateRunRequest()
    kept.CopyFrom(request)
    kept.ClearField("pipeline_text")
    return kept.SerializeToString(deterministic=True)


def new_stages(planned: Planned) -> tuple[NewStage, ...]:
    """The rows of all stages."""
    guarded = planned.guarded
    return tuple(_stage(stage, is_guarded=index in guarded) for index, stage in enumerate(planned.plan.stages))


def new_groups(plan: Plan, jobs: Sequence[PlannedJob]) -> tuple[Group, ...]:
    """The groups of cells of some of the plan's jobs."""
    names = {job.name for job in jobs}
    return tuple(Group(each.name, each.max_parallel, each.fail_fast) for each in plan.groups if each.name in names)


def new_jobs(planned: Planned, jobs: Sequence[PlannedJob], job_ids: Sequence[int], *, depth: int) -> tuple[NewJob, ...]:
    """The rows of some of the plan's jobs. Raises BadInput for what is planned and cannot be carried out yet."""
    plan, about = planned.plan, {"id": planned.run_id, "url": planned.run_url}
    _check_jobs(jobs)
    guarded = planned.guarded
    groups = {group.name for group in plan.groups}
    found = []
    for job_id, job in zip(job_ids, jobs, strict=True):
        late = list(late_expressions(job))
        spec = common.JobSpec()
        if not job.expands:  # what stands for others is given to no agent
            spec = _spec(planned, job)
            spec.run_id, spec.job_id, spec.run_url = planned.run_id, job_id, planned.run_url
        if late:
            spec.context = json.dumps({**job.context, "run": about}).encode()
        found.append(
            NewJob(
                id=job_id,
                key=job.key,
                stage=job.stage,
                needs=job.needs,
                spec=spec.SerializeToString(),
                requirement=_requirement(job, trusted=planned.trusted),
                environment=job.environment,
                name=job.name,
                cell=_cell(job),
                rules=_rules(job, plan, is_guarded=job.stage in guarded, is_grouped=job.name in groups),
                context=json.dumps({**job.context, "run": about, "env": _known(job.env)}) if job.condition else "",
                wants_needs="needs" in roots_of(late),
                depth=depth,
            )
        )
    return tuple(found)


def _check_jobs(jobs: Sequence[PlannedJob]) -> None:
    for job in jobs:
        if job.secrets and not job.skip:
            sentence = f"`{job.key}` names the secret `{job.secrets[0]}`, and this coordinator keeps no secrets yet"
            raise BadInput(sentence, (Violation("secrets", sentence),))
        # Labels are looked up by an index.
        if sum(len(name.encode()) + len(value.encode()) for name, value in job.requires.items()) > INDEXED_MOST:
            raise BadInput(f"the labels that `{job.key}` requires have more than {INDEXED_MOST:,} bytes in all")


def _is_guarded(plan: Plan, index: int, stage: PlannedStage) -> bool:
    """Whether its jobs wait for its door: not where none of them runs anyhow."""
    has_door = stage.condition is not None or stage.approval is not None
    return has_door and any(job.stage == index and not job.skip for job in plan.jobs)


def _stage(stage: PlannedStage, *, is_guarded: bool) -> NewStage:
    url = stage.url if isinstance(stage.url, str) else ""
    rules = rules_to_json(stage.condition, stage.approval, stage.env) if is_guarded else ""
    return NewStage(stage.name, stage.environment, rules, url)


def _rules(job: PlannedJob, plan: Plan, *, is_guarded: bool, is_grouped: bool) -> Rules:
    return Rules(
        condition=job.condition,
        skip=job.skip,
        allow_failure=job.allow_failure,
        retry=job.retry,
        group=job.name if is_grouped else "",
        concurrency=job.concurrency,
        guarded=is_guarded,
        by_needs=is_guarded and job.needs is not None and not job.waits_for_stages,
        expands=bool(job.expands),
        expander=job.name if job.late_cell else "",
        by_stages=job.waits_for_stages,
        stage_survives=is_guarded and survives(plan.stages[job.stage].condition),
    )


def _cell(job: PlannedJob) -> str:
    if not job.matrix and job.shard is None:
        return ""
    shard = {"index": job.shard.index, "total": job.shard.total} if job.shard else None
    return json.dumps({"matrix": dict(job.matrix), "shard": shard})


def _known(env: Mapping[str, Text]) -> dict[str, str]:
    return {name: value for name, value in env.items() if isinstance(value, str)}


def _late(env: Mapping[str, Text]) -> dict[str, common.Template]:
    return {name: _template(value) for name, value in env.items() if isinstance(value, Template)}


def _template(text: Text) -> common.Template:
    made = common.Template()
    for each in text.parts if isinstance(text, Template) else (text,):
        if isinstance(each, str):
            made.parts.add(text=each)
        else:
            made.parts.add(expression=_expression(each))
    return made


def _expression(expression: Expression) -> common.Expression:
    return common.Expression(text=expression.text, place=expression.place)


def _requirement(job: PlannedJob, *, trusted: bool) -> Requirement:
    # A job with an image needs docker; the loader has refused any other sandbox beside one.
    sandbox = SandboxKind.DOCKER if job.image or job.services else job.sandbox
    asks = job.resources
    return Requirement(
        job.pool or "default",
        tuple(sorted(job.requires.items())),
        sandbox,
        job.network,
        trusted=trusted,
        cpu=asks.cpu,
        memory=asks.memory,
        hard_limits=bool(asks.cpu or asks.memory or asks.pids),
    )


def _spec(planned: Planned, job: PlannedJob) -> common.JobSpec:
    request, plan = planned.request, planned.plan
    return common.JobSpec(
        project=project_name(request.source.repository),
        pipeline=plan.name,
        stage=plan.stages[job.stage].name,
        job=job.key,
        event=request.event or "manual",
        source=request.source,
        steps=[_step(step) for step in job.steps],
        env=_known(job.env),
        image=job.image if isinstance(job.image, str) else "",
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
        trusted=planned.trusted,
        late_env=_late(job.env),
        late_image=_template(job.image) if isinstance(job.image, Template) else None,
        outputs={name: _template(value) for name, value in job.outputs.items()},
        junit=job.junit,
        resources=common.Resources(
            cpu=job.resources.cpu, memory=job.resources.memory, disk=job.resources.disk, pids=job.resources.pids
        ),
        services=_services(job),
        caches=[
            common.CacheSpec(
                key=_template(each.key), restore=map(_template, each.restore), paths=each.paths, save=each.save
            )
            for each in job.caches
        ],
        given_env=_given(job, plan),
        log_patterns=[rule.pattern for rule in job.retry.on if rule.pattern] if job.retry else [],
    )


def _services(job: PlannedJob) -> list[common.Service]:
    found = []
    for each in job.services:
        if late := [name for name, value in each.env.items() if not isinstance(value, str)]:
            sentence = (
                f"`{job.key}`: the variable `{late[0]}` of the service `{each.name}` may not depend on other jobs"
            )
            raise BadInput(sentence, (Violation("services", sentence),))
        found.append(
            common.Service(
                name=each.name, image=each.image, env=_known(each.env), ready=each.ready, timeout_ms=each.timeout_ms
            )
        )
    return found


def _given(job: PlannedJob, plan: Plan) -> dict[str, str]:
    """Variables that Headrace sets: the cell, the shard, parameters."""
    found = {f"MATRIX_{_upper(name)}": as_text(value) for name, value in job.matrix.items() if value is not None}
    found |= {f"PARAM_{_upper(name)}": as_text(value) for name, value in plan.parameters.items() if value is not None}
    if job.shard is not None:
        found |= {"HEADRACE_SHARD": str(job.shard.index), "HEADRACE_SHARDS": str(job.shard.total)}
    return found


def _upper(name: str) -> str:
    return name.upper().replace("-", "_")


def _step(step: Step) -> common.Step:
    made = common.Step(
        number=step.number,
        id=step.id,
        name=step.name,
        timeout_ms=step.timeout_ms,
        condition=_expression(step.condition) if step.condition else None,
        allow_failure=step.allow_failure,
        retry=_retry(step.retry),
    )
    if isinstance(step, RunStep):
        run = common.RunStep(
            script=step.script, shell=step.shell, workdir=step.workdir, env=_known(step.env), late_env=_late(step.env)
        )
        made.run.CopyFrom(run)
    else:
        made.use_artifact.CopyFrom(common.UseArtifactStep(artifact=step.artifact, path=step.path))
    return made


def _retry(retry: Retry | None) -> common.StepRetry | None:
    if retry is None:
        return None
    return common.StepRetry(max=retry.max, delay_ms=retry.delay_ms, backoff=retry.backoff)
