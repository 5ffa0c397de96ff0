"""Checks of expressions: each at its place, against what can be seen there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from headrace.pipeline.cel_tree import Const, Tree
from headrace.pipeline.cells import copies
from headrace.pipeline.expressions import MOST_CHARS, MOST_DIFFERENT, STATUS, Checker
from headrace.pipeline.known import Checked, Scope, Type
from headrace.pipeline.matrix_form import MatrixValues
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
from headrace.pipeline.patterns import refused_pattern
from headrace.pipeline.problems import Place, Report
from headrace.pipeline.scopes import JobScopes, Scopes, late_keys
from headrace.pipeline.shapes import Flag
from headrace.pipeline.templates import OPENING, Piece, pieces

_OWN = frozenset({"matrix", "shard"})
MOST_EVALUATED = 50_000
"""Expressions of a run, those of every copy of a job counted."""


def check_expressions(pipeline: Pipeline, report: Report) -> None:
    """Notes every mistake of every expression."""
    if report.hidden:
        return  # names that are not found may stand in what could not be read
    checker = Checker(report.nearest)
    scopes, checking = Scopes(pipeline, checker), _Checking(report, checker)
    for late in _late(pipeline.env.values()):
        checking.check(late, scopes.of_pipeline(late.sees, inner=True))
    for late in _of_pipeline(pipeline):
        checking.check(late, scopes.of_pipeline(late.sees, inner=False))
    for stage in pipeline.stages:
        of_stage = scopes.of_stage(stage)
        for late in _late(stage.env.values()):
            checking.check(late, of_stage.scope(late.sees, inner=True))
        for each in _of_stage(stage):
            checking.check(each, of_stage.scope(each.sees, inner=False))
        for job in stage.jobs:
            checking.job(job, of_stage.of_job(job))
    if checker.is_full:
        checking.tell_full(pipeline.stages[0].name.place)


@dataclass(frozen=True, slots=True)
class _Checking:
    report: Report
    checker: Checker
    evaluated: list[int] = field(default_factory=lambda: [0])
    """How many expressions the copies of all jobs hold so far."""
    told: list[Place] = field(default_factory=list)

    def tell_full(self, place: Place) -> None:
        """Say once that there are too many expressions."""
        if not self.told:
            self.told.append(place)
            most = f"{MOST_DIFFERENT:,} different expressions, or {MOST_CHARS:,} characters of them"
            self.report.add(place, f"the file holds more than {most}; split the pipeline")

    def job(self, job: JobDef, scopes: JobScopes) -> None:
        """Everything in a job, its steps included."""
        for late in _late(job.env.values()):
            self.check(late, scopes.scope(late.sees, inner=True))
        unknown = late_keys(job)
        for each in _of_job(job):
            self.check(each, scopes.scope(each.sees, job.steps), unknown)
        for number, step in enumerate(job.steps):
            for each in _of_step(step):
                self.check(each, scopes.scope(each.sees, job.steps[:number]), unknown)
        self._count(job)

    def _count(self, job: JobDef) -> None:
        """The plan evaluates the expressions of every copy."""
        before, self.evaluated[0] = self.evaluated[0], self.evaluated[0] + expressions_in(job) * copies(job)
        if before <= MOST_EVALUATED < self.evaluated[0]:
            message = f"the copies of all jobs hold {self.evaluated[0]:,} expressions by here"
            self.report.add(job.name.place, f"{message}; a run has at most {MOST_EVALUATED:,}")

    def check(self, what: Late | Condition, scope: Scope, unknown: frozenset[str] = frozenset()) -> None:
        """`unknown`: keys of the matrix whose values come from an expression."""
        if isinstance(what, Condition):
            self._condition(what, scope)
        else:
            self._late(what, scope, unknown)

    def _late(self, what: Late, scope: Scope, unknown: frozenset[str]) -> None:
        whole = len(what.template.parts) == 1
        for piece in pieces(what.node.text):
            if not piece.is_expression:
                continue
            if what.sees is Sees.CELL and (message := self._not_in_run(piece, unknown)):
                self.report.add(what.node.place_of(piece.at - len(OPENING)), message)
                continue
            checked = self._checked(piece.text, piece.at, what.node, scope)
            if checked is None:
                continue
            if what.sees is Sees.FILE and unknown and _looks_at_whole_matrix(checked):
                message = "`matrix` may not be looked up here by a value: some of its values come from an expression"
                self.report.add(what.node.place_of(piece.at), message)
            if isinstance(what.shape, MatrixValues) and checked.type not in {Type.LIST, Type.ANY}:
                self.report.add(
                    what.node.place_of(piece.at), f"{what.what} takes a list, and this is {_one(checked.type)}"
                )
            if not whole and checked.type is Type.LIST:
                message = "a list cannot stand within a text; use it as a whole value"
                self.report.add(what.node.place_of(piece.at), message)
            if whole and isinstance(what.shape, Flag) and checked.type not in {Type.BOOL, Type.ANY}:
                message = f"{what.what} is true or false, and this is {_one(checked.type)}"
                self.report.add(what.node.place_of(piece.at), message)

    def _condition(self, condition: Condition, scope: Scope) -> None:
        node = condition.node
        checked = self._checked(node.text, 0, node, scope)
        if checked is not None and checked.type not in {Type.BOOL, Type.ANY}:
            self.report.add(node.place, f"`if` is true or false, and this is {_one(checked.type)}")

    def _checked(self, text: str, at: int, node: Scalar, scope: Scope) -> Checked | None:
        found = self.checker.check(text, scope)
        if self.checker.is_full:
            self.tell_full(node.place_of(at))
        if isinstance(found, Checked):
            for each in found.patterns:
                if why := self._why_no_pattern(each):
                    self.report.add(node.place_of(at + each.at), why)
            return found
        for mistake in found:
            self.report.add(node.place_of(at + mistake.at), mistake.message)
        return None

    def _why_no_pattern(self, tree: Tree) -> str:
        if not isinstance(tree, Const) or not isinstance(tree.value, str):
            return "the pattern of `matches` is written out: it is not put together, and no value that comes later"
        return refused_pattern(tree.value, self.report)

    def _not_in_run(self, piece: Piece, unknown: frozenset[str]) -> str:
        """Why an expression may not stand in a script; empty: it is the cell's own."""
        found = self.checker.uses_of(piece.text)
        if found is None:
            return ""  # it does not compile: that is said
        own = all(use.path[0] in _OWN and not (use.path[1:2] and use.path[1] in unknown) for use in found.uses)
        own = own and not (unknown and _looks_at_whole_matrix(found))
        if found.calls & STATUS or (own and not found.calls & {"hash"}):
            return ""  # what is wrong with it is said where everything is checked
        expression = "${{" + piece.text + "}}" if "\n" not in piece.text and len(piece.text) < 200 else "${{ … }}"
        quoted = expression.replace('"', '\\"')
        mend = f'Write `env: {{V: "{quoted}"}}` and `"$V"`'
        variable = re.fullmatch(r"\s*env\.([A-Za-z_][A-Za-z0-9_]*)\s*", piece.text)
        if variable is not None:
            mend = f'Write `"${variable[1]}"`: it is in the environment of the step'
        return f"`{expression}` may not stand in `run`: no quoting makes it safe. {mend}"


