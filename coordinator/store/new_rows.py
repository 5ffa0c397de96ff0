"""Rows of a run to be stored: what is made of a plan, and handed to a store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.core.expansion import Cells
from coordinator.core.job import Job
from coordinator.core.matching import Requirement
from coordinator.core.plan import Graph, Rows, begin, hold
from coordinator.core.rules import NO_RULES, Rules, Verdict
from coordinator.core.stages import Group
from headrace.pipeline.plan import Concurrency


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be stored. `needs`: keys, or None for all jobs of all earlier stages."""

    id: int
    key: str
    stage: int
    needs: tuple[str, ...] | None
    spec: bytes
    requirement: Requirement
    environment: str
    name: str = ""
    """In the file."""
    cell: str = ""
    """JSON: the cell and its shard; empty: it is no copy."""
    rules: Rules = NO_RULES
    context: str = ""
    """JSON: what its condition sees of the event; empty where it has none."""
    wants_needs: bool = False
    """Its agent evaluates `needs`."""
    depth: int = 0
    """0: of the file; a job that it adds is one deeper."""

    @property
    def row(self) -> Job:
        """As the core knows it, before anything is counted."""
        return Job(self.id, self.key, self.stage, at_most_once=bool(self.environment), rules=self.rules)


@dataclass(frozen=True, slots=True)
class NewStage:
    """A stage to be stored. `rules`: what its door goes by, as JSON; empty: it has none."""

    name: str
    environment: str = ""
    rules: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be stored, with ids that `allocate` gave."""

    id: int
    repository: str
    project: str
    pipeline: str
    pipeline_file: str
    pipeline_text: bytes
    source: bytes
    commit: str
    event: str
    trusted: bool
    parameters: Mapping[str, str]
    priority: int
    stages: tuple[NewStage, ...]
    """In order."""
    jobs: tuple[NewJob, ...]
    groups: tuple[Group, ...] = ()
    concurrency: Concurrency | None = None
    """The group of runs that it enters before its first job."""
    context: str = "{}"
    """JSON: what its stages' expressions see of the event."""
    asked: bytes = b""
    """A serialised `headrace.v1.CreateRunRequest` but for the pipeline's text: what extensions are planned by."""

    bundle: bytes | None = None
    """SHA-256 of the git bundle that the source names."""

    @property
    def graph(self) -> Graph:
        """Its edges."""
        ids = {job.key: job.id for job in self.jobs}
        needs = {job.id: tuple(ids[key] for key in job.needs) for job in self.jobs if job.needs is not None}
        guarded = frozenset(index for index, stage in enumerate(self.stages) if stage.rules)
        return Graph(len(self.stages), needs, guarded)

    @property
    def first_rows(self) -> Rows:
        """How it begins: what waits for nothing queued, or held where the run has to enter a group first."""
        rows = begin(self.id, [job.row for job in self.jobs], self.graph)
        if self.concurrency is None:
            return rows
        return hold(replace(rows, run=replace(rows.run, group=self.concurrency.group)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What a run gets in addition. `revision`: how often it had grown when this was planned."""

    revision: int
    stages: tuple[NewStage, ...]
    """All stages of the run, as they are then."""
    new_stages: frozenset[int] = frozenset()
    jobs: tuple[NewJob, ...]
    """Those that are added."""
    groups: tuple[Group, ...] = ()

    def edges(self, known: Mapping[str, int]) -> dict[int, tuple[int, ...]]:
        """The needs of its jobs. `known`: ids of the run's other jobs by key."""
        ids = {**known, **{job.key: job.id for job in self.jobs}}
        return {job.id: tuple(ids[key] for key in job.needs) for job in self.jobs if job.needs is not None}

    @property
    def guarded(self) -> frozenset[int]:
        """Stages that have a door."""
        return frozenset(index for index, stage in enumerate(self.stages) if stage.rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFragment(Growth):
    """What a step adds to its run. `text`: as it was written; `number`: from 1, in the order of coming."""

    step: int
    number: int
    sha256: bytes
    text: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCells(Growth):
    """What a matrix from expressions has come to. `jobs`: all its cells, whether the run has them by now or not."""

    job_id: int
    """Of the job that stands for them."""
    needs: Mapping[str, Any]
    """`needs`, as the expressions have seen them."""
    lists: str = "{}"
    """JSON: what they have given, by key of the matrix."""
    all_needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of the jobs of the run that name some, by key: those of its plan."""
    verdict: Verdict = field(default_factory=Verdict)
    """Why there are none."""

    def values(self) -> dict[str, str]:
        """By key of a cell, its values: equal texts for equal ones."""
        return {job.key: values_of_cell(job.cell) for job in self.jobs}

    def cells(self, there: Mapping[str, int]) -> Cells:
        """The cells as the core wants them. `there`: the ids of the run's jobs, by key."""
        new = [job for job in self.jobs if job.key not in there]
        ids = {**there, **{job.key: job.id for job in new}}
        needs = {ids[key]: tuple(ids[need] for need in found) for key, found in self.all_needs.items() if key in ids}
        return Cells(self.values(), [job.row for job in new], needs, self.verdict)


def values_of_cell(cell: str) -> str:
    """A cell as text that is equal for equal values: true is not 1."""
    return json.dumps(json.loads(cell), sort_keys=True)
