"""Expanding a pipeline for one event: defaults applied, environments merged, jobs numbered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from headrace.pipeline.model import Defaults, JobDef, Pipeline, StageDef, StepDef
from headrace.pipeline.plan import (
    Plan,
    PlannedJob,
    PlannedStage,
    RunStep,
    SandboxKind,
    Step,
    UseArtifactStep,
)
from headrace.pipeline.problems import Report, shown

GRACE_MS = 10_000
MAX_TITLE = 60


@dataclass(frozen=True, slots=True)
class Event:
    """What a run is made for. `params` are the parameters of a manual run; empty texts: there is none."""

    type: str = "manual"
    branch: str = ""
    tag: str = ""
    commit: str = ""
    params: Mapping[str, str] = field(default_factory=dict)


def expand(pipeline: Pipeline, event: Event, *, only: str = "", sandbox: SandboxKind | None = None) -> Plan:
    """The plan of a pipeline for an event. The same arguments always give an equal plan.

    `only` keeps one job and all that it needs, over all its dependencies; stages that are left without jobs go, the
    others keep their order. `sandbox` stands for the sandbox of every job, whatever the file says; docker's image is
    then dropped where the sandbox takes none. Raises `PipelineError` when there is no job `only`, and when a
    parameter is given, since the language declares none yet.
    """
    report = Report(pipeline.file)
    names = [job.name.value for job in pipeline.jobs]
    first = pipeline.stages[0].name.place
    if event.params:
        listed = ", ".join(shown(each) for each in event.params)
        report.add(first, f"the pipeline declares no parameters, but {listed} was given; leave it out")
    if only and only not in names:
        report.add(first, f"the pipeline has no job {shown(only)}{report.suggestion(only, names)}")
    report.raise_if_any()
    jobs = [_job(pipeline, i, stage, job, sandbox) for i, stage in enumerate(pipeline.stages) for job in stage.jobs]
    if only:
        jobs = _with_needs(jobs, only)
    kept = sorted({job.stage for job in jobs})
    return Plan(
        name=pipeline.name,
        stages=tuple(PlannedStage(pipeline.stages[i].name.value, pipeline.stages[i].environment) for i in kept),
        jobs=tuple(replace(job, stage=kept.index(job.stage)) for job in jobs),
    )


def _with_needs(jobs: list[PlannedJob], only: str) -> list[PlannedJob]:
    by_key = {job.key: job for job in jobs}
    wanted = {only}
    todo = [by_key[only]]
    everything_before = 0  # jobs of stages below this are wanted already
    while todo:
        job = todo.pop()
        if job.needs is not None:
            found = [by_key[need] for need in job.needs]
        else:
            found = [each for each in jobs if everything_before <= each.stage < job.stage]
            everything_before = max(everything_before, job.stage)
        todo.extend(each for each in found if each.key not in wanted)
        wanted.update(each.key for each in found)
    return [job for job in jobs if job.key in wanted]


def _job(
    pipeline: Pipeline, stage_index: int, stage: StageDef, job: JobDef, override: SandboxKind | None
) -> PlannedJob:
    defaults = pipeline.defaults
    image = job.image or defaults.image
    kind = override or (job.sandbox.value if job.sandbox else SandboxKind.ANY)
    if image is not None and kind is SandboxKind.ANY:
        kind = SandboxKind.DOCKER
    takes_image = kind is SandboxKind.DOCKER
    return PlannedJob(
        key=job.name.value,
        name=job.name.value,
        stage=stage_index,
        needs=None if job.needs is None else tuple(need.value for need in job.needs),
        steps=tuple(_step(number, step, defaults) for number, step in enumerate(job.steps)),
        env={**pipeline.env, **stage.env, **job.env},
        image=image.value if image is not None and takes_image else "",
        sandbox=kind,
        network=job.network,
        pool=job.pool or defaults.pool,
        requires=dict(job.requires),
        timeout_ms=job.timeout_ms or defaults.timeout_ms,
        grace_ms=job.grace_ms or GRACE_MS,
        artifacts=tuple(each.spec for each in job.artifacts),
        checkout=job.checkout,
        environment=stage.environment,
    )


def _step(number: int, step: StepDef, defaults: Defaults) -> Step:
    ident = step.id.value if step.id else ""
    if step.artifact is not None:
        name = step.name or f"use artifact/{step.artifact.value}"
        return UseArtifactStep(number, name, step.artifact.value, ident, step.path, step.timeout_ms)
    return RunStep(
        number=number,
        name=step.name or title(step.run),
        script=step.run,
        id=ident,
        shell=step.shell or defaults.shell,
        workdir=step.workdir,
        env=dict(step.env),
        timeout_ms=step.timeout_ms,
    )


def title(script: str) -> str:
    """The first line of a script that says something, shortened to `MAX_TITLE` characters, printable."""
    lines = [line.strip() for line in script.splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith("#")), lines[0] if lines else "")
    printable = "".join(each if each.isprintable() else " " for each in first[: MAX_TITLE + 1]).strip()
    return printable if len(printable) <= MAX_TITLE else printable[: MAX_TITLE - 1] + "…"
