"""The language: which keys stand where, what their values look like, and which are not built yet.

To build a key: take it out of its table in `UNBUILT`, give it a shape among the fields, a place in `model.py`, and a
file in the good and the bad corpus.
"""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass

from headrace.pipeline.model import ArtifactDef, Defaults, JobDef, Pipeline, Placed, StageDef, StepDef
from headrace.pipeline.nodes import Kind, Mapping, Node, Scalar
from headrace.pipeline.plan import ArtifactSpec, Checkout, IfEmpty, Network, SandboxKind, Shell, When
from headrace.pipeline.problems import Report, shown
from headrace.pipeline.shapes import (
    MAX_NAME,
    NAME,
    Choice,
    Duration,
    Fields,
    Flag,
    Image,
    Labels,
    Line,
    ListOf,
    Name,
    Record,
    RelativePath,
    Script,
    Variables,
    Whole,
    bad_name,
    scalar,
)

_REMOVE = "remove it for now"
UNBUILT: AnyMapping[str, dict[str, str]] = {
    "pipeline": {
        "on": "start runs with `headrace run`, and remove it for now",
        "concurrency": _REMOVE,
        "priority": _REMOVE,
        "include": "write the jobs into this file for now",
        "templates": "share definitions by YAML anchors and `<<` for now",
    },
    "stage": {
        "if": _REMOVE,
        "approval": _REMOVE,
        "concurrency": _REMOVE,
    },
    "job": {
        "matrix": "write one job for each cell for now",
        "parallel": "write one job for each part for now",
        "services": "start what the job needs in a step for now",
        "cache": "the job works without it; remove it for now",
        "secrets": _REMOVE,
        "resources": "a job has one slot's share; remove it for now",
        "retry": "use `headrace retry`, and remove it for now",
        "if": _REMOVE,
        "outputs": "hand values on in an artifact for now",
        "allow_failure": "end the step with `|| true` for now",
        "concurrency": _REMOVE,
        "extends": "share definitions by YAML anchors and `<<` for now",
        "reports": "keep the reports as an artifact for now",
    },
    "step": {
        "if": _REMOVE,
        "retry": "repeat the command in the script for now",
        "allow_failure": "end the script with `|| true` for now",
    },
}
"""By level, key to what one can do meanwhile. All these keys are in the language and refused until they are built."""


@dataclass(frozen=True, slots=True)
class _Use:
    """`artifact/NAME`."""

    def read(self, node: Node, what: str, report: Report) -> Placed[str] | None:
        found = scalar(node, what, report, "`artifact/NAME`")
        if found is None:
            return None
        kind, slash, name = found.text.partition("/")
        if kind != "artifact" or not slash:
            hint = f"; did you mean `artifact/{found.text}`?" if NAME.fullmatch(found.text) else ""
            report.add(node.place, f"{what} must be `artifact/NAME`, not {shown(found.text)}{hint}")
            return None
        if not NAME.fullmatch(name) or len(name) > MAX_NAME:
            report.add(node.place, bad_name("the artifact of `use`", name))
            return None
        return Placed(name, node.place)


@dataclass(frozen=True, slots=True)
class _Network:
    """`full` or `none`; the other forms of the language are not built yet."""

    def read(self, node: Node, what: str, report: Report) -> Network | None:
        if isinstance(node, Mapping) or (isinstance(node, Scalar) and node.text == "services"):
            form = "services" if isinstance(node, Scalar) else ", ".join(key.text[:20] for key, _ in node.entries)
            report.add(node.place, f"`network: {form}` is not built yet: write `full` or `none` for now")
            return None
        found = Choice(Network).read(node, what, report)
        return Network(found.value) if found else None


