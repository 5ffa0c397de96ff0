"""The pipeline as it stands in the file: values with their places, before it is expanded for an event.

Made by `load`, checked by `checks.py`, turned into a `Plan` by `expand`. Durations are milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from headrace.pipeline.plan import ArtifactSpec, Checkout, Network, SandboxKind, Shell
from headrace.pipeline.problems import Place

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Placed(Generic[T]):
    """A value and where it stands."""

    value: T
    place: Place


@dataclass(frozen=True, slots=True)
class StepDef:
    """A step: `run` or `artifact` is set, never both."""

    place: Place
    run: str = ""
    artifact: Placed[str] | None = None
    path: str = ""
    id: Placed[str] | None = None
    name: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    shell: Shell | None = None
    timeout_ms: int = 0


@dataclass(frozen=True, slots=True)
class ArtifactDef:
    """An artifact that a job produces."""

    place: Place
    spec: ArtifactSpec


@dataclass(frozen=True, slots=True)
class JobDef:
    """A job; None: the file does not say, so `defaults` or the language decide."""

    name: Placed[str]
    steps: tuple[StepDef, ...] = ()
    needs: tuple[Placed[str], ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    image: Placed[str] | None = None
    sandbox: Placed[SandboxKind] | None = None
    network: Network = Network.FULL
    pool: str | None = None
    requires: Mapping[str, str] = field(default_factory=dict)
    timeout_ms: int | None = None
    grace_ms: int | None = None
    artifacts: tuple[ArtifactDef, ...] = ()
    checkout: Checkout = field(default_factory=Checkout)


@dataclass(frozen=True, slots=True)
class StageDef:
    """A stage and its jobs, in the order of the file."""

    name: Placed[str]
    jobs: tuple[JobDef, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    environment: str = ""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for every job that does not say otherwise."""

    image: Placed[str] | None = None
    pool: str = "default"
    timeout_ms: int = 3_600_000
    shell: Shell = Shell.DEFAULT


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline file that was read whole. Without `name:` it bears the file's name."""

    file: str
    name: str
    stages: tuple[StageDef, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    defaults: Defaults = field(default_factory=Defaults)

    @property
    def jobs(self) -> tuple[JobDef, ...]:
        """All jobs in the order of the file."""
        return tuple(job for stage in self.stages for job in stage.jobs)
