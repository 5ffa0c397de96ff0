"""Dynamic pipelines: what a step of a run adds to it.

A fragment is put into the pipeline that the run was made from, together with those that were added before, and the
whole is checked and expanded as a file is: names, needs, artifacts and expressions are judged in one way only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.pipeline.checks import check
from headrace.pipeline.event import Event
from headrace.pipeline.expand import expand
from headrace.pipeline.language import FRAGMENT
from headrace.pipeline.late_matrix import Lists, lists_of, why_empty
from headrace.pipeline.loading import read_whole
from headrace.pipeline.model import FragmentDef, JobDef, Pipeline, Placed, Scalar, StageDef
from headrace.pipeline.nodes import parse
from headrace.pipeline.plan import Plan, PlannedJob, SandboxKind
from headrace.pipeline.problems import PipelineError, Place, Problem, Report, shown
from headrace.pipeline.sharing import Read, Shared, resolved

FILE = "$HEADRACE_PIPELINE"
"""What a fragment is called in messages."""
MAX_DEPTH = 5
"""A job of the file has depth 0, one that it adds is one deeper."""
MAX_BYTES = 4 << 20
"""Of all fragments of a run: each extension reads those before it."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """What a step wrote. `job`: the step's job, by its name in the file. `pool`: where that runs."""

    text: bytes
    job: str
    pool: str


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run was made from: the arguments of `load` and `expand`."""

    text: bytes
    file: str
    event: Event
    read: Read | None = None
    only: str = ""
    sandbox: SandboxKind | None = None


@dataclass(frozen=True, slots=True)
class Expanded:
    """A run's plan with the cells of a matrix from expressions. `values`: what these have given, by its keys; `cells`:
    the jobs that it makes, in order; `why_empty`: why there are none, a sentence."""

    plan: Plan
    values: Mapping[str, Sequence[Scalar]]
    cells: tuple[PlannedJob, ...]
    why_empty: str = ""


@dataclass(frozen=True, slots=True)
class Extension:
    """A run's plan with what a fragment adds. `jobs`: keys of those that are new; `stages`: indexes of new ones."""

    plan: Plan
    jobs: frozenset[str]
    stages: frozenset[int]
    place: Place
    """Of the name of the stage that is added to, or of the first new stage."""


def expand_matrix(
    origin: Origin, before: Sequence[Fragment], lists: Lists, key: str, known: Mapping[str, Any]
) -> Expanded:
    """The plan of a run after `before`, with the cells of the job `key`. `lists`: of matrices that were expanded
    before; `known`: what its expressions see now, `needs` and `run`.

    Raises `PipelineError` for an expression that fails, for a value that can be none of a matrix, and for more cells
    than a run may have.
    """
    growing = _grown(origin, before)
    values = lists_of(growing.pipeline, origin.event, key, known, growing.report)
    growing.report.raise_if_any()
    plan = _expanded(origin, growing, {**lists, key: values})
    cells = tuple(job for job in plan.jobs if job.name == key and job.late_cell)
    defined = {job.key: job for job in growing.pipeline.jobs}[key]
    if (pool := growing.pools.get(key)) is not None:
        for each in cells:
            if each.pool != pool:
                message = (
                    f"`{each.key}` asks for the pool {shown(each.pool)}, and the job that added it runs in `{pool}`"
                )
                growing.report.add(_place(defined.pool, defined), f"{message}; an added job runs in that pool too")
                growing.report.raise_if_any()
    return Expanded(plan, values, cells, "" if cells else why_empty(defined, values))


def _grown(origin: Origin, before: Sequence[Fragment]) -> _Growing:
    report = Report(origin.file)
    pipeline, shared = read_whole(origin.text, origin.file, origin.read, report)
    growing = _Growing(pipeline, shared, report)
    for number, fragment in enumerate(before, 1):
        growing.take(fragment, f"{FILE} ({number})")
    report.raise_if_any()
    return growing


