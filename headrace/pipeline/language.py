"""The language: which keys stand where, what their values look like, and which are not built yet.

To build a key: take it out of its table in `UNBUILT`, give it a shape among the fields, a place in `model.py`, and a
file in the good and the bad corpus, and a line in `described.py`.
"""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass

from headrace.pipeline import making
from headrace.pipeline.amounts import Duration, Number, Size, Whole
from headrace.pipeline.forms import (
    Approver,
    CachePath,
    CheckoutForm,
    EnvironmentForm,
    NetworkForm,
    OneOrMore,
    RetryRuleForm,
    Services,
    Use,
)
from headrace.pipeline.matrix_form import MatrixForm
from headrace.pipeline.model import JobDef, Placed, Sees
from headrace.pipeline.nodes import Mapping, Node
from headrace.pipeline.plan import IfEmpty, SandboxKind, Save, Shell, When, WhenFull
from headrace.pipeline.problems import Report, shown
from headrace.pipeline.records import Fields, ListOf, Record
from headrace.pipeline.shapes import (
    MAX_NAME,
    NAME,
    Choice,
    Flag,
    If,
    Image,
    Line,
    Name,
    RelativePath,
    Schema,
    Script,
    Templated,
    bad_name,
    clipped,
)
from headrace.pipeline.triggers import ON
from headrace.pipeline.variables import Labels, Variables

UNBUILT: AnyMapping[str, dict[str, str]] = {
    "step": {"image": "give the job an image, or make a job of the step, for now"},
}
"""By level, key to what one can do meanwhile. These keys are in the language and refused until they are built; one
that has a shape among the fields already is built by taking its line out."""

_HARD_TIMEOUT_DAYS = 30
MAX_STEPS = 500
"""Of a job: each is a section of its log, beside our own, and a log has at most 1,000."""


