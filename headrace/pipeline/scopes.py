"""What an expression may see, by the place where it stands: names with their types, and functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from headrace.pipeline.expressions import STATUS, Keys, Known, Scope, Type
from headrace.pipeline.model import JobDef, Late, Pipeline, Sees, StageDef, StepDef
from headrace.pipeline.model import Scalar as Value
from headrace.pipeline.plan import ParameterType
from headrace.pipeline.values import Template

_STATIC_NAMES = ("event", "branch", "tag", "commit", "params", "env", "matrix", "shard")
STATIC = frozenset(_STATIC_NAMES)
"""Names whose values are known when a run is created."""
_NAMES: Mapping[Sees, tuple[str, ...]] = {
    Sees.EVENT: _STATIC_NAMES,
    Sees.FILE: ("params", "matrix", "shard"),
    Sees.CELL: ("matrix", "shard"),
    Sees.JOB: (*_STATIC_NAMES, "needs", "run"),
    Sees.JOB_IF: (*_STATIC_NAMES, "needs", "run"),
    Sees.STAGE_IF: ("event", "branch", "tag", "commit", "params", "env", "outputs"),
    Sees.STEP: (*_STATIC_NAMES, "needs", "run", "steps"),
    Sees.STEP_IF: (*_STATIC_NAMES, "needs", "run", "steps"),
    Sees.APPROVAL: ("event", "branch", "tag", "commit", "params", "env", "outputs"),
}
_PARAMETERS = {
    ParameterType.STRING: Type.TEXT,
    ParameterType.CHOICE: Type.TEXT,
    ParameterType.BOOL: Type.BOOL,
    ParameterType.INT: Type.INT,
    ParameterType.DOUBLE: Type.DOUBLE,
}
_EVENT = Keys({"type": Type.TEXT, "pull_request": Keys({"number": Type.INT, "head": Type.TEXT, "base": Type.TEXT})})
_RUN = Keys({"id": Type.INT, "url": Type.TEXT})
_SHARD = Keys({"index": Type.INT, "total": Type.INT})
_STATUS_ELSEWHERE = "`success()`, `failure()`, `always()` and `canceled()` are known in an `if` alone"
_IN_THE_JOB = "known while the job runs: in a step's `if` and `env`, in cache keys and in the job's `outputs`"
_ELSEWHERE = {
    "steps": f"`steps` is {_IN_THE_JOB}",
    "hash": f"`hash()` is {_IN_THE_JOB}",
    "needs": "`needs` is not known here: the place is read before the jobs of its needs have run",
    "outputs": "`outputs` is for stages and approvals: add the job to `needs`, and write `needs.JOB.outputs.NAME`",
    "run": "`run` is known when the job begins: in `env`, in an `if` and in the job's `outputs`",
    "matrix": "`matrix` belongs to a job",
    "shard": "`shard` belongs to a job",
    "event": "`event` may not stand here: who makes the event must not choose this",
    "branch": "`branch` may not stand here: who names the branch must not choose this",
    "tag": "`tag` may not stand here: who names the tag must not choose this",
    "commit": "`commit` may not stand here",
    "env": "`env` may not stand here: it is for `if`, `run:` and the like",
    **dict.fromkeys(STATUS, _STATUS_ELSEWHERE),
}


def type_of(values: Iterable[Value]) -> Type:
    """The type that all values have, or any."""
    words = {str: Type.TEXT, int: Type.INT, float: Type.DOUBLE, bool: Type.BOOL}
    found = {words.get(type(each), Type.ANY) for each in values}
    return found.pop() if len(found) == 1 else Type.ANY


def outputs_of(job: JobDef) -> Keys:
    """A job's outputs with their types: a single expression may give anything."""
    found: dict[str, Known] = {}
    for name, value in job.outputs.items():
        single = isinstance(value, Late) and _is_single(value.template)
        found[name] = Type.ANY if single else Type.TEXT
    return Keys(found, of=f": the job `{job.name.value}` sets no such output")


def _is_single(template: Template) -> bool:
    return len(template.parts) == 1 and not isinstance(template.parts[0], str)


