"""The plan: a pipeline file expanded for one event, as a value.

Made by `headrace.pipeline.expand`, stored and dispatched by the coordinator, shown by `headrace validate
--explain`. Everything here is immutable, hashable where its parts are, and free of YAML: positions stay in the
loader. Durations are milliseconds, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from headrace.pipeline.values import Expression, Template, Text


class Shell(StrEnum):
    """What runs a step's script. `DEFAULT`: bash where the sandbox has it, else sh."""

    DEFAULT = "default"
    BASH = "bash"
    SH = "sh"
    PYTHON = "python"


class SandboxKind(StrEnum):
    """Where a job runs. `ANY`: bubblewrap if the agent has it, else docker with the agent's default image."""

    ANY = "any"
    DOCKER = "docker"
    BUBBLEWRAP = "bubblewrap"
    HOST = "host"


class Network(StrEnum):
    """What a job may reach."""

    FULL = "full"
    NONE = "none"
    SERVICES = "services"
    """The job's services, and nothing else."""


class When(StrEnum):
    """After which outcomes of its steps a job keeps an artifact."""

    PASSED = "passed"
    FAILED = "failed"
    ALWAYS = "always"


class IfEmpty(StrEnum):
    """What an artifact without a single file means for its job."""

    FAIL = "fail"
    WARN = "warn"


class Save(StrEnum):
    """After which outcomes of its steps a job saves a cache."""

    PASSED = "passed"
    ALWAYS = "always"


class WhenFull(StrEnum):
    """What happens to whoever comes to a group that is full."""

    QUEUE = "queue"
    CANCEL_OLDER = "cancel-older"
    CANCEL_NEWER = "cancel-newer"


class ParameterType(StrEnum):
    """What a parameter of a run by hand holds."""

    STRING = "string"
    CHOICE = "choice"
    BOOL = "bool"
    INT = "int"
    DOUBLE = "double"


class RetryOn(StrEnum):
    """What a rule of `retry` looks for."""

    FAILED = "failed"
    TIMED_OUT = "timed_out"
    OOM = "oom"
    SERVICE_FAILED = "service_failed"
    LOST = "lost"
    ERRORED = "errored"
    EXIT = "exit"
    LOG = "log"


class Delivery(StrEnum):
    """How often a job may start: exactly the jobs of a stage with an environment are `AT_MOST_ONCE`."""

    AT_LEAST_ONCE = "at-least-once"
    AT_MOST_ONCE = "at-most-once"


@dataclass(frozen=True, slots=True)
class RetryRule:
    """One entry of `retry: {on: …}`. `first` to `last`: exit codes of `EXIT`; `pattern`: RE2 of `LOG`."""

    on: RetryOn
    first: int = 0
    last: int = 0
    pattern: str = ""

    def __str__(self) -> str:
        if self.on is RetryOn.EXIT:
            return f"exit:{self.first}" + (f"-{self.last}" if self.last != self.first else "")
        return f"log:/{self.pattern}/" if self.on is RetryOn.LOG else self.on.value


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a job or a step is tried again. `max`: tries beyond the first; each delay is the one before times
    `backoff`. No rule: whatever its own command did."""

    max: int
    on: tuple[RetryRule, ...] = ()
    delay_ms: int = 0
    backoff: float = 1.0


@dataclass(frozen=True, slots=True)
class RunStep:
    """A command of a job. `env` holds the step's own variables only; `timeout_ms` 0 means none of its own."""

    number: int
    """From 0, among all steps of the job."""
    name: str
    """For people: the step's `name`, else the first line of its script."""
    script: str
    id: str = ""
    shell: Shell = Shell.DEFAULT
    workdir: str = ""
    """Relative to the workspace, normalised, never absolute and never above it."""
    env: Mapping[str, Text] = field(default_factory=dict)
    timeout_ms: int = 0
    condition: Expression | None = None
    """None: runs if no earlier step has failed."""
    allow_failure: bool = False
    retry: Retry | None = None


@dataclass(frozen=True, slots=True)
class UseArtifactStep:
    """`use: artifact/NAME`: brings an artifact of this run into the workspace."""

    number: int
    name: str
    artifact: str
    id: str = ""
    path: str = ""
    """Where in the workspace it goes; empty: its root."""
    timeout_ms: int = 0
    condition: Expression | None = None
    allow_failure: bool = False
    retry: Retry | None = None


Step = RunStep | UseArtifactStep


@dataclass(frozen=True, slots=True)
class ArtifactSpec:
    """Files that a job keeps. `keep_ms` 0: the coordinator's default."""

    name: str
    paths: tuple[str, ...]
    """Globs relative to the workspace, never absolute and never with `..`."""
    keep_ms: int = 0
    when: When = When.PASSED
    if_empty: IfEmpty = IfEmpty.FAIL


