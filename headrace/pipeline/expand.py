"""Expanding a pipeline for one event: cells made, expressions evaluated as far as they can be, defaults applied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.pipeline.bounds import Bounds
from headrace.pipeline.cells import MAX_JOBS, described, label
from headrace.pipeline.event import Event, parameters_of, static_values
from headrace.pipeline.late_matrix import (
    Lists,
    as_cell,
    cells_by_now,
    late_values,
    plan_expander,
    values_by_now,
    why_empty,
)
from headrace.pipeline.model import ConcurrencyDef, JobDef, Pipeline, Placed, StageDef
from headrace.pipeline.plan import Concurrency, Group, Plan, PlannedJob, PlannedStage, SandboxKind, Shard
from headrace.pipeline.planning import Resolver, plan_job, plan_stage
from headrace.pipeline.problems import Report, shown
from headrace.pipeline.values import Text

Cell = Mapping[str, Any]
_Found = tuple[Mapping[str, Sequence[Any]], tuple[Cell, ...]]
"""The values of a matrix, and its cells."""


@dataclass(slots=True)
class _Expansion:
    pipeline: Pipeline
    event: Event
    report: Report
    resolver: Resolver
    sandbox: SandboxKind | None
    most: int
    lists: Lists
    jobs: list[PlannedJob] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    keys: dict[str, list[str]] = field(default_factory=dict)
    """By name of a job in the file, the keys of the jobs that it becomes."""
    room: int = field(init=False)
    bounds: Bounds = field(init=False)
    counts: bool = field(init=False)

    def __post_init__(self) -> None:
        self.room = self.most
        self.bounds = Bounds(self.pipeline, self.report)
        # The loader has counted the others.
        self.counts = any(map(late_values, self.pipeline.jobs))

    def stage(self, index: int, stage: StageDef) -> PlannedStage:
        planned, skip, env = plan_stage(self.pipeline, stage, self.resolver)
        for job in stage.jobs:
            is_late = bool(late_values(job))
            outside = self.resolver.with_env(env) if is_late else self.resolver
            found = self._cells(job, outside)
            if is_late and (waits := self._expander(job, found, outside, env, index)) is not None:
                self._add(job, replace(waits, environment=planned.environment, skip=skip or waits.skip))
            cells = found[1] if found else ()
            if self.counts and not self.bounds.hold(stage, job, max(1, job.parallel) * len(cells)):
                return planned
            for cell, shard in _copies(job, cells):
                if not self._has_room(job):
                    return planned
                made = plan_job(
                    self.pipeline, job, self.resolver.within(cell, shard), env, stage_index=index, sandbox=self.sandbox
                )
                key = job.key + label(cell, shard.index if shard else 0)
                self._add(
                    job, replace(made, key=key, name=job.key, environment=planned.environment, skip=skip or made.skip)
                )
        return planned

    def _has_room(self, job: JobDef) -> bool:
        self.room -= 1
        if self.room < 0:
            message = f"the pipeline has more than {self.most:,} jobs; a run has no more"
            self.report.add(job.name.place, message)
        return self.room >= 0

    def _add(self, job: JobDef, made: PlannedJob) -> None:
        self.keys.setdefault(job.key, []).append(made.key)
        self.jobs.append(made)

    def _expander(
        self, job: JobDef, found: _Found | None, outside: Resolver, env: Mapping[str, Text], index: int
    ) -> PlannedJob | None:
        """What stands for cells that are not known by now, or of which there are none; None: they need nobody."""
        has_cells = bool(found and found[1])
        if has_cells and job.key not in self.lists:
            return None
        if not has_cells and not self._has_room(job):
            return None
        skip = why_empty(job, found[0]) if found and not has_cells and job.key not in self.lists else ""
        return plan_expander(self.pipeline, job, outside, env, stage_index=index, skip=skip)

    def _cells(self, job: JobDef, outside: Resolver) -> _Found | None:
        """The values of its matrix and its cells; None: they are not known yet."""
        matrix = job.matrix
        if matrix is None:
            return {}, ({},)
        values = values_by_now(job, outside, self.lists)
        if values is None:
            return None
        found = cells_by_now(job, values, self.report, most=self.most)
        for each in found.unmatched:
            where = self.report.where(each.place)
            self.warnings.append(f"{where}: {described(each.value)} excludes no cell of `{job.name.value}`")
        if found.cells and (matrix.max_parallel or matrix.fail_fast):
            self.groups.append(Group(job.key, matrix.max_parallel, matrix.fail_fast))
        return values, found.cells


def _copies(job: JobDef, cells: tuple[Cell, ...]) -> Iterator[tuple[Cell, Shard | None]]:
    """Each cell, as often as the job is to run side by side."""
    for cell in cells:
        for index in range(1, job.parallel + 1):
            yield cell, Shard(index, job.parallel)
        if not job.parallel:
            yield cell, None


def expand(
    pipeline: Pipeline,
    event: Event,
    *,
    only: str = "",
    sandbox: SandboxKind | None = None,
    most: int = MAX_JOBS,
    added: frozenset[str] = frozenset(),
    lists: Lists | None = None,
) -> Plan:
    """The plan of a pipeline for an event. The same arguments always give an equal plan.

    `only` keeps one job (all its cells, or one by its key) and all that it needs, over all its dependencies; stages
    that are left without jobs go, the others keep their order. `sandbox` stands for the sandbox of every job,
    whatever the file says; docker's image is then dropped where the sandbox takes none. `most`: jobs of a run.
    `added`: jobs (by their names) that steps have added to the run: they stay whatever `only` says. `lists`: what
    matrices from expressions have come to by now; without, one job stands for the cells of each.

    Raises `PipelineError` for a parameter that is wrong or missing, for a job `only` that there is not, and for an
    expression that cannot be evaluated or whose value cannot stand where it does.
    """
    report = Report(pipeline.file)
    first = pipeline.stages[0].name.place
    params = parameters_of(pipeline, event, report, first)
    report.raise_if_any()
    resolver = Resolver(report, static_values(event, params))
    expansion = _Expansion(pipeline, event, report, resolver, sandbox, most, lists or {})
    stages = tuple(expansion.stage(index, stage) for index, stage in enumerate(pipeline.stages))
    group = _group(pipeline.concurrency, resolver)
    needs = {each.key: _keys(each.needs, expansion.keys) for stage in pipeline.stages for each in stage.jobs}
    late = {job.key for job in expansion.jobs if job.expands}
    jobs = [_with_keys(job, needs[job.name], is_late=job.name in late) for job in expansion.jobs]
    if only:
        known = [*expansion.keys, *(job.key for job in jobs)]
        if only not in known:
            report.add(first, f"the pipeline has no job {shown(only)}{report.suggestion(only, known)}")
        of_file = [job for job in jobs if job.name not in added]
        kept = _with_needs(of_file, {*expansion.keys.get(only, ()), only})
        jobs = [job for job in jobs if job.key in kept or job.name in added]
    report.raise_if_any()
    places = {stage: i for i, stage in enumerate(sorted({job.stage for job in jobs}))}
    names = {job.name for job in jobs}
    return Plan(
        name=pipeline.name,
        stages=tuple(stages[i] for i in places),
        jobs=tuple(job if places[job.stage] == job.stage else replace(job, stage=places[job.stage]) for job in jobs),
        priority=pipeline.priority,
        concurrency=group,
        groups=tuple(each for each in expansion.groups if each.name in names),
        parameters=params,
        warnings=tuple(expansion.warnings),
    )


def _with_keys(job: PlannedJob, needs: tuple[str, ...] | None, *, is_late: bool) -> PlannedJob:
    if is_late and not job.expands:
        return as_cell(job, needs)
    return job if job.needs is None else replace(job, needs=needs)


def _group(group: ConcurrencyDef | None, resolver: Resolver) -> Concurrency | None:
    return None if group is None else resolver.concurrency(group)


def _keys(needs: tuple[Placed[str], ...] | None, keys: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    """The keys of all copies of the jobs; every copy of a job has the same ones, in one tuple."""
    if needs is None:
        return None
    return tuple(key for need in needs for key in keys.get(need.value, ()))


def _with_needs(jobs: list[PlannedJob], wanted: set[str]) -> set[str]:
    """The keys of jobs, with those of all that they wait for."""
    by_key = {job.key: job for job in jobs}
    todo = [by_key[key] for key in wanted if key in by_key]
    everything_before = 0  # jobs of stages below this are wanted already
    while todo:
        job = todo.pop()
        if job.needs is not None:
            found = [by_key[need] for need in job.needs]
        else:
            found = [each for each in jobs if everything_before <= each.stage < job.stage]
            everything_before = max(everything_before, job.stage)
        todo.extend(each for each in found if each.key not in wanted)
        wanted.update(each.key for each in found)
    return wanted
