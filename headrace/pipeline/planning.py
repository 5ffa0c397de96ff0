"""One stage or job of the file as it stands in the plan: expressions evaluated as far as they can be by now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from headrace.pipeline.expressions import STATUS, Checker, Evaluator
from headrace.pipeline.model import (
    ArtifactDef,
    ConcurrencyDef,
    Condition,
    JobDef,
    Late,
    Pipeline,
    Placed,
    RetryDef,
    StageDef,
    StepDef,
)
from headrace.pipeline.nodes import Kind, Scalar
from headrace.pipeline.plan import (
    Approval,
    ArtifactSpec,
    CacheSpec,
    Concurrency,
    PlannedJob,
    PlannedStage,
    Retry,
    RunStep,
    SandboxKind,
    Service,
    Shard,
    Step,
    UseArtifactStep,
)
from headrace.pipeline.problems import Place, Report
from headrace.pipeline.scopes import STATIC
from headrace.pipeline.values import (
    EvaluationFailed,
    Expression,
    Functions,
    Template,
    Text,
    rendered,
    text_of,
    truth_of,
)

T = TypeVar("T")
GRACE_MS = 10_000
MAX_TITLE = 60


@dataclass(frozen=True, slots=True)
class Resolver:
    """Evaluates what can be evaluated by now, and reads the values by the shapes of the places where they stand."""

    report: Report
    values: Mapping[str, Any]
    checker: Checker = field(default_factory=Checker)
    evaluator: Evaluator = field(default_factory=Evaluator)
    """Both know what they have seen before: the copies of a job hold the same expressions."""

    def within(self, cell: Mapping[str, Any], shard: Shard | None) -> Resolver:
        """The same for one copy of a job."""
        values = {**self.values, "matrix": dict(cell)}
        if shard is not None:
            values["shard"] = {"index": shard.index, "total": shard.total}
        return Resolver(self.report, values, self.checker, self.evaluator)

    def with_env(self, env: Mapping[str, Text]) -> Resolver:
        """The same with the variables that are known by now."""
        known = {name: each for name, each in env.items() if isinstance(each, str)}
        return Resolver(self.report, {**self.values, "env": known}, self.checker, self.evaluator)

    def value(self, given: T | Late, default: T) -> T:
        """A value that has to be known by now; a mistake is noted, and gives the default."""
        if not isinstance(given, Late):
            return given
        try:
            found = rendered(given.template, self.values, compute=self.compute)
            if not isinstance(found, str | bool):
                found = text_of(given.template, self.values, compute=self.compute)
        except EvaluationFailed as error:
            self.report.add(place_of(error, given.place), error.sentence)
            return default
        read: T | None = given.shape.read(_scalar(given.node, found), given.what, self.report)
        return default if read is None else read

    def text(self, given: str | Late) -> Text:
        """A text: known by now, or a template for the agent where it asks for what is not."""
        if not isinstance(given, Late):
            return given
        return self.value(given, "") if self.is_static(given.template) else given.template

    def output(self, given: str | Late) -> Text:
        """A job's output: one expression alone keeps the type of its value, so the agent evaluates it."""
        if isinstance(given, Late) and len(given.template.parts) == 1:
            return given.template
        return self.text(given)

    def is_static(self, template: Template) -> bool:
        """Whether all of its expressions can be evaluated by now."""
        return all(self._is_static(each) for each in template.expressions)

    def _is_static(self, expression: Expression) -> bool:
        found = self.checker.uses_of(expression.text)
        assert found is not None  # the loader has checked it
        return not found.calls & (STATUS | {"hash"}) and all(use.path[0] in STATIC for use in found.uses)

    def compute(self, text: str, values: Mapping[str, Any], functions: Functions | None = None) -> Any:
        """The value of an expression, which is handed no more of the values than it looks at."""
        found = self.checker.uses_of(text)
        wanted: dict[str, Any] = {}
        for use in found.uses if found else ():
            root, known = use.path[0], values.get(use.path[0])
            if len(use.path) == 1 or not isinstance(known, Mapping):
                wanted[root] = known
            elif wanted.get(root) is not known:
                kept = wanted.setdefault(root, {})
                kept.update({use.path[1]: known[use.path[1]]} if use.path[1] in known else {})
        return self.evaluator.evaluate(text, {name: each for name, each in wanted.items() if name in values}, functions)

    def env(self, env: Mapping[str, str | Late]) -> dict[str, Text]:
        """The variables of one place."""
        return {name: self.text(each) for name, each in env.items()}

    def concurrency(self, group: ConcurrencyDef) -> Concurrency:
        """A group with its name."""
        return Concurrency(self.value(group.group, "-"), group.limit, group.when_full)

    def decided(self, condition: Condition | None, of: str) -> tuple[Expression | None, str]:
        """What is left of a condition, and why it is false already; nothing is left of one that is true."""
        if condition is None:
            return None, ""
        expression = condition.expression
        if not self._is_static(expression):
            return expression, ""
        try:
            if truth_of(expression, self.values, compute=self.compute):
                return None, ""
        except EvaluationFailed as error:
            self.report.add(place_of(error, condition.node.place), error.sentence)
            return None, ""
        return None, f"the `if` of {of} is false: {explained(expression, self.values, self.checker)}"