@dataclass(frozen=True, slots=True)
class Checkout:
    """How the run's commit comes into the workspace. `depth` 0: the whole history."""

    enabled: bool = True
    depth: int = 0
    submodules: bool = False
    lfs: bool = False


@dataclass(frozen=True, slots=True)
class Resources:
    """What a job asks for; 0: one slot's share. `cpu` in cores, `memory` and `disk` in bytes."""

    cpu: float = 0.0
    memory: int = 0
    disk: int = 0
    pids: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """A container beside a job, reachable by its name. `ready`: a command that succeeds once it is."""

    name: str
    image: str
    env: Mapping[str, Text] = field(default_factory=dict)
    ready: str = ""
    timeout_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Files that a later job may reuse. `restore`: prefixes of keys, tried in order."""

    key: Text
    restore: tuple[Text, ...] = ()
    paths: tuple[str, ...] = ()
    save: Save = Save.PASSED


@dataclass(frozen=True, slots=True)
class Concurrency:
    """A group of runs, or of jobs, that only `limit` may be in."""

    group: str
    limit: int = 1
    when_full: WhenFull = WhenFull.QUEUE


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's decision. `whom`: `role:NAME` and `user:NAME`; empty: anybody."""

    whom: tuple[str, ...] = ()
    count: int = 1
    timeout_ms: int = 259_200_000
    message: Text = ""


@dataclass(frozen=True, slots=True)
class Shard:
    """One copy of a `parallel` job. `index` counts from 1."""

    index: int
    total: int


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """One job of the plan: what an agent needs to run it, and what the coordinator needs to place it."""

    key: str
    """Unique in the run, shown to people: `wheel`, `unit[python=3.11]`."""
    name: str
    """The job's name in the file; a matrix job has several keys under one name."""
    stage: int
    """Index into `Plan.stages`."""
    needs: tuple[str, ...] | None
    """Keys of the jobs it waits for; None: all jobs of all earlier stages."""
    steps: tuple[Step, ...]
    env: Mapping[str, Text] = field(default_factory=dict)
    """Pipeline, stage and job variables, already merged; a template is evaluated when the job begins."""
    image: Text = ""
    sandbox: SandboxKind = SandboxKind.ANY
    network: Network = Network.FULL
    pool: str = "default"
    requires: Mapping[str, str] = field(default_factory=dict)
    """Labels that an agent must have, with these values."""
    timeout_ms: int = 3_600_000
    grace_ms: int = 10_000
    artifacts: tuple[ArtifactSpec, ...] = ()
    checkout: Checkout = field(default_factory=Checkout)
    environment: str = ""
    """Name of the deploy target; empty: none."""
    matrix: Mapping[str, Any] = field(default_factory=dict)
    """The cell: a value, or None, for every key of any cell."""
    shard: Shard | None = None
    condition: Expression | None = None
    """Evaluated when its dependencies have ended; None: `success()`."""
    skip: str = ""
    """Why it will not run whatever happens: an `if` that this event makes false. Empty: it may."""
    allow_failure: bool = False
    retry: Retry | None = None
    outputs: Mapping[str, Text] = field(default_factory=dict)
    services: tuple[Service, ...] = ()
    caches: tuple[CacheSpec, ...] = ()
    secrets: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    concurrency: Concurrency | None = None
    junit: tuple[str, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)
    """What expressions see that is known by now: event, branch, tag, commit, params, matrix, shard."""
    expands: Mapping[str, Template] = field(default_factory=dict)
    """By key of its matrix, what gives its values. Not empty: it stands for its cells and never runs itself; they are
    added when what it needs has run."""
    late_cell: bool = False
    """It is a cell of such a job, which bears its `name` as its key."""
    waits_for_stages: bool = False
    """A late cell whose job names no needs."""

    @property
    def delivery(self) -> Delivery:
        """At most once exactly for the jobs of a stage with an environment."""
        return Delivery.AT_MOST_ONCE if self.environment else Delivery.AT_LEAST_ONCE


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage: its place is its index in `Plan.stages`."""

    name: str
    environment: str = ""
    url: Text = ""
    """Where the environment can be seen."""
    condition: Expression | None = None
    """Evaluated when all earlier stages have ended; None: its jobs decide for themselves."""
    approval: Approval | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    """The pipeline's and the stage's, for its condition and its approval: as far as it is known by now."""


@dataclass(frozen=True, slots=True)
class Group:
    """The cells of a matrix with `max_parallel` (0: all at a time) or `fail_fast`. `name`: that of their job."""

    name: str
    max_parallel: int = 0
    fail_fast: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A pipeline expanded for one event."""

    name: str
    stages: tuple[PlannedStage, ...]
    jobs: tuple[PlannedJob, ...]
    """In the order of the file."""
    priority: int = 0
    concurrency: Concurrency | None = None
    groups: tuple[Group, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """With their types, defaults filled in."""
    warnings: tuple[str, ...] = ()
    """What is allowed and looks like a slip, as `file:line:column: message`."""
