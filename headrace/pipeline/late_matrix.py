"""A matrix whose values come from expressions: what they come to, and the job that stands for cells not known yet.

That job, the *expander*, is planned once, with what the job waits for. It never runs: when its turn has come, the
lists are evaluated, the run is planned anew with them, and its cells are added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from headrace.pipeline.cells import Cells, TooManyCells, cells_of, described, double, label
from headrace.pipeline.event import Event, parameters_of, static_values
from headrace.pipeline.expressions import STATUS
from headrace.pipeline.matrix_form import MatrixValues
from headrace.pipeline.model import JobDef, Late, Pipeline
from headrace.pipeline.model import Scalar as Value
from headrace.pipeline.plan import PlannedJob
from headrace.pipeline.planning import Resolver, place_of, plan_stage
from headrace.pipeline.problems import Report
from headrace.pipeline.values import EvaluationFailed, Expression, Template, Text, value_of

Lists = Mapping[str, Mapping[str, Sequence[Value]]]
"""By key of a job, the values of its matrix that were known only while the run went on: by key of the matrix."""
_CELL = frozenset({"matrix", "shard"})


def late_values(job: JobDef) -> dict[str, Late]:
    """The keys of its matrix whose values come from expressions."""
    values = job.matrix.values if job.matrix else {}
    return {key: each for key, each in values.items() if isinstance(each, Late)}


def values_by_now(job: JobDef, resolver: Resolver, lists: Lists) -> dict[str, Sequence[Value]] | None:
    """The values of all keys of its matrix; None: not all are known yet. `resolver`: with the variables outside."""
    assert job.matrix is not None
    told = lists.get(job.key, {})
    found: dict[str, Sequence[Value]] = {}
    for key, each in job.matrix.values.items():
        if not isinstance(each, Late):
            found[key] = each
        elif resolver.is_static(each.template):
            found[key] = _evaluated(each, resolver)
        elif key in told:
            found[key] = told[key]
        else:
            return None
    return found


def cells_by_now(job: JobDef, values: Mapping[str, Sequence[Value]], report: Report, *, most: int) -> Cells:
    """Its cells; none, with the mistake noted, where there are too many or one stands there twice."""
    matrix = job.matrix
    assert matrix is not None
    try:
        found = cells_of(values, matrix.include, matrix.exclude, most=most)
    except TooManyCells as error:
        report.add(matrix.place, f"the matrix makes {error} cells; a run has at most {most:,} jobs")
        return Cells(())
    if late_values(job) and (twice := double(found.cells)) is not None:
        report.add(matrix.place, f"the cell {described(twice)} stands there twice; each is made once")
        return Cells(())
    if late_values(job) and not all(map(label, found.cells)):
        report.add(matrix.place, "a cell has null for every key of its matrix; give each a value to be called by")
        return Cells(())
    return found


def why_empty(job: JobDef, values: Mapping[str, Sequence[Value]]) -> str:
    """Why a matrix has no cell: the expression that gave an empty list. `values`: of keys from expressions at least."""
    for key, late in late_values(job).items():
        if not values[key]:
            return f"its matrix is empty: `{template_text(late.template)}` gives no value for `{key}`"
    return "its matrix is empty once `exclude` has taken its cells"


def plan_expander(
    pipeline: Pipeline, job: JobDef, resolver: Resolver, env: Mapping[str, Text], *, stage_index: int, skip: str = ""
) -> PlannedJob:
    """The job that stands for the cells. `resolver` and `env`: with the variables outside; `skip`: why it has none."""
    early = {name: each for name, each in job.env.items() if not _by_cell(each, resolver)}
    known = {**env, **resolver.with_env(env).env(early)}
    resolver = resolver.with_env(known)
    condition, because = _condition(job, resolver)
    allowed = job.allow_failure
    pool = job.pool or pipeline.defaults.pool
    found = None if isinstance(pool, Late) and _by_cell(pool, resolver) else resolver.value(pool, None)
    return PlannedJob(
        key=job.key,
        name=job.key,
        stage=stage_index,
        needs=None if job.needs is None else tuple(need.value for need in job.needs),
        steps=(),
        env={name: each for name, each in known.items() if isinstance(each, str)},
        # Empty where each cell has its own.
        pool=found.value if found else "" if pool else "default",
        condition=condition,
        skip=skip or because,
        allow_failure=False if isinstance(allowed, Late) and _by_cell(allowed, resolver) else resolver.value(
            allowed, default=False
        ),
        secrets=tuple(each.value for each in job.secrets),
        context={name: each for name, each in resolver.values.items() if name != "env"},
        expands={key: each.template for key, each in late_values(job).items()},
    )  # fmt: skip


def _condition(job: JobDef, resolver: Resolver) -> tuple[Expression | None, str]:
    """Whether there are to be cells: the job's `if` where that looks at no cell. One that does is each cell's own; it
    may want to run whatever its dependencies did, and whether it does is known only then."""
    if job.condition is None:
        return None, ""
    expression = job.condition.expression
    found = resolver.checker.uses_of(expression.text)
    assert found is not None  # the loader has checked it
    variables = [use.path[1:2] for use in found.uses if use.path[0] == "env"]
    of_cells = {name for name, each in job.env.items() if _by_cell(each, resolver)}
    by_cell = any(use.path[0] in _CELL for use in found.uses)
    if not by_cell and not any(not name or name[0] in of_cells for name in variables):
        return resolver.decided(job.condition, f"`{job.name.value}`")
    called = found.calls & STATUS
    if not called:
        return None, ""
    text = "always()" if called & {"always", "canceled"} else "!canceled()"
    return Expression(text, expression.place), ""


def _by_cell(value: object, resolver: Resolver) -> bool:
    """Whether a value hangs on the cell."""
    if not isinstance(value, Late):
        return False
    found = [resolver.checker.uses_of(each.text) for each in value.template.expressions]
    return any(use.path[0] in _CELL for each in found if each for use in each.uses)


def as_cell(made: PlannedJob, needs: tuple[str, ...] | None) -> PlannedJob:
    """A cell of an expander: it depends on that, and on what the job needs; the stages before it are the expander's
    to wait for."""
    return replace(made, needs=(made.name, *(needs or ())), late_cell=True, waits_for_stages=needs is None)


def lists_of(
    pipeline: Pipeline, event: Event, key: str, known: Mapping[str, Any], report: Report
) -> dict[str, tuple[Value, ...]]:
    """What the expressions of a job's matrix give. `known`: what has become known besides, `needs` and `run`.

    Those that could be evaluated when the run was planned are among them. Notes every mistake.
    """
    params = parameters_of(pipeline, event, report, pipeline.stages[0].name.place)
    resolver = Resolver(report, static_values(event, params))
    stage, job = next((stage, job) for stage in pipeline.stages for job in stage.jobs if job.key == key)
    _, _, env = plan_stage(pipeline, stage, resolver)
    outside = resolver.with_env(env)
    told = Resolver(report, {**outside.values, **known}, outside.checker, outside.evaluator)
    return {name: _evaluated(each, told) for name, each in late_values(job).items()}


def _evaluated(late: Late, resolver: Resolver) -> tuple[Value, ...]:
    expression = late.template.expressions[0]
    try:
        found = MatrixValues().values(value_of(expression, resolver.values, compute=resolver.compute))
        if isinstance(found, str):
            raise EvaluationFailed(expression, f"{late.what}: {found}")
    except EvaluationFailed as error:
        resolver.report.add(place_of(error, late.place), error.sentence)
        return ()
    return found


def template_text(template: Template) -> str:
    """The expression of a value, for people."""
    return " ".join(template.expressions[0].text.split())