def expressions_in(job: JobDef) -> int:
    """How many expressions a copy of it holds."""
    everything = (*_late(job.env.values()), *_of_job(job), *(each for step in job.steps for each in _of_step(step)))
    return sum(len(each.template.expressions) if isinstance(each, Late) else 1 for each in everything)


def _looks_at_whole_matrix(checked: Checked) -> bool:
    """Whether it looks at `matrix` by a key that is known only later: it may be any."""
    return any(use.path == ("matrix",) for use in checked.uses)


def _one(kind: Type) -> str:
    return f"an {kind}" if kind is Type.INT else f"a {kind}"


def _late(values: Iterable[object]) -> Iterator[Late]:
    for each in values:
        if isinstance(each, Late):
            yield each


def _of_group(group: ConcurrencyDef | None) -> Iterator[Late]:
    if group is not None:
        yield from _late((group.group,))


def _of_pipeline(pipeline: Pipeline) -> Iterator[Late]:
    yield from _late((pipeline.defaults.image, pipeline.defaults.pool))
    yield from _of_group(pipeline.concurrency)


def _of_stage(stage: StageDef) -> Iterator[Late | Condition]:
    if stage.condition is not None:
        yield stage.condition
    if stage.approval is not None:
        yield from _late((stage.approval.message,))
    environment = stage.environment or EnvironmentDef()
    yield from _late((environment.name, environment.url))


def _of_job(job: JobDef) -> Iterator[Late | Condition]:
    yield from _late((job.image, job.pool, job.timeout_ms, job.allow_failure))
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