@dataclass(frozen=True, slots=True)
class _CheckoutShape:
    """`false`, `true`, or a mapping."""

    def read(self, node: Node, what: str, report: Report) -> Checkout | None:
        if isinstance(node, Scalar) and node.kind is Kind.BOOL:
            return Checkout(enabled=node.text.lower() == "true")
        if isinstance(node, Mapping):
            found: Checkout | None = _CHECKOUT.read(node, what, report)
            return found
        found_scalar = scalar(node, what, report, "`true`, `false` or a mapping")
        if found_scalar is not None:
            message = (
                f"{what} must be `true`, `false` or a mapping such as `{{depth: 50}}`, not {shown(found_scalar.text)}"
            )
            report.add(node.place, message)
        return None


@dataclass(frozen=True, slots=True)
class _Environment:
    """The name of a deploy target, plain or as `{name: …}`."""

    def read(self, node: Node, what: str, report: Report) -> str | None:
        if isinstance(node, Mapping):
            found: str | None = _ENVIRONMENT.read(node, what, report)
            return found
        name = Name().read(node, what, report)
        return name.value if name else None


@dataclass(frozen=True, slots=True)
class _Jobs:
    """Jobs by name."""

    def read(self, node: Node, what: str, report: Report) -> tuple[JobDef, ...] | None:
        if not isinstance(node, Mapping):
            report.add(node.place, f"{what} must be a mapping of names to jobs; write `name:` before each job")
            report.hidden = True
            return None
        if not node.entries:
            report.add(node.place, f"{what} is empty; a stage has at least one job")
        jobs: list[JobDef] = []
        for key, value in node.entries:
            if not NAME.fullmatch(key.text) or len(key.text) > MAX_NAME:
                report.add(key.place, bad_name("a job", key.text))
            name = Placed(key.text, key.place)
            fields: Fields | None = JOB.read(value, f"the job {shown(key.text)}", report)
            jobs.append(_job(name, fields) if fields else JobDef(name))
        return tuple(jobs)


def _step(fields: Fields, report: Report) -> StepDef:
    ways = [key for key in ("run", "use") if key in fields.keys]
    if len(ways) == 2 or not (ways or fields.meant & {"run", "use"}):
        both = "has both `run` and `use`; make two steps of it" if ways else "needs `run` or `use`"
        report.add(fields.keys["use"] if ways else fields.place, f"a step {both}")
    elif ways:
        odd = {"run": ("path",), "use": ("env", "workdir", "shell")}[ways[0]]
        for key in odd:
            if key in fields.keys:
                report.add(fields.keys[key], f"`{key}` has no meaning in a step with `{ways[0]}`; remove it")
    shell = fields.get("shell")
    return StepDef(
        place=fields.place,
        run=fields.get("run", ""),
        artifact=fields.get("use"),
        path=fields.get("path", ""),
        id=fields.get("id"),
        name=fields.get("name", ""),
        env=fields.get("env", {}),
        workdir=fields.get("workdir", ""),
        shell=Shell(shell.value) if shell else None,
        timeout_ms=fields.get("timeout", 0),
    )


def _artifact(fields: Fields, report: Report) -> ArtifactDef | None:
    name, when, if_empty = fields.get("name"), fields.get("when"), fields.get("if_empty")
    if name is None:
        report.hidden = True
        return None
    spec = ArtifactSpec(
        name=name.value,
        paths=fields.get("paths", ()),
        keep_ms=fields.get("keep", 0),
        when=When(when.value) if when else When.PASSED,
        if_empty=IfEmpty(if_empty.value) if if_empty else IfEmpty.FAIL,
    )
    return ArtifactDef(name.place, spec)


def _checkout(fields: Fields, _: Report) -> Checkout:
    return Checkout(
        depth=fields.get("depth", 0), submodules=fields.get("submodules", False), lfs=fields.get("lfs", False)
    )


def _environment(fields: Fields, _: Report) -> str:
    name = fields.get("name")
    return name.value if name else ""


def _fields(fields: Fields, _: Report) -> Fields:
    return fields


