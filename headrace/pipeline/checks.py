"""Checks beyond the shape of single values: names that meet, the graph, artifacts, the bounds of a run.

Everything here is linear in jobs plus needs; sets of jobs are bit sets, so that a dense graph stays cheap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from headrace.pipeline.artifact_checks import check_artifacts
from headrace.pipeline.bounds import MAX_ENV_BYTES, MAX_PLANNED_STEPS, env_bytes
from headrace.pipeline.cells import MAX_JOBS, TooManyCells, cells_of, copies, described, double
from headrace.pipeline.expression_checks import check_expressions
from headrace.pipeline.model import JobDef, Late, Pipeline, Placed
from headrace.pipeline.plan import Network, SandboxKind
from headrace.pipeline.problems import Report, shown


def check(pipeline: Pipeline, report: Report) -> None:
    """Note every mistake that shows only when the file is looked at as a whole."""
    jobs = pipeline.jobs
    _check_number(jobs, report)
    _twice((stage.name for stage in pipeline.stages), "stage", report)
    for stage in pipeline.stages:
        _twice((job.name for job in stage.jobs), "job", report)
    for job in jobs:
        _twice((step.id for step in job.steps if step.id), "step id", report)
    _check_images(pipeline, report)
    for job in jobs:
        _check_services(job, report)
    pipeline = _without_doubles(pipeline)
    stage_of = {job.key: i for i, stage in enumerate(pipeline.stages) for job in stage.jobs}
    usable = _check_needs(pipeline, stage_of, report)
    if (order := _in_order(usable, pipeline, report)) is not None:
        check_artifacts(pipeline, _ancestors(pipeline, usable, order), report)
    _check_env(pipeline, report)
    check_expressions(pipeline, report)


def _without_doubles(pipeline: Pipeline) -> Pipeline:
    """The first job of each name only: the graph of the others has no meaning, their doubling is noted."""
    seen: set[str] = set()
    stages = []
    for stage in pipeline.stages:
        jobs = {job.key: job for job in reversed(stage.jobs) if job.key not in seen}
        seen.update(jobs)
        stages.append(replace(stage, jobs=tuple(reversed(jobs.values()))))
    return replace(pipeline, stages=tuple(stages))


def _twice(names: Iterable[Placed[str]], what: str, report: Report) -> None:
    first: dict[str, int] = {}
    for name in names:
        if name.value and name.value in first:
            message = (
                f"the {what} {shown(name.value)} exists already, in line {first[name.value]}; give one another name"
            )
            report.add(name.place, message)
        first.setdefault(name.value, name.place.line)


def _check_images(pipeline: Pipeline, report: Report) -> None:
    """An image needs docker."""
    for job in pipeline.jobs:
        kind = job.sandbox.value if job.sandbox else SandboxKind.ANY
        image = job.image or pipeline.defaults.image
        if job.sandbox is None or image is None or kind not in {SandboxKind.BUBBLEWRAP, SandboxKind.HOST}:
            continue
        whence = "its image" if job.image else "the image of `defaults`"
        message = (
            f"`sandbox: {kind}` cannot run an image, but {shown(job.name.value)} has {whence} {_shown_image(image)}"
        )
        report.add(job.sandbox.place, f"{message}; use `sandbox: docker`, or remove the image")


def _shown_image(image: Placed[str] | Late) -> str:
    return shown(image.node.text if isinstance(image, Late) else image.value)


def _check_services(job: JobDef, report: Report) -> None:
    """Services are containers, on a network of the job."""
    if job.services and job.sandbox and job.sandbox.value is not SandboxKind.DOCKER:
        message = f"`sandbox: {job.sandbox.value}` has no services; use `sandbox: docker`, or remove the services"
        report.add(job.sandbox.place, message)
    if job.network is Network.SERVICES and not job.services:
        report.add(job.name.place, f"{shown(job.name.value)} has `network: services` and no services; write `none`")


def _check_number(jobs: Iterable[JobDef], report: Report) -> None:
    """How many jobs the file makes, cells and copies counted, as far as that is known by now."""
    total = steps = 0
    for job in jobs:
        count = max(1, job.parallel) * _check_matrix(job, report)
        before, steps = steps, steps + len(job.steps) * min(count, MAX_JOBS)
        if before <= MAX_PLANNED_STEPS < steps:
            message = f"the jobs have {steps:,} steps by here, those of every copy counted"
            report.add(job.name.place, f"{message}; a run has at most {MAX_PLANNED_STEPS:,}")
        if total <= MAX_JOBS < total + count:
            message = f"the pipeline has {total + count:,} jobs by here; a run has at most {MAX_JOBS:,}"
            report.add(job.name.place, message)
        total += count


def _check_matrix(job: JobDef, report: Report) -> int:
    """The cells of a job, 1 without a matrix; 0 where they are not known, or too many."""
    matrix = job.matrix
    if matrix is None:
        return 1
    values = {key: each for key, each in matrix.values.items() if not isinstance(each, Late)}
    all_known = len(values) == len(matrix.values)
    try:
        found = cells_of(values, matrix.include, matrix.exclude if all_known else (), most=MAX_JOBS)
    except TooManyCells as error:
        report.add(matrix.place, f"the matrix makes {error} cells; a run has at most {MAX_JOBS:,} jobs")
        return 0
    if not all_known:
        # What its lists will make of it is looked at when they are known; what is double by now, stays so.
        made = (cells_of(values, most=MAX_JOBS).cells, cells_of({}, matrix.include, most=MAX_JOBS).cells)
        if (twice := double(made[0]) or double(made[1])) is not None:
            report.add(matrix.place, f"the cell {described(twice)} stands there twice; remove one")
        return max(1, len(found.cells))
    if not found.cells and values and all(values.values()):
        report.add(matrix.place, "the matrix is empty once `exclude` has taken its cells; leave one, or remove the job")
    if (twice := double(found.cells)) is not None:
        report.add(matrix.place, f"the cell {described(twice)} stands there twice; remove one")
    return len(found.cells)


def _check_needs(pipeline: Pipeline, stage_of: dict[str, int], report: Report) -> dict[str, list[Placed[str]]]:
    """The needs that can be followed, by job; the others are noted."""
    known = list(stage_of)
    count = Counter(job.name.value for job in pipeline.jobs)
    many = {name: number for name, number in count.items() if number > 1}
    usable: dict[str, list[Placed[str]]] = {}
    for i, stage in enumerate(pipeline.stages):
        for job in stage.jobs:
            good = usable.setdefault(job.key, [])
            seen: set[str] = set()
            for need in job.needs or ():
                name = need.value
                if name in seen:
                    report.add(
                        need.place, f"{shown(name)} stands twice among the needs of `{job.name.value}`; remove one"
                    )
                elif name == job.key:
                    report.add(need.place, f"the job {shown(name)} needs itself; remove it from its needs")
                elif name not in stage_of:
                    if name in many:
                        message = f"stages have jobs {shown(name)} each, and a need cannot tell them apart"
                        report.add(need.place, f"{many[name]} {message}; give them names of their own")
                    elif not report.hidden:
                        suggestion = report.suggestion(name, known)
                        message = (
                            f"the job {shown(job.name.value)} needs {shown(name)}, which does not exist{suggestion}"
                        )
                        report.add(need.place, message)
                elif stage_of[name] > i:
                    later = pipeline.stages[stage_of[name]].name.value
                    message = f"{shown(name)} is of the later stage `{later}`; a need must be of this or an earlier one"
                    report.add(need.place, message)
                else:
                    good.append(need)
                seen.add(name)
    return usable


def _in_order(needs: dict[str, list[Placed[str]]], pipeline: Pipeline, report: Report) -> list[str] | None:
    """The jobs, each after its needs. None with each cycle noted, at the need that closes it."""
    found = False
    done: dict[str, None] = {}
    for job in pipeline.jobs:
        if job.key in done:
            continue
        # The jobs from the first to the present one, each with the needs still to be followed.
        path: dict[str, Iterator[Placed[str]]] = {job.key: iter(needs[job.key])}
        while path:
            name = next(reversed(path))
            need = next(path[name], None)
            if need is None:
                del path[name]
                done[name] = None
            elif need.value in path:
                names = list(path)
                circle = [*names[names.index(need.value) :], need.value]
                text = " → ".join(circle if len(circle) <= 12 else [*circle[:6], "…", *circle[-5:]])
                report.add(need.place, f"the jobs wait for each other for ever: {text}; remove one of these needs")
                found = True
            elif need.value not in done:
                path[need.value] = iter(needs[need.value])
    return None if found else list(done)


def _ancestors(pipeline: Pipeline, needs: dict[str, list[Placed[str]]], order: list[str]) -> dict[str, int]:
    """By job, the bit set of all jobs that end before it starts; bit i is job i of the file."""
    number: dict[str, int] = {}
    found: dict[str, int] = {}
    for stage in pipeline.stages:
        earlier = (1 << len(number)) - 1
        for job in stage.jobs:
            number[job.key] = len(number)
            found[job.key] = earlier if job.needs is None else 0
    for name in order:
        for need in needs[name]:
            found[name] |= found[need.value] | 1 << number[need.value]
    return found


def _check_env(pipeline: Pipeline, report: Report) -> None:
    """The plan repeats each job's whole environment: what a small file may blow up is bounded."""
    total, of_pipeline = 0, env_bytes(pipeline.env)
    for stage in pipeline.stages:
        of_stage = env_bytes(stage.env)
        for job in stage.jobs:
            total += (of_pipeline + of_stage + env_bytes(job.env)) * copies(job)
            if total > MAX_ENV_BYTES:
                message = f"the environments of all jobs together hold more than {MAX_ENV_BYTES >> 20} MiB"
                report.add(job.name.place, f"{message}; hand long values over as files")
                return
