"""Checks of expressions: each at its place, against what can be seen there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from headrace.pipeline.expressions import STATUS, Checked, Scope, Type, check, uses_of
from headrace.pipeline.model import (
    ArtifactDef,
    CacheDef,
    ConcurrencyDef,
    Condition,
    EnvironmentDef,
    JobDef,
    Late,
    Pipeline,
    Sees,
    ServiceDef,
    StageDef,
    StepDef,
)
from headrace.pipeline.nodes import Scalar
from headrace.pipeline.problems import Report
from headrace.pipeline.scopes import Scopes
from headrace.pipeline.shapes import Flag
from headrace.pipeline.templates import Piece, pieces


def check_expressions(pipeline: Pipeline, report: Report) -> None:
    """Notes every mistake of every expression."""
    if report.hidden:
        return  # names that are not found may stand in what could not be read
    scopes = Scopes(pipeline)
    for late in _of_pipeline(pipeline):
        _check(late, scopes.scope(late.sees), report)
    for stage in pipeline.stages:
        for each in _of_stage(stage):
            _check(each, scopes.scope(each.sees, stage=stage), report)
        for job in stage.jobs:
            for each in _of_job(job):
                steps = job.steps if each.sees is Sees.STEP else ()
                _check(each, scopes.scope(each.sees, stage=stage, job=job, before=steps), report)
            keys = job.matrix.values if job.matrix else {}
            unknown = frozenset(key for key, values in keys.items() if isinstance(values, Late))
            for number, step in enumerate(job.steps):
                for each in _of_step(step):
                    scope = scopes.scope(each.sees, stage=stage, job=job, before=job.steps[:number])
                    _check(each, scope, report, unknown)


def _check(what: Late | Condition, scope: Scope, report: Report, unknown: frozenset[str] = frozenset()) -> None:
    """`unknown`: keys of the matrix whose values come from an expression."""
    if isinstance(what, Condition):
        _check_condition(what, scope, report)
        return
    found = [each for each in pieces(what.node.text) if each.is_expression]
    whole = len(what.template.parts) == 1
    for piece in found:
        if what.sees is Sees.CELL and (message := _not_in_run(piece, scope, unknown)):
            report.add(what.node.place_of(piece.at - 3), message)
            continue
        checked = _checked(piece.text, piece.at, what.node, scope, report)
        if checked is None:
            continue
        if not whole and checked.type is Type.LIST:
            report.add(what.node.place_of(piece.at), "a list cannot stand within a text; use it as a whole value")
        if whole and isinstance(what.shape, Flag) and checked.type not in {Type.BOOL, Type.ANY}:
            report.add(what.node.place_of(piece.at), f"{what.what} is true or false, and this is a {checked.type}")


def _check_condition(condition: Condition, scope: Scope, report: Report) -> None:
    node = condition.node
    checked = _checked(node.text, 0, node, scope, report)
    if checked is not None and checked.type not in {Type.BOOL, Type.ANY}:
        report.add(node.place, f"`if` is true or false, and this is a {checked.type}")


def _checked(text: str, at: int, node: Scalar, scope: Scope, report: Report) -> Checked | None:
    found = check(text, scope)
    if isinstance(found, Checked):
        return found
    for mistake in found:
        report.add(node.place_of(at + mistake.at), mistake.message)
    return None


def _not_in_run(piece: Piece, scope: Scope, unknown: frozenset[str]) -> str:
    """Why an expression may not stand in a script; empty: it is the cell's own."""
    found = uses_of(piece.text)
    if found is None:
        return ""  # it does not compile: that is said
    own = all(use.path[0] in scope.names and not (use.path[1:2] and use.path[1] in unknown) for use in found.uses)
    if own and not found.calls & (STATUS | {"hash"}):
        return ""
    expression = "${{" + piece.text + "}}" if "\n" not in piece.text and len(piece.text) < 200 else "${{ … }}"
    quoted = expression.replace('"', '\\"')
    mend = f'Write `env: {{V: "{quoted}"}}` and `"$V"`'
    return f"`{expression}` may not stand in `run`: no quoting makes it safe. {mend}"


def _late(values: Iterable[object]) -> Iterator[Late]:
    for each in values:
        if isinstance(each, Late):
            yield each


def _of_group(group: ConcurrencyDef | None) -> Iterator[Late]:
    if group is not None:
        yield from _late((group.group,))


def _of_pipeline(pipeline: Pipeline) -> Iterator[Late]:
    yield from _late((*pipeline.env.values(), pipeline.defaults.image, pipeline.defaults.pool))
    yield from _of_group(pipeline.concurrency)


def _of_stage(stage: StageDef) -> Iterator[Late | Condition]:
    yield from _late(stage.env.values())
    if stage.condition is not None:
        yield stage.condition
    if stage.approval is not None:
        yield from _late((stage.approval.message,))
    environment = stage.environment or EnvironmentDef()
    yield from _late((environment.name, environment.url))


def _of_job(job: JobDef) -> Iterator[Late | Condition]:
    yield from _late((*job.env.values(), job.image, job.pool, job.timeout_ms, job.allow_failure))
    yield from _late((*job.outputs.values(), *job.requires.values()))
    yield from _of_group(job.concurrency)
    if job.condition is not None:
        yield job.condition
    if job.matrix is not None:
        yield from _late(job.matrix.values.values())
    parts: tuple[ArtifactDef | ServiceDef | CacheDef, ...] = (*job.artifacts, *job.services, *job.caches)
    for part in parts:
        yield from _of_part(part)


def _of_part(part: ArtifactDef | ServiceDef | CacheDef) -> Iterator[Late]:
    match part:
        case ArtifactDef():
            yield from _late((part.name, *part.paths))
        case ServiceDef():
            yield from _late((part.image, *part.env.values()))
        case CacheDef():
            yield from _late((part.key, *part.restore))


def _of_step(step: StepDef) -> Iterator[Late | Condition]:
    yield from _late((step.run, step.artifact, step.path, step.name, step.workdir, step.timeout_ms, step.allow_failure))
    yield from _late(step.env.values())
    if step.condition is not None:
        yield step.condition
