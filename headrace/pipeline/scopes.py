"""What an expression may see, by the place where it stands: names with their types, and functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headrace.pipeline.expressions import STATUS, Checker
from headrace.pipeline.known import Keys, Known, Scope, Type
from headrace.pipeline.model import JobDef, Late, Pipeline, Sees, StageDef, StepDef
from headrace.pipeline.model import Scalar as Value
from headrace.pipeline.plan import ParameterType
from headrace.pipeline.values import Expression, Template

_STATIC_NAMES = ("event", "branch", "tag", "commit", "params", "env", "matrix", "shard")
STATIC = frozenset(_STATIC_NAMES)
"""Names whose values are known when a run is created."""
NAMES: Mapping[Sees, tuple[str, ...]] = {
    Sees.EVENT: _STATIC_NAMES,
    Sees.FILE: ("params", "matrix", "shard"),
    Sees.CELL: ("matrix", "shard"),
    Sees.JOB: (*_STATIC_NAMES, "needs", "run"),
    Sees.JOB_IF: (*_STATIC_NAMES, "needs", "run"),
    Sees.MATRIX: ("event", "branch", "tag", "commit", "params", "env", "needs", "run"),
    Sees.STAGE_IF: ("event", "branch", "tag", "commit", "params", "env", "outputs"),
    Sees.STEP: (*_STATIC_NAMES, "needs", "run", "steps"),
    Sees.STEP_IF: (*_STATIC_NAMES, "needs", "run", "steps"),
    Sees.APPROVAL: ("commit", "params", "outputs"),
}
"""The names that are seen, by the place."""
WITH_STATUS = frozenset({Sees.JOB_IF, Sees.STAGE_IF, Sees.STEP_IF})
"""Where the four functions of an `if` are known."""
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
    "needs": "`needs` is known in a job, once what it needs has run; a stage sees `outputs.JOB.NAME`",
    "outputs": "`outputs` is for stages and approvals: in a job, add the other one to `needs` and write "
    "`needs.JOB.outputs.NAME`",
    "run": "`run` is known when the job begins: in `env`, in an `if` and in the job's `outputs`",
    "matrix": "`matrix` is known in a job that has a `matrix`",
    "shard": "`shard` is known in a job that has `parallel`",
    "event": "`event` may not stand here: who makes the event must not choose this",
    "branch": "`branch` may not stand here: who names the branch must not choose this",
    "tag": "`tag` may not stand here: who names the tag must not choose this",
    "commit": "`commit` may not stand here",
    "env": "`env` is not known here: a variable sees those of outer levels alone, and a pool or an approval none",
    **dict.fromkeys(STATUS, _STATUS_ELSEWHERE),
}
_OF_MATRIX = {
    **_ELSEWHERE,
    "matrix": "`matrix` is what comes of this: its values may look at `needs`, `params` and the event",
    "shard": "`shard` is not known here: the values of a matrix are the same for all its cells",
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
    """The scopes of one pipeline. What many places see is put together once for all of them.

    A variable's value sees the variables of outer levels alone: `inner` is a scope without those of its own level.
    """

    def __init__(self, pipeline: Pipeline, checker: Checker) -> None:
        declared = pipeline.triggers.parameters if pipeline.triggers else ()
        self._needs = {job.key: _need(job) for job in pipeline.jobs}
        self._checker = checker
        self._outer: dict[str, Known] = {
            "event": _EVENT,
            "branch": Type.TEXT,
            "tag": Type.TEXT,
            "commit": Type.TEXT,
            "run": _RUN,
            "params": Keys({each.name: _PARAMETERS[each.type] for each in declared}),
            "outputs": _outputs({}),
        }
        self._known = {**self._outer, "env": _env(checker, Keys({}), pipeline.env)}
        self._earlier: dict[str, Keys] = {}

    def of_pipeline(self, sees: Sees, *, inner: bool) -> Scope:
        """What stands in the pipeline itself."""
        return _scope(sees, self._outer if inner else self._known)

    def of_stage(self, stage: StageDef) -> StageScopes:
        """The scopes of a stage; stages come in the order of the file, for each sees those that were asked for."""
        outer = {**self._known, "outputs": _outputs(self._earlier)}
        known = {**outer, "env": _env(self._checker, self._known["env"], stage.env)}
        self._earlier |= {job.key: outputs_of(job) for job in stage.jobs if not has_cells(job)}
        return StageScopes(outer, known, self._needs, self._checker)


@dataclass(frozen=True, slots=True)
class StageScopes:
    """The scopes of one stage."""

    outer: Mapping[str, Known]
    known: Mapping[str, Known]
    needs: Mapping[str, Keys]
    checker: Checker

    def scope(self, sees: Sees, *, inner: bool) -> Scope:
        """What stands in the stage itself."""
        return _scope(sees, self.outer if inner else self.known)

    def of_job(self, job: JobDef) -> JobScopes:
        """The scopes of one of its jobs."""
        needs = {each.value: self.needs[each.value] for each in job.needs or () if each.value in self.needs}
        outer = {
            **self.known,
            "needs": Keys(needs, of=f": `{job.name.value}` needs no such job; add it to its `needs`"),
        }
        if job.matrix:
            outer["matrix"] = _matrix(job)
        if job.parallel:
            outer["shard"] = _SHARD
        inside = {**outer, "env": _env(self.checker, outer["env"], job.env)}
        return JobScopes(outer, inside, _written(job, outer["matrix"]) if job.matrix else None)


@dataclass(frozen=True, slots=True)
class JobScopes:
    """The scopes of one job."""

    outer: Mapping[str, Known]
    known: Mapping[str, Known]
    written: Keys | None = None
    """The matrix without the keys whose values come from expressions."""

    def scope(self, sees: Sees, before: Iterable[StepDef] = (), *, inner: bool = False) -> Scope:
        """What stands in the job; `before`: the steps that have run by then."""
        inner = inner or sees is Sees.MATRIX
        if sees is Sees.FILE and self.written is not None:
            return _scope(sees, {**self.known, "matrix": self.written})
        if inner or "steps" not in NAMES[sees]:
            return _scope(sees, self.outer if inner else self.known)
        step = Keys({"outcome": Type.TEXT, "outputs": Keys({}, open=True)})
        ids = {each.id.value: step for each in before if each.id}
        return _scope(sees, {**self.known, "steps": Keys(ids, of=": no earlier step has that `id`")})


def _scope(sees: Sees, known: Mapping[str, Known]) -> Scope:
    functions = {"json"}
    if sees in WITH_STATUS:
        functions |= STATUS
    if sees in {Sees.STEP, Sees.STEP_IF}:
        functions.add("hash")
    elsewhere = _OF_MATRIX if sees is Sees.MATRIX else _ELSEWHERE
    return Scope({name: known[name] for name in NAMES[sees] if name in known}, frozenset(functions), elsewhere)


def _env(checker: Checker, outer: Known, env: Mapping[str, str | Late]) -> Known:
    """The variables whose values are known when a run is created, those of outer levels included."""
    if not env:
        return outer
    assert isinstance(outer, Keys)
    names = dict(outer.names)
    for name, value in env.items():
        names.pop(name, None)
        if not isinstance(value, Late) or all(_is_early(each, checker) for each in value.template.expressions):
            names[name] = Type.TEXT
    return Keys(names, of=" whose value is known when the run is created")


def _is_early(expression: Expression, checker: Checker) -> bool:
    found = checker.uses_of(expression.text)
    return found is None or (not found.calls - {"json"} and all(use.path[0] in STATIC for use in found.uses))


def _outputs(earlier: Mapping[str, Known]) -> Keys:
    return Keys(dict(earlier), of=": no job of an earlier stage")


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


def _written(job: JobDef, matrix: Known) -> Keys:
    assert isinstance(matrix, Keys)
    late = late_keys(job)
    names = {key: each for key, each in matrix.names.items() if key not in late}
    hint = " that may choose this: its values come from an expression" if late else ""
    return Keys(names, of=hint)


def late_keys(job: JobDef) -> frozenset[str]:
    """Keys of its matrix whose values come from expressions."""
    values = job.matrix.values if job.matrix else {}
    return frozenset(key for key, each in values.items() if isinstance(each, Late))


def _need(job: JobDef) -> Keys:
    if has_cells(job):
        hint = f": `{job.name.value}` becomes several jobs, see its `cells`"
        return Keys({"outcome": Type.TEXT, "cells": Type.LIST}, of=hint)
    return Keys({"outcome": Type.TEXT, "outputs": outputs_of(job)})