def _job(name: Placed[str], fields: Fields) -> JobDef:
    pool, sandbox = fields.get("pool"), fields.get("sandbox")
    return JobDef(
        name=name,
        steps=fields.get("steps", ()),
        needs=fields.get("needs"),
        env=fields.get("env", {}),
        image=fields.get("image"),
        sandbox=Placed(SandboxKind(sandbox.value), sandbox.place) if sandbox else None,
        network=fields.get("network", Network.FULL),
        pool=pool.value if pool else None,
        requires=fields.get("requires", {}),
        timeout_ms=fields.get("timeout"),
        grace_ms=fields.get("grace"),
        artifacts=fields.get("artifacts", ()),
        checkout=fields.get("checkout", Checkout()),
    )


def _stage(fields: Fields, _: Report) -> StageDef:
    name = fields.get("name")
    if name is None:
        name = Placed("", fields.place)
    return StageDef(
        name, jobs=fields.get("jobs", ()), env=fields.get("env", {}), environment=fields.get("environment", "")
    )


def _defaults(fields: Fields, _: Report) -> Defaults:
    pool, shell = fields.get("pool"), fields.get("shell")
    return Defaults(
        image=fields.get("image"),
        pool=pool.value if pool else Defaults().pool,
        timeout_ms=fields.get("timeout", Defaults().timeout_ms),
        shell=Shell(shell.value) if shell else Shell.DEFAULT,
    )


def _pipeline(fields: Fields, report: Report) -> Pipeline:
    stem = report.file.rpartition("/")[2].removesuffix(".yml").removesuffix(".yaml")
    return Pipeline(
        file=report.file,
        name=fields.get("name") or stem or "pipeline",
        stages=fields.get("stages", ()),
        env=fields.get("env", {}),
        defaults=fields.get("defaults", Defaults()),
    )


_SHELL = Choice(Shell, left_out=("default",))
_TIMEOUT = Duration(max_days=30)

STEP = Record(
    "a step",
    {
        "run": Script(),
        "use": _Use(),
        "path": RelativePath(),
        "id": Name(),
        "name": Line(),
        "env": Variables(),
        "workdir": RelativePath(),
        "shell": _SHELL,
        "timeout": _TIMEOUT,
    },
    _step,
    UNBUILT["step"],
)
ARTIFACT = Record(
    "an artifact",
    {
        "name": Name(),
        "paths": ListOf(RelativePath(glob=True), "a path"),
        "keep": Duration(max_days=3650),
        "when": Choice(When),
        "if_empty": Choice(IfEmpty),
    },
    _artifact,
    required=("name", "paths"),
)
_CHECKOUT = Record("`checkout`", {"depth": Whole(1_000_000), "submodules": Flag(), "lfs": Flag()}, _checkout)
_ENVIRONMENT = Record("`environment`", {"name": Name()}, _environment, {"url": _REMOVE}, required=("name",))
JOB = Record(
    "a job",
    {
        "needs": ListOf(Name(), "a need", may_be_empty=True),
        "steps": ListOf(STEP, "a step"),
        "env": Variables(),
        "image": Image(),
        "sandbox": Choice(SandboxKind, left_out=("any",)),
        "network": _Network(),
        "pool": Name(),
        "requires": Labels(),
        "timeout": _TIMEOUT,
        "grace": Duration(max_days=1),
        "artifacts": ListOf(ARTIFACT, "an artifact", may_be_empty=True),
        "checkout": _CheckoutShape(),
    },
    _fields,
    UNBUILT["job"],
    required=("steps",),
)
STAGE = Record(
    "a stage",
    {"name": Name(), "jobs": _Jobs(), "env": Variables(), "environment": _Environment()},
    _stage,
    UNBUILT["stage"],
    required=("name", "jobs"),
)
DEFAULTS = Record("`defaults`", {"image": Image(), "pool": Name(), "timeout": _TIMEOUT, "shell": _SHELL}, _defaults)
PIPELINE = Record(
    "a pipeline",
    {"name": Line(MAX_NAME), "env": Variables(), "defaults": DEFAULTS, "stages": ListOf(STAGE, "a stage")},
    _pipeline,
    UNBUILT["pipeline"],
    required=("stages",),
)
