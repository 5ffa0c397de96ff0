"""The plan: a pipeline file expanded for one event, as a value.

Made by `headrace.pipeline.expand`, stored and dispatched by the coordinator, shown by `headrace validate
--explain`. Everything here is immutable, hashable where its parts are, and free of YAML: positions stay in the
loader. Durations are milliseconds, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


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


class When(StrEnum):
    """After which outcomes of its steps a job keeps an artifact."""

    PASSED = "passed"
    FAILED = "failed"
    ALWAYS = "always"


class IfEmpty(StrEnum):
    """What an artifact without a single file means for its job."""

    FAIL = "fail"
    WARN = "warn"


class Delivery(StrEnum):
    """How often a job may start: exactly the jobs of a stage with an environment are `AT_MOST_ONCE`."""

    AT_LEAST_ONCE = "at-least-once"
    AT_MOST_ONCE = "at-most-once"


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
    env: Mapping[str, str] = field(default_factory=dict)
    timeout_ms: int = 0


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
class PlannedJob:
    """One job of the plan: what an agent needs to run it, and what the coordinator needs to place it."""

    key: str
    """Unique in the run, shown to people: `wheel`, later `unit[python=3.11]`."""
    name: str
    """The job's name in the file; a matrix job has several keys under one name."""
    stage: int
    """Index into `Plan.stages`."""
    needs: tuple[str, ...] | None
    """Keys of the jobs it waits for; None: all jobs of all earlier stages."""
    steps: tuple[Step, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Pipeline, stage and job variables, already merged."""
    image: str = ""
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

    @property
    def delivery(self) -> Delivery:
        """At most once exactly for the jobs of a stage with an environment."""
        return Delivery.AT_MOST_ONCE if self.environment else Delivery.AT_LEAST_ONCE


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage: its place is its index in `Plan.stages`."""

    name: str
    environment: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A pipeline expanded for one event."""

    name: str
    stages: tuple[PlannedStage, ...]
    jobs: tuple[PlannedJob, ...]
    """In the order of the file."""
    priority: int = 0
