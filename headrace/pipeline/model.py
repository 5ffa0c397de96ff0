"""The pipeline as it stands in the file: values with their places, before it is expanded for an event.

Made by `load`, checked by `checks.py`, turned into a `Plan` by `expand`. Durations are milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, TypeVar

from headrace.pipeline import nodes
from headrace.pipeline.plan import (
    ArtifactSpec,
    Checkout,
    Network,
    ParameterType,
    Resources,
    RetryRule,
    SandboxKind,
    Save,
    Shell,
    WhenFull,
)
from headrace.pipeline.problems import Place
from headrace.pipeline.values import Expression, Template

if TYPE_CHECKING:
    from headrace.pipeline.shapes import Shape

T = TypeVar("T")
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Placed(Generic[T]):
    """A value and where it stands."""

    value: T
    place: Place


class Sees(StrEnum):
    """What an expression may see where it stands."""

    EVENT = "event"
    """What is known when the run is created: the event, parameters, the cell, the environment."""
    FILE = "file"
    """Only what does not come from the event: parameters, the cell."""
    CELL = "cell"
    """The cell's literal values alone: what may stand in `run:`."""
    JOB = "job"
    """Also `needs` and `run`: known when the job begins."""
    MATRIX = "matrix"
    """The same but for the cell, which comes of it: known when what the job needs has run."""
    JOB_IF = "job if"
    """The same, and how the dependencies ended."""
    STAGE_IF = "stage if"
    """Outputs of earlier jobs, and how they ended."""
    STEP = "step"
    """Also `steps` and `hash`: known to the agent alone, while the job runs."""
    STEP_IF = "step if"
    """The same, and how the earlier steps ended."""
    APPROVAL = "approval"
    """The outputs of earlier jobs, and nothing that whoever makes the event may choose."""


@dataclass(frozen=True, slots=True)
class Late:
    """A value with expressions in it: read by its shape once they are known."""

    template: Template
    node: nodes.Scalar
    shape: Shape
    what: str
    sees: Sees

    @property
    def place(self) -> Place:
        """Where it stands."""
        return self.node.place


@dataclass(frozen=True, slots=True)
class Condition:
    """An `if`."""

    expression: Expression
    node: nodes.Scalar
    sees: Sees


@dataclass(frozen=True, slots=True)
class RetryDef:
    """`retry` of a job or a step."""

    max: int
    on: tuple[RetryRule, ...] = ()
    delay_ms: int = 0
    backoff: float = 1.0


@dataclass(frozen=True, slots=True)
class StepDef:
    """A step: `run` or `artifact` is set, never both."""

    place: Place
    run: str | Late = ""
    artifact: Placed[str] | Late | None = None
    path: str | Late = ""
    id: Placed[str] | None = None
    name: str | Late = ""
    env: Mapping[str, str | Late] = field(default_factory=dict)
    workdir: str | Late = ""
    shell: Shell | None = None
    timeout_ms: int | Late = 0
    condition: Condition | None = None
    allow_failure: bool | Late = False
    retry: RetryDef | None = None


@dataclass(frozen=True, slots=True)
class ArtifactDef:
    """An artifact that a job produces. `name` and `paths` stand for those of `spec` where they hold expressions."""

    place: Place
    spec: ArtifactSpec
    name: Placed[str] | Late
    paths: tuple[str | Late, ...]


@dataclass(frozen=True, slots=True)
class ServiceDef:
    """A container beside a job."""

    name: Placed[str]
    image: Placed[str] | Late | None = None
    env: Mapping[str, str | Late] = field(default_factory=dict)
    ready: str = ""
    timeout_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class CacheDef:
    """A cache of a job."""

    place: Place
    key: str | Late
    restore: tuple[str | Late, ...] = ()
    paths: tuple[str, ...] = ()
    save: Save = Save.PASSED


@dataclass(frozen=True, slots=True)
class MatrixDef:
    """A matrix: values by key in the order of the file; a `Late` value is a JSON list that is known later."""

    place: Place
    values: Mapping[str, tuple[Scalar, ...] | Late] = field(default_factory=dict)
    include: tuple[Placed[Mapping[str, Scalar]], ...] = ()
    exclude: tuple[Placed[Mapping[str, Scalar]], ...] = ()
    max_parallel: int = 0
    fail_fast: bool = False


@dataclass(frozen=True, slots=True)
class ConcurrencyDef:
    """A group that only so many may be in."""

    group: str | Late
    limit: int = 1
    when_full: WhenFull = WhenFull.QUEUE