def explained(expression: Expression, values: Mapping[str, Any], checker: Checker | None = None) -> str:
    """An expression with the values of its operands: `branch == 'main'`, with branch = 'dev'."""
    found = (checker or Checker()).uses_of(expression.text)
    parts = []
    for use in found.uses if found else ():
        at: Any = values
        for step in use.path:
            at = at.get(step) if isinstance(at, Mapping) else None
        part = f"{'.'.join(use.path)} = {_shown_value(at)}"
        if part not in parts:
            parts.append(part)
    return f"`{' '.join(expression.text.split())}`" + (f", with {', '.join(parts[:8])}" if parts else "")


def place_of(error: EvaluationFailed, around: Place) -> Place:
    """Where the expression stands within the value at `around`."""
    found = re.search(r":([0-9]+):([0-9]+)$", error.expression.place)
    return Place(int(found[1]), int(found[2]), around.file) if found else around


def _shown_value(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _scalar(node: Scalar, value: object) -> Scalar:
    """A value as if it had been written there."""
    if isinstance(value, bool):
        return replace(node, text="true" if value else "false", kind=Kind.BOOL)
    return replace(node, text=str(value), kind=Kind.TEXT)


def plan_stage(pipeline: Pipeline, stage: StageDef, resolver: Resolver) -> tuple[PlannedStage, str, dict[str, Text]]:
    """The stage, why all its jobs are skipped, and the variables of pipeline and stage."""
    env = resolver.env(pipeline.env)
    env |= resolver.with_env(env).env(stage.env)
    resolver = resolver.with_env(env)
    condition, skip = resolver.decided(stage.condition, f"the stage `{stage.name.value}`")
    if stage.condition is not None and condition is None and not skip:
        # What is left of one that is true already: a job's own `if` does not do away with its stage's.
        condition = Expression("success()", stage.condition.expression.place)
    environment = stage.environment
    name = resolver.value(environment.name, None) if environment else None
    approval = stage.approval
    planned = PlannedStage(
        stage.name.value,
        environment=name.value if name else "",
        url=resolver.text(environment.url) if environment else "",
        condition=condition,
        env={name: each for name, each in env.items() if isinstance(each, str)},
        approval=Approval(approval.whom, approval.count, approval.timeout_ms, resolver.text(approval.message))
        if approval
        else None,
    )
    return planned, skip, env


def plan_job(
    pipeline: Pipeline,
    job: JobDef,
    resolver: Resolver,
    outer: Mapping[str, Text],
    *,
    stage_index: int,
    sandbox: SandboxKind | None,
) -> PlannedJob:
    """One copy of a job; `outer`: the variables of pipeline and stage. Its `needs` are names still, its key is its
    name."""
    env = {**outer, **resolver.with_env(outer).env(job.env)} if job.env else dict(outer)
    resolver = resolver.with_env(env)
    image, kind = _image_and_sandbox(pipeline, job, resolver, sandbox)
    pool = resolver.value(job.pool or pipeline.defaults.pool, None)
    condition, skip = resolver.decided(job.condition, f"`{job.name.value}`")
    shard = resolver.values.get("shard")
    timeout = job.timeout_ms if job.timeout_ms is not None else pipeline.defaults.timeout_ms
    return PlannedJob(
        key=job.name.value,
        name=job.name.value,
        stage=stage_index,
        needs=None if job.needs is None else tuple(need.value for need in job.needs),
        steps=tuple(_step(number, step, pipeline, resolver) for number, step in enumerate(job.steps)),
        env=env,
        image=image,
        sandbox=kind,
        network=job.network,
        pool=pool.value if pool else "default",
        requires={name: resolver.value(each, "") for name, each in job.requires.items()},
        timeout_ms=resolver.value(timeout, pipeline.defaults.timeout_ms),
        grace_ms=job.grace_ms or GRACE_MS,
        artifacts=tuple(_artifact(each, resolver) for each in job.artifacts),
        checkout=job.checkout,
        matrix=resolver.values.get("matrix", {}),
        shard=Shard(shard["index"], shard["total"]) if shard else None,
        condition=condition,
        skip=skip,
        allow_failure=resolver.value(job.allow_failure, default=False),
        retry=_retry(job.retry),
        outputs={name: resolver.output(each) for name, each in job.outputs.items()},
        services=tuple(
            Service(each.name.value, _image(each.image, resolver), resolver.env(each.env), each.ready, each.timeout_ms)
            for each in job.services
        ),
        caches=tuple(
            CacheSpec(resolver.text(each.key), tuple(map(resolver.text, each.restore)), each.paths, each.save)
            for each in job.caches
        ),
        secrets=tuple(each.value for each in job.secrets),
        resources=job.resources,
        concurrency=resolver.concurrency(job.concurrency) if job.concurrency else None,
        junit=job.junit,
        context={name: each for name, each in resolver.values.items() if name != "env"},
    )


def _image_and_sandbox(
    pipeline: Pipeline, job: JobDef, resolver: Resolver, override: SandboxKind | None
) -> tuple[Text, SandboxKind]:
    image = job.image or pipeline.defaults.image
    kind = override or (job.sandbox.value if job.sandbox else SandboxKind.ANY)
    if kind is SandboxKind.ANY and (image is not None or job.services):
        kind = SandboxKind.DOCKER
    if image is None or kind is not SandboxKind.DOCKER:
        return "", kind
    if isinstance(image, Late) and not resolver.is_static(image.template):
        return image.template, kind
    return _image(image, resolver), kind


def _image(image: Placed[str] | Late | None, resolver: Resolver) -> str:
    found = resolver.value(image, None)
    return found.value if found else ""


def _artifact(artifact: ArtifactDef, resolver: Resolver) -> ArtifactSpec:
    name: Placed[str] | None = resolver.value(artifact.name, None)
    return replace(
        artifact.spec,
        name=name.value if name else "",
        paths=tuple(resolver.value(each, "") for each in artifact.paths),
    )


def _retry(retry: RetryDef | None) -> Retry | None:
    return None if retry is None else Retry(retry.max, retry.on, retry.delay_ms, retry.backoff)


def _step(number: int, step: StepDef, pipeline: Pipeline, resolver: Resolver) -> Step:
    ident = step.id.value if step.id else ""
    name = resolver.value(step.name, "")
    condition = step.condition.expression if step.condition else None
    timeout = resolver.value(step.timeout_ms, 0)
    allowed = resolver.value(step.allow_failure, default=False)
    if step.artifact is not None:
        artifact: Placed[str] | None = resolver.value(step.artifact, None)
        named = artifact.value if artifact else ""
        return UseArtifactStep(
            number, name or f"use artifact/{named}", named, ident, resolver.value(step.path, ""), timeout,
            condition, allowed, _retry(step.retry),
        )  # fmt: skip
    script = _script(step.run, resolver)
    return RunStep(
        number=number,
        name=name or title(script),
        script=script,
        id=ident,
        shell=step.shell or pipeline.defaults.shell,
        workdir=resolver.value(step.workdir, ""),
        env=resolver.env(step.env),
        timeout_ms=timeout,
        condition=condition,
        allow_failure=allowed,
        retry=_retry(step.retry),
    )


def _script(script: str | Late, resolver: Resolver) -> str:
    """The cell's own literal values stand in a script as text: they come from the same file."""
    if isinstance(script, str):
        return script
    try:
        return text_of(_always_text(script.template), resolver.values, compute=resolver.compute)
    except EvaluationFailed as error:
        resolver.report.add(place_of(error, script.place), error.sentence)
        return ""


def _always_text(template: Template) -> Template:
    return Template((*template.parts, ""))


def title(script: str) -> str:
    """The first line of a script that says something, shortened to `MAX_TITLE` characters, printable."""
    lines = [line.strip() for line in script.splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith("#")), lines[0] if lines else "")
    printable = "".join(each if each.isprintable() else " " for each in first[: MAX_TITLE + 1]).strip()
    return printable if len(printable) <= MAX_TITLE else printable[: MAX_TITLE - 1] + "…"