@dataclass(frozen=True, slots=True)
class _Jobs:
    """Jobs by name."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": f"^{NAME.pattern}$"},
            "additionalProperties": JOB.schema(),
        }

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
            name = Placed(clipped(key.text), key.place)
            fields: Fields | None = JOB.read(value, f"the job {shown(key.text)}", report)
            jobs.append(making.job_of(name, fields) if fields else JobDef(name))
        return tuple(jobs)


_SHELL = Choice(Shell, left_out=("default",))
_TIMEOUT = Duration(max_days=_HARD_TIMEOUT_DAYS)
_IMAGE = Templated(Image(), Sees.JOB)
_POOL = Templated(Name(), Sees.FILE)
_DELAY = Duration(max_days=1)
_STEP_RETRY = Record(
    "`retry`", {"max": Whole(10, least=1), "delay": _DELAY, "backoff": Number(100)}, making.retry, required=("max",)
)
_JOB_RETRY = Record(
    "`retry`",
    {**_STEP_RETRY.fields, "on": OneOrMore(RetryRuleForm(), "`on`")},
    making.retry,
    required=("max",),
)

STEP = Record(
    "a step",
    {
        "run": Script(),
        "use": Templated(Use(), Sees.EVENT),
        "path": Templated(RelativePath(), Sees.EVENT),
        "id": Name(),
        "name": Templated(Line(), Sees.EVENT),
        "env": Variables(Sees.STEP),
        "workdir": Templated(RelativePath(), Sees.EVENT),
        "shell": _SHELL,
        "timeout": Templated(_TIMEOUT, Sees.EVENT),
        "if": If(Sees.STEP_IF),
        "allow_failure": Templated(Flag(), Sees.EVENT),
        "retry": _STEP_RETRY,
    },
    making.step,
    unbuilt=UNBUILT["step"],
)
_EXTENDS = OneOrMore(Name(), "`extends`")
ARTIFACT = Record(
    "an artifact",
    {
        "name": Templated(Name(dots=True), Sees.EVENT),
        "paths": ListOf(Templated(RelativePath(glob=True), Sees.EVENT), "a path", most=200),
        "keep": Duration(max_days=3650),
        "when": Choice(When),
        "if_empty": Choice(IfEmpty),
    },
    making.artifact,
    required=("name", "paths"),
)
_CHECKOUT = Record("`checkout`", {"depth": Whole(1_000_000), "submodules": Flag(), "lfs": Flag()}, making.checkout)
_ENVIRONMENT = Record(
    "`environment`",
    {"name": Templated(Name(), Sees.FILE), "url": Templated(Line(2_000), Sees.APPROVAL)},
    making.environment,
    required=("name",),
)
_SERVICE = Record(
    "a service",
    {"image": _IMAGE, "env": Variables(Sees.JOB), "ready": Line(4_000), "timeout": Duration(max_days=1)},
    making.as_held,
    required=("image",),
)
_CACHE = Record(
    "a cache",
    {
        "key": Templated(Line(500), Sees.STEP),
        "restore": ListOf(Templated(Line(500), Sees.STEP), "a prefix", may_be_empty=True, most=20),
        "paths": ListOf(CachePath(), "a path", most=100),
        "save": Choice(Save),
    },
    making.cache,
    required=("key", "paths"),
)
_RESOURCES = Record(
    "`resources`",
    {"cpu": Number(10_000), "memory": Size(16 << 20), "disk": Size(16 << 20), "pids": Whole(1_000_000, least=16)},
    making.resources,
)
_REPORTS = Record(
    "`reports`",
    {"junit": ListOf(RelativePath(glob=True), "a path", most=50)},
    lambda fields, _: fields.get("junit", ()),
    required=("junit",),
)
CONCURRENCY = Record(
    "`concurrency`",
    {"group": Templated(Line(), Sees.EVENT), "limit": Whole(1_000, least=1), "when_full": Choice(WhenFull)},
    making.concurrency,
    required=("group",),
)
APPROVAL = Record(
    "`approval`",
    {
        "from": OneOrMore(Approver(), "`from`"),
        "count": Whole(20, least=1),
        "timeout": _TIMEOUT,
        "message": Templated(Line(1_000), Sees.APPROVAL),
    },
    making.approval,
)
JOB = Record(
    "a job",
    {
        "needs": ListOf(Name(), "a need", may_be_empty=True),
        "steps": ListOf(STEP, "a step", most=MAX_STEPS),
        "env": Variables(Sees.JOB),
        "image": _IMAGE,
        "sandbox": Choice(SandboxKind, left_out=("any",)),
        "network": NetworkForm(),
        "pool": _POOL,
        "requires": Labels(),
        "timeout": Templated(_TIMEOUT, Sees.EVENT),
        "grace": Duration(max_days=1),
        "artifacts": ListOf(ARTIFACT, "an artifact", may_be_empty=True, most=100),
        "checkout": CheckoutForm(_CHECKOUT),
        "matrix": MatrixForm(),
        "parallel": Whole(1_000, least=1),
        "if": If(Sees.JOB_IF),
        "allow_failure": Templated(Flag(), Sees.EVENT),
        "retry": _JOB_RETRY,
        "outputs": Variables(Sees.STEP, "output", "an"),
        "services": Services(_SERVICE),
        "cache": ListOf(_CACHE, "a cache", may_be_empty=True, most=20),
        "secrets": ListOf(Name(), "a secret", may_be_empty=True, most=100),
        "resources": _RESOURCES,
        "concurrency": CONCURRENCY,
        "reports": _REPORTS,
    },
    making.as_held,
    required=("steps",),
    resolved={"extends": _EXTENDS},
)
STAGE = Record(
    "a stage",
    {
        "name": Name(),
        "jobs": _Jobs(),
        "env": Variables(Sees.JOB),
        "environment": EnvironmentForm(_ENVIRONMENT),
        "if": If(Sees.STAGE_IF),
        "approval": APPROVAL,
    },
    making.stage,
    required=("name", "jobs"),
)
DEFAULTS = Record("`defaults`", {"image": _IMAGE, "pool": _POOL, "timeout": _TIMEOUT, "shell": _SHELL}, making.defaults)
TEMPLATE = Record("a job", {**JOB.fields, "extends": _EXTENDS}, making.as_held)
"""A job that lacks something still."""


@dataclass(frozen=True, slots=True)
class _Templates:
    """Templates by name; `sharing` reads them."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "object", "additionalProperties": TEMPLATE.schema()}

    def read(self, node: Node, what: str, report: Report) -> None:
        """Never called: templates are resolved before the file is read."""


_INCLUDE = Record("an include", {"local": Line()}, making.as_held, required=("local",))
PIPELINE = Record(
    "a pipeline",
    {
        "name": Line(MAX_NAME),
        "on": ON,
        "env": Variables(Sees.JOB),
        "defaults": DEFAULTS,
        "concurrency": CONCURRENCY,
        "priority": Whole(10, least=-10),
        "stages": ListOf(STAGE, "a stage"),
    },
    making.pipeline,
    required=("stages",),
    resolved={"include": ListOf(_INCLUDE, "an include"), "templates": _Templates()},
)
FRAGMENT = Record("a fragment", {"stages": ListOf(STAGE, "a stage"), "stage": Name(), "jobs": _Jobs()}, making.fragment)
"""What a step writes to `$HEADRACE_PIPELINE`."""


def schema() -> Schema:
    """The JSON Schema of a pipeline file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Headrace pipeline",
        "description": "The pipeline file of Headrace. `headrace validate` checks what a schema cannot.",
        **PIPELINE.schema(),
    }