def has_cells(job: JobDef) -> bool:
    """Whether it becomes several jobs."""
    return job.matrix is not None or job.parallel > 0


class Scopes:
    """The scopes of one pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        declared = pipeline.triggers.parameters if pipeline.triggers else ()
        self._params = Keys({each.name: _PARAMETERS[each.type] for each in declared})
        self._jobs = {job.key: job for job in pipeline.jobs}

    def scope(
        self,
        sees: Sees,
        *,
        stage: StageDef | None = None,
        job: JobDef | None = None,
        before: Iterable[StepDef] = (),
    ) -> Scope:
        """What stands in a job (or a stage, or the pipeline); `before`: the steps that have run by then."""
        known = {name: self._known(name, stage, job, before) for name in _NAMES[sees]}
        names = {name: each for name, each in known.items() if each is not None}
        functions = {"json"}
        if sees in {Sees.JOB_IF, Sees.STAGE_IF, Sees.STEP_IF}:
            functions |= STATUS
        if sees in {Sees.STEP, Sees.STEP_IF}:
            functions.add("hash")
        return Scope(names, frozenset(functions), _ELSEWHERE)

    def _known(self, name: str, stage: StageDef | None, job: JobDef | None, before: Iterable[StepDef]) -> Known | None:
        match name:
            case "event":
                return _EVENT
            case "branch" | "tag" | "commit":
                return Type.TEXT
            case "params":
                return self._params
            case "env":
                return self._env(stage, job)
            case "run":
                return _RUN
            case "outputs":
                return self._outputs(stage)
        return None if job is None else self._of_job(name, job, before)

    def _of_job(self, name: str, job: JobDef, before: Iterable[StepDef]) -> Known | None:
        match name:
            case "matrix":
                return _matrix(job) if job.matrix else None
            case "shard":
                return _SHARD if job.parallel else None
            case "needs":
                found = {
                    each.value: _need(self._jobs[each.value]) for each in job.needs or () if each.value in self._jobs
                }
                return Keys(found, of=f", which `{job.name.value}` does not need; add it to its `needs`")
            case _:
                step = Keys({"outcome": Type.TEXT, "outputs": Keys({}, open=True)})
                ids = {each.id.value: step for each in before if each.id}
                return Keys(ids, of=": no earlier step has that `id`")

    def _env(self, stage: StageDef | None, job: JobDef | None) -> Keys:
        names: dict[str, Known] = {}
        for env in (self._pipeline.env, stage.env if stage else {}, job.env if job else {}):
            names |= dict.fromkeys(env, Type.TEXT)
        return Keys(names, of=" that the pipeline, the stage or the job sets")

    def _outputs(self, stage: StageDef | None) -> Keys:
        stages = self._pipeline.stages
        at = next((i for i, each in enumerate(stages) if each is stage), len(stages))
        earlier = {job.key: outputs_of(job) for each in stages[:at] for job in each.jobs if not has_cells(job)}
        return Keys(earlier, of=": no job of an earlier stage")


def _matrix(job: JobDef) -> Keys:
    matrix = job.matrix
    assert matrix is not None
    values: dict[str, list[Value]] = {}
    unknown = set()
    for key, found in matrix.values.items():
        if isinstance(found, Late):
            unknown.add(key)
        values.setdefault(key, []).extend(() if isinstance(found, Late) else found)
    in_values = set(values)
    for cell in matrix.include:
        for key, value in cell.value.items():
            values.setdefault(key, []).append(value)
        # A cell that lacks a key has null there.
        unknown |= (in_values | set(values)) - set(cell.value)
    unknown |= set(values) - in_values if in_values else set()
    return Keys({key: Type.ANY if key in unknown else type_of(found) for key, found in values.items()})


def _need(job: JobDef) -> Keys:
    if has_cells(job):
        hint = f": `{job.name.value}` becomes several jobs, see its `cells`"
        return Keys({"outcome": Type.TEXT, "cells": Type.LIST}, of=hint)
    return Keys({"outcome": Type.TEXT, "outputs": outputs_of(job)})