@dataclass(frozen=True, slots=True)
class ApprovalDef:
    """A person's decision that a stage waits for."""

    place: Place
    whom: tuple[str, ...] = ()
    count: int = 1
    timeout_ms: int = 0
    message: str | Late = ""


@dataclass(frozen=True, slots=True)
class EnvironmentDef:
    """A deploy target."""

    name: Placed[str] | Late | None = None
    url: str | Late = ""


@dataclass(frozen=True, slots=True)
class JobDef:
    """A job; None: the file does not say, so `defaults` or the language decide."""

    name: Placed[str]
    key: str = ""
    """Its name, or `STAGE/NAME` where another stage has a job of that name; set when the file has been read whole."""
    steps: tuple[StepDef, ...] = ()
    needs: tuple[Placed[str], ...] | None = None
    env: Mapping[str, str | Late] = field(default_factory=dict)
    image: Placed[str] | Late | None = None
    sandbox: Placed[SandboxKind] | None = None
    network: Network = Network.FULL
    pool: Placed[str] | Late | None = None
    requires: Mapping[str, str | Late] = field(default_factory=dict)
    timeout_ms: int | Late | None = None
    grace_ms: int | None = None
    artifacts: tuple[ArtifactDef, ...] = ()
    checkout: Checkout = field(default_factory=Checkout)
    matrix: MatrixDef | None = None
    parallel: int = 0
    condition: Condition | None = None
    allow_failure: bool | Late = False
    retry: RetryDef | None = None
    outputs: Mapping[str, str | Late] = field(default_factory=dict)
    services: tuple[ServiceDef, ...] = ()
    caches: tuple[CacheDef, ...] = ()
    secrets: tuple[Placed[str], ...] = ()
    resources: Resources = field(default_factory=Resources)
    concurrency: ConcurrencyDef | None = None
    junit: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StageDef:
    """A stage and its jobs, in the order of the file."""

    name: Placed[str]
    jobs: tuple[JobDef, ...] = ()
    env: Mapping[str, str | Late] = field(default_factory=dict)
    environment: EnvironmentDef | None = None
    condition: Condition | None = None
    approval: ApprovalDef | None = None


@dataclass(frozen=True, slots=True)
class FragmentDef:
    """What a step adds to its run: `stages`, or `jobs` for the stage `stage`, never both."""

    place: Place
    stages: tuple[StageDef, ...] = ()
    stage: Placed[str] | None = None
    jobs: tuple[JobDef, ...] = ()


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for every job that does not say otherwise."""

    image: Placed[str] | Late | None = None
    pool: Placed[str] | Late | None = None
    timeout_ms: int = 3_600_000
    shell: Shell = Shell.DEFAULT


@dataclass(frozen=True, slots=True)
class PushDef:
    """Which pushes start a run. Empty lists: any; but where only tags are named no branch does, and the reverse.

    Globs of refs: `*` within a part, `**` over parts.
    """

    branches: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    paths_ignore: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScheduleDef:
    """A time at which a run starts."""

    cron: str
    timezone: str = "UTC"
    branch: str = ""


@dataclass(frozen=True, slots=True)
class ParameterDef:
    """A parameter of a run by hand."""

    name: str
    place: Place
    type: ParameterType = ParameterType.STRING
    options: tuple[str, ...] = ()
    default: Scalar = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class Triggers:
    """`on`: None where the file does not name that kind of event."""

    push: PushDef | None = None
    pull_request: PushDef | None = None
    schedule: tuple[ScheduleDef, ...] = ()
    parameters: tuple[ParameterDef, ...] = ()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline file that was read whole. Without `name:` it bears the file's name."""

    file: str
    name: str
    stages: tuple[StageDef, ...] = ()
    env: Mapping[str, str | Late] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)
    triggers: Triggers | None = None
    concurrency: ConcurrencyDef | None = None
    priority: int = 0

    def with_keys(self) -> Pipeline:
        """The same with the key of every job."""
        everywhere = Counter(job.name.value for job in self.jobs)
        stages = []
        for stage in self.stages:
            here = Counter(job.name.value for job in stage.jobs)
            jobs = (
                replace(job, key=_key(stage, job, twice=everywhere[job.name.value] > here[job.name.value]))
                for job in stage.jobs
            )
            stages.append(replace(stage, jobs=tuple(jobs)))
        return replace(self, stages=tuple(stages))

    @property
    def jobs(self) -> tuple[JobDef, ...]:
        """All jobs in the order of the file."""
        return tuple(job for stage in self.stages for job in stage.jobs)


def _key(stage: StageDef, job: JobDef, *, twice: bool) -> str:
    return f"{stage.name.value}/{job.name.value}" if twice else job.name.value