def extend(
    origin: Origin, before: Sequence[Fragment], text: bytes, parent: str, lists: Lists | None = None
) -> Extension:
    """The plan of a run after `before`, in order, and `text`, which a step of the job with the key `parent` wrote.
    `lists`: of matrices that were expanded before.

    Raises `PipelineError` with every mistake of the new fragment, and for more than it may add.
    """
    growing = _grown(origin, before)
    report = growing.report
    first = _expanded(origin, growing, lists or {})
    known, adding = growing.added, {job.key: job for job in first.jobs}[parent]
    try:
        growing.refuse_what_is_there(growing.take(Fragment(text, adding.name, adding.pool), FILE))
        report.raise_if_any()
        check(growing.pipeline, report)
        report.raise_if_any()
        plan = _expanded(origin, growing, lists or {})
        _check_rights(growing, plan, growing.added - known, adding)
        report.raise_if_any()
    except PipelineError as error:
        raise PipelineError(_told(error.problems)) from None
    stages = {stage.name for stage in first.stages}
    keys = {job.key for job in first.jobs}
    return Extension(
        plan,
        jobs=frozenset(job.key for job in plan.jobs if job.key not in keys),
        stages=frozenset(index for index, stage in enumerate(plan.stages) if stage.name not in stages),
        place=growing.place,
    )


def _expanded(origin: Origin, growing: _Growing, lists: Lists) -> Plan:
    return expand(
        growing.pipeline, origin.event, only=origin.only, sandbox=origin.sandbox, added=growing.added, lists=lists
    )


@dataclass(slots=True)
class _Growing:
    """A pipeline while fragments are put into it."""

    pipeline: Pipeline
    shared: Shared
    report: Report
    added: frozenset[str] = frozenset()
    """Names of jobs that fragments have added."""
    below: dict[str, str] = field(default_factory=dict)
    """By name of an added stage, the stage that was present then."""
    place: Place = field(default_factory=lambda: Place(1, 1))
    pools: dict[str, str] = field(default_factory=dict)
    """By added job, the pool of the job that has added it."""

    def take(self, fragment: Fragment, name: str) -> Pipeline:
        """Puts a fragment in. Returns the pipeline as it was before."""
        before = self.pipeline
        root = resolved(parse(fragment.text, name, included=True), self.shared, self.report)
        found: FragmentDef | None = FRAGMENT.read(root, "the fragment", self.report)
        if found is None:
            return before
        present = self._stage_of(fragment.job)
        self.place = found.stage.place if found.stage else found.stages[0].name.place if found.stages else found.place
        stages = tuple(replace(stage, jobs=_in_pool(stage.jobs, fragment.pool)) for stage in found.stages)
        if found.stage is not None:
            self._add_jobs(found.stage, _in_pool(found.jobs, fragment.pool), present)
        else:
            self._add_stages(stages, present)
        self.pipeline = self.pipeline.with_keys()
        new = {job.key for job in self.pipeline.jobs} - {job.key for job in before.jobs}
        self.added |= new
        self.pools |= dict.fromkeys(new, fragment.pool)
        return before

    def _stage_of(self, job: str) -> int:
        return {each.key: index for index, stage in enumerate(self.pipeline.stages) for each in stage.jobs}[job]

    def _add_jobs(self, name: Placed[str], jobs: tuple[JobDef, ...], present: int) -> None:
        names = [stage.name.value for stage in self.pipeline.stages]
        if name.value not in names:
            hint = self.report.suggestion(name.value, names) or f"; it has {', '.join(map(shown, names))}"
            self.report.add(name.place, f"the run has no stage {shown(name.value)}{hint}")
            return
        at = names.index(name.value)
        if at < present:
            message = f"{shown(name.value)} comes before the present stage `{names[present]}`"
            self.report.add(name.place, f"{message}; jobs are added to the present stage or to a later one")
            return
        grown = replace(self.pipeline.stages[at], jobs=(*self.pipeline.stages[at].jobs, *jobs))
        self._put((*self.pipeline.stages[:at], grown, *self.pipeline.stages[at + 1 :]))

    def _add_stages(self, stages: tuple[StageDef, ...], present: int) -> None:
        """Behind the present stage, and behind what was added there before: in the order of coming."""
        name, at = self.pipeline.stages[present].name.value, present + 1
        while at < len(self.pipeline.stages) and self._is_below(self.pipeline.stages[at].name.value, name):
            at += 1
        self.below |= {stage.name.value: name for stage in stages}
        self._put((*self.pipeline.stages[:at], *stages, *self.pipeline.stages[at:]))

    def _is_below(self, stage: str, name: str) -> bool:
        while stage in self.below:
            stage = self.below[stage]
            if stage == name:
                return True
        return False

    def _put(self, stages: tuple[StageDef, ...]) -> None:
        self.pipeline = replace(self.pipeline, stages=stages)

    def refuse_what_is_there(self, before: Pipeline) -> None:
        """A run's names stay what they are: a second job of a name would give the first one another key."""
        jobs = {job.name.value: stage.name.value for stage in before.stages for job in stage.jobs}
        stages = {stage.name.value for stage in before.stages}
        for stage in self.pipeline.stages:
            if stage.name.place.file == FILE and stage.name.value in stages:
                message = f"the run has a stage {shown(stage.name.value)} already"
                self.report.add(stage.name.place, f"{message}; give the added one another name")
            for job in stage.jobs:
                if job.name.place.file == FILE and (there := jobs.get(job.name.value)) is not None:
                    message = f"the run has a job {shown(job.name.value)} already, of the stage `{there}`"
                    self.report.add(job.name.place, f"{message}; give the added one another name")


