"""Random runs for property tests, and a driver of the core over plain dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from coordinator.core.events import Canceled
from coordinator.core.expansion import Cells, expand
from coordinator.core.extend import Addition, Standing, extend
from coordinator.core.follow import (
    LoadBehind,
    LoadDependents,
    LoadDoor,
    LoadFacts,
    LoadGates,
    LoadGroup,
    LoadStage,
    follow,
)
from coordinator.core.job import Job
from coordinator.core.plan import Graph, Rows, active_cells, begin, ended_by_cancel, gates_of, retry
from coordinator.core.rules import NO_RULES, Rules, survives
from coordinator.core.run import Run
from coordinator.core.stages import Door, DoorState, Gate, Group
from coordinator.core.states import JobState
from headrace.pipeline.plan import Approval, Retry
from headrace.pipeline.values import Expression

CONDITIONS = ("success()", "failure()", "always()", "canceled()", "!canceled()", "failure() || canceled()")


@dataclass(frozen=True)
class Shape:
    """A run to be: by job its stage, its needs (None: none named), whether it is a deployment, its rules; then the
    doors of guarded stages and the groups of cells."""

    stages: Sequence[int]
    needs: Sequence[tuple[int, ...] | None]
    deploys: Sequence[bool]
    rules: Sequence[Rules] = ()
    doors: Mapping[int, Door] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)


@st.composite
def shapes(draw, most_jobs: int = 12):
    """Runs without rules: needs point to earlier jobs."""
    stages = sorted(draw(st.lists(st.integers(0, 3), min_size=1, max_size=most_jobs)))
    if draw(st.booleans()):  # otherwise some stages are empty, as in a run of one job with its needs
        dense = sorted(set(stages))
        stages = [dense.index(stage) for stage in stages]
    needs = []
    for index in range(len(stages)):
        earlier = st.lists(st.integers(0, index - 1), unique=True, max_size=4) if index else st.just([])
        needs.append(draw(st.none() | earlier.map(tuple)))
    deploys = draw(st.lists(st.booleans(), min_size=len(stages), max_size=len(stages)))
    return Shape(stages, needs, deploys)


@st.composite
def shapes_with_rules(draw):
    """Runs with conditions, allowed failures, retries, cells and guarded stages."""
    shape = draw(shapes(10))
    doors = {}
    for stage in sorted(set(shape.stages)):
        condition = _condition(draw(st.sampled_from(("", "", *CONDITIONS))))
        approval = Approval((), draw(st.integers(1, 2)), 1000, "") if draw(st.booleans()) else None
        if (condition or approval) and draw(st.booleans()):
            doors[stage] = Door(stage, f"s{stage}", condition=condition, approval=approval)
    needs, groups, of = list(shape.needs), {}, {}
    if len(shape.stages) > 1 and draw(st.booleans()):
        first = shape.stages.index(max(shape.stages, key=shape.stages.count))
        cells = [i for i in range(first, len(shape.stages)) if shape.stages[i] == shape.stages[first]][:4]
        groups["cells"] = Group("cells", *draw(st.sampled_from([(1, False), (2, False), (2, True), (0, True)])))
        of = dict.fromkeys(cells, "cells")
        needs = [needs[first] if i in cells else each for i, each in enumerate(needs)]
    rules = [draw(_rules(shape.stages[i], needs[i], doors, of.get(i, ""))) for i in range(len(shape.stages))]
    return replace(shape, needs=needs, rules=rules, doors=doors, groups=groups)


@st.composite
def _rules(draw, stage, needs, doors, group):
    tries, delay = draw(st.integers(1, 2)), draw(st.sampled_from((0, 1000)))
    door = doors.get(stage)
    return Rules(
        condition=_condition(draw(st.sampled_from(("", "", "", *CONDITIONS)))),
        allow_failure=draw(st.integers(0, 3)) == 0,
        retry=Retry(tries, (), delay, 1.0) if draw(st.integers(0, 3)) == 0 else None,
        group=group,
        guarded=door is not None,
        by_needs=door is not None and needs is not None,
        stage_survives=door is not None and survives(door.condition),
    )


def _condition(text):
    return Expression(text) if text else None


@dataclass
class Table:
    """A run in plain dictionaries: what a store holds, with the core as the only one that decides."""

    run: Run
    jobs: dict[int, Job]
    gates: dict[int, Gate]
    graph: Graph
    queue: set[int] = field(default_factory=set)
    doors: dict[int, Door] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    halting: set[int] = field(default_factory=set)
    """Jobs that agents work on and that were told to end."""
    paused: set[int] = field(default_factory=set)

    @classmethod
    def made(cls, shape: Shape) -> Table:
        rules = shape.rules or [NO_RULES] * len(shape.stages)
        jobs = [
            Job(i + 1, f"j{i}", shape.stages[i], at_most_once=shape.deploys[i], rules=rules[i])
            for i in range(len(shape.stages))
        ]
        edges = {i + 1: tuple(need + 1 for need in found) for i, found in enumerate(shape.needs) if found is not None}
        graph = Graph(max(shape.stages) + 1, edges, frozenset(shape.doors))
        rows = begin(1, jobs, graph)
        table = cls(rows.run, dict(rows.jobs), {g.stage: g for g in rows.gates}, graph, set(rows.queued))
        table.doors, table.groups = dict(shape.doors), dict(shape.groups)
        table._follow_up(rows)
        return table

    def check_gates(self) -> None:
        """Their counters say what a look at the whole run says."""
        whole = gates_of(list(self.jobs.values()), self.graph)
        counted = [(gate.stage, gate.unfinished, gate.failed) for gate in self.gates.values()]
        assert counted == [(gate.stage, gate.unfinished, gate.failed) for gate in whole]

    def _follow_up(self, rows: Rows) -> None:
        if rows.events:
            self.apply(*rows.events)
        if rows.doors:
            self.apply(doors=rows.doors)

    def retry(self, wanted: str) -> None:
        """As a person asks for it. Raises CannotRetry."""
        doors = {stage: door.state for stage, door in self.doors.items()}
        rows = retry(self.run, sorted(self.jobs.values(), key=lambda job: job.id), self.graph, wanted, doors)
        self.run, self.jobs = rows.run, dict(rows.jobs)
        self.gates = {gate.stage: gate for gate in rows.gates}
        self.queue |= set(rows.queued)
        self.paused = {key for key in self.paused if self.jobs[key].pause_ms}
        for stage in rows.closed:
            self.doors[stage] = replace(self.doors[stage], state=DoorState.CLOSED, decisions=())
        for name, active in active_cells(self.jobs.values()).items():
            self.groups[name] = replace(self.groups[name], active=active)
        self._follow_up(rows)

    def cancel(self) -> None:
        """As a person asks for it."""
        doomed = ended_by_cancel(self.run, self.jobs.values(), has_place=True)
        self.run = replace(self.run, canceling=True)
        self.halting |= {key for key in doomed if self.works_on(key)}
        self.apply(*((key, Canceled("enough")) for key in sorted(doomed) if not self.works_on(key)))

    def works_on(self, key: int) -> bool:
        """Whether an agent does."""
        queued = self.jobs[key].state is JobState.QUEUED
        return self.jobs[key].state is JobState.RUNNING or (queued and key not in self.queue)

    def apply(self, *events, doors=()) -> None:
        """Applies (job id, event) pairs, or looks at doors, as one transaction, and halts what is to be halted."""
        generator = follow(self.run, [(self.jobs[job], event) for job, event in events], doors)
        answer = None
        while True:
            try:
                need = generator.send(answer)
            except StopIteration as stop:
                changes = stop.value
                break
            answer = self._answer(need)
        self.run = changes.run
        self.jobs.update(changes.jobs)
        self.gates.update(changes.gates)
        self.doors.update(changes.doors)
        self.groups.update(changes.groups)
        self.queue -= set(changes.unqueued)
        self.queue |= set(changes.queued)
        self.paused |= {key for key, job in changes.jobs.items() if job.pause_ms and job.state is JobState.WAITING}
        self.paused = {key for key in self.paused if self.jobs[key].state is JobState.WAITING}
        self.halting = {key for key in self.halting | set(changes.halted) if not self.jobs[key].over}
        if ended := sorted(set(changes.halted) & self.queue):
            self.apply(*((key, Canceled("halted")) for key in ended))

    def standing(self, **doors: Door) -> Standing:
        """The run as it is; `doors` by the names of their stages."""
        jobs = sorted(self.jobs.values(), key=lambda job: job.id)
        there = self.doors | {door.stage: door for door in doors.values()}
        return Standing(self.run, jobs, self.graph, list(self.gates.values()), there)

    def extend(self, parent: int, addition: Addition) -> None:
        """A step of the job `parent` adds something, as one transaction. Raises CannotExtend."""
        made = extend(self.standing(), parent, addition)
        self.run = made.run
        self.jobs = {key: replace(job, stage=made.moved.get(job.stage, job.stage)) for key, job in self.jobs.items()}
        self.jobs |= made.jobs
        self.gates = {
            made.moved.get(stage, stage): replace(gate, stage=made.moved.get(stage, stage))
            for stage, gate in self.gates.items()
        }
        self.gates = dict(sorted((self.gates | made.gates).items()))
        self.doors = {
            made.moved.get(stage, stage): replace(door, stage=made.moved.get(stage, stage))
            for stage, door in self.doors.items()
        }
        needs = {**self.graph.needs, **addition.needs}
        self.graph = Graph(self.graph.stages + len(addition.stages), needs, frozenset(self.doors))
        self.apply(*made.events)

    def expand(self, expander: int, cells: Cells) -> None:
        """The matrix of a job has become known, as one transaction."""
        there = {job.id: job.key for job in self.jobs.values() if job.rules.expander == self.jobs[expander].key}
        made = expand(self.standing(), expander, there, cells)
        self.run = made.extended.run
        self.jobs |= made.extended.jobs
        self.gates |= made.extended.gates
        needs = {**self.graph.needs, **{key: cells.needs[key] for key in made.added}}
        needs |= {key: (*needs[key], *more) for key, more in made.more.items()}
        self.graph = replace(self.graph, needs=needs)
        self.apply(*made.extended.events)

    def _answer(self, need):
        jobs = list(self.jobs.values())
        match need:
            case LoadDependents(jobs=ended):
                return [
                    (source, self.jobs[job])
                    for source in ended
                    for job, needs in self.graph.needs.items()
                    if source in needs and self.jobs[job].state is JobState.WAITING
                ]
            case LoadGates():
                return list(self.gates.values())
            case LoadBehind(stage=stage):
                behind = [job for job in jobs if job.stage == stage and job.id not in self.graph.needs]
                return [job for job in behind if job.state is JobState.WAITING]
            case LoadFacts(jobs=asking):
                return {key: {} for key in asking}
            case LoadDoor(stage=stage):
                return self.doors[stage]
            case LoadStage(stage=stage):
                return [job for job in jobs if job.stage == stage]
            case LoadGroup(name=name):
                return self.groups[name], [job for job in jobs if job.rules.group == name and not job.over]

    def dependencies(self, job: Job) -> list[Job]:
        """By the plain meaning of the language: its needs, or all jobs of all earlier stages."""
        if job.id in self.graph.needs:
            return [self.jobs[need] for need in self.graph.needs[job.id]]
        return [each for each in self.jobs.values() if each.stage < job.stage]

    def above(self, job: Job) -> list[Job]:
        """The same, as a cell means it that leaves the stages before its own to its expander."""
        found = self.dependencies(job)
        return [*found, *self.dependencies(found[0])] if job.rules.by_stages else found

    def holders(self, job: Job) -> list[Job]:
        """What it waits for: its dependencies, and what its stage's door waits for."""
        door = [each for each in self.jobs.values() if each.stage < job.stage and job.rules.guarded]
        return [*self.dependencies(job), *door]

    def failed_above(self, job: Job) -> bool:
        """Whether a dependency, or one of theirs, has failed."""
        return any(each.has_failed or self.failed_above(each) for each in self.dependencies(job))
