"""Checks of artifacts: each has one producer, which is done before anybody uses it."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.pipeline.expressions import uses_of
from headrace.pipeline.model import ArtifactDef, JobDef, Late, Pipeline
from headrace.pipeline.problems import Report, shown


def check_artifacts(pipeline: Pipeline, before: Mapping[str, int], report: Report) -> None:
    """Notes every mistake. `before`: by job, the bit set of all jobs that end before it starts."""
    jobs = pipeline.jobs
    number = {job.key: i for i, job in enumerate(jobs)}
    producer, is_whole = _producers(jobs, report)
    for job in jobs:
        for step in job.steps:
            if step.artifact is None or isinstance(step.artifact, Late):
                continue
            name = step.artifact.value
            if name not in producer:
                if is_whole and not report.hidden:
                    suggestion = report.suggestion(name, list(producer))
                    report.add(step.artifact.place, f"no job makes an artifact {shown(name)}{suggestion}")
                continue
            maker = producer[name].key
            if maker == job.key:
                report.add(step.artifact.place, f"the job makes the artifact {shown(name)} itself; it is there already")
            elif not before[job.key] >> number[maker] & 1:
                message = f"the job `{maker}` makes {shown(name)}, and `{job.name.value}` does not wait for it"
                report.add(step.artifact.place, f"{message}; add `{maker}` to its needs")


def _producers(jobs: tuple[JobDef, ...], report: Report) -> tuple[dict[str, JobDef], bool]:
    """Who makes which artifact; whether all names are known by now."""
    producer: dict[str, JobDef] = {}
    is_whole = True
    for job in jobs:
        keys = [("matrix", key) for key in _telling_keys(job)] if job.artifacts else []
        keys += [("shard", "index")] if job.parallel > 1 else []
        for artifact in job.artifacts:
            _check_one_each(job, artifact, keys, report)
            if isinstance(artifact.name, Late):
                is_whole = False
                continue
            name = artifact.name.value
            if name in producer:
                message = f"the artifact {shown(name)} is made by the job `{producer[name].name.value}` already"
                report.add(artifact.place, f"{message}; give one another name")
            else:
                producer[name] = job
    return producer, is_whole


def _check_one_each(job: JobDef, artifact: ArtifactDef, keys: list[tuple[str, str]], report: Report) -> None:
    """Each copy of a job keeps artifacts under a name of its own: it holds every key that tells them apart."""
    if not keys:
        return
    used: set[tuple[str, ...]] = set()
    for each in artifact.name.template.expressions if isinstance(artifact.name, Late) else ():
        found = uses_of(each.text)
        used |= {use.path[:2] for use in found.uses} if found else set(keys)
    missing = [key for key in keys if key not in used]
    if missing:
        example = "-".join([job.name.value, *(f"${{{{ {_path(key)} }}}}" for key in keys)])
        message = f"every copy of `{job.name.value}` would make this artifact: its name lacks `{_path(missing[0])}`"
        report.add(artifact.place, f"{message}; name it `{example}`, say")


def _path(key: tuple[str, str]) -> str:
    return f"{key[0]}['{key[1]}']" if "-" in key[1] else ".".join(key)


def _telling_keys(job: JobDef) -> list[str]:
    """The keys of the matrix that take more than one value over its cells."""
    if job.matrix is None:
        return []
    values: dict[str, set[str]] = {}
    for key, found in job.matrix.values.items():
        values[key] = {"", "?"} if isinstance(found, Late) else {repr(each) for each in found}
    for cell in job.matrix.include:
        for key in {*values, *cell.value}:
            values.setdefault(key, set()).add(repr(cell.value.get(key)))
    # Keys that only some included cells have tell nothing that the others do not.
    return [key for key in job.matrix.values or values if len(values[key]) > 1]