def _in_pool(jobs: tuple[JobDef, ...], pool: str) -> tuple[JobDef, ...]:
    return tuple(job if job.pool is not None else replace(job, pool=Placed(pool, job.name.place)) for job in jobs)


def _check_rights(growing: _Growing, plan: Plan, added: frozenset[str], parent: PlannedJob) -> None:
    """Notes what an added job would have that its parent has not, and needs that are not of the run."""
    report = growing.report
    defined = {job.key: job for job in growing.pipeline.jobs}
    of_run = {job.name for job in plan.jobs}
    adds = f"the job that adds it, `{parent.key}`"
    for job in _once_each(plan, added):
        written = defined[job.name]
        for secret in written.secrets:
            if secret.value not in parent.secrets:
                message = f"{shown(job.name)} names the secret {shown(secret.value)}, which is none of {adds}"
                report.add(secret.place, f"{message}; an added job has no other secrets")
        if job.pool not in {"", parent.pool}:  # empty: each of its cells is looked at when it is known
            message = f"{shown(job.name)} asks for the pool {shown(job.pool)}, and {adds}, runs in `{parent.pool}`"
            report.add(_place(written.pool, written), f"{message}; an added job runs in that pool too")
        if job.environment not in {"", parent.environment}:
            message = f"{shown(job.name)} would be of the environment {shown(job.environment)}, and {adds}, is not"
            report.add(written.name.place, f"{message}; deploy from a stage of the file")
        for need in written.needs or ():
            if need.value not in of_run:
                message = f"{shown(job.name)} needs {shown(need.value)}, which this run was started without"
                report.add(need.place, f"{message}; start the run without `--job`")


def _once_each(plan: Plan, added: frozenset[str]) -> Iterator[PlannedJob]:
    """One of the cells of each added job whose pool may differ: all of them, where they differ."""
    seen: set[tuple[str, str]] = set()
    for job in plan.jobs:
        if job.name in added and (job.name, job.pool) not in seen:
            seen.add((job.name, job.pool))
            yield job


def _place(pool: object, job: JobDef) -> Place:
    place = getattr(pool, "place", None)
    return place if isinstance(place, Place) else job.name.place


def _told(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """The problems at places of the new fragment; where there are none, those elsewhere, told of its beginning.

    The rest of the run was right without it: what is wrong there now is wrong because of it.
    """
    own = tuple(each for each in problems if each.file == FILE)
    return own or tuple(
        Problem(FILE, 1, 1, f"with this, {each.file}:{each.line}:{each.column} is wrong: {each.message}")
        for each in problems
    )
