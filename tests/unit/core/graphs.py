"""Random runs for property tests, and a driver of the core over plain dictionaries."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from coordinator.core.extend import Addition, Standing, extend
from coordinator.core.follow import LoadBehind, LoadDependents, LoadGates, follow
from coordinator.core.job import Job
from coordinator.core.plan import Graph, begin
from coordinator.core.run import Run
from coordinator.core.stages import Door, Gate
from coordinator.core.states import JobState


@st.composite
def shapes(draw, most_jobs: int = 12):
    """(stage of each job, needs of each job or None, at-most-once of each): needs point to earlier jobs."""
    stages = sorted(draw(st.lists(st.integers(0, 3), min_size=1, max_size=most_jobs)))
    if draw(st.booleans()):  # otherwise some stages are empty, as in a run of one job with its needs
        dense = sorted(set(stages))
        stages = [dense.index(stage) for stage in stages]
    needs = []
    for index in range(len(stages)):
        earlier = st.lists(st.integers(0, index - 1), unique=True, max_size=4) if index else st.just([])
        needs.append(draw(st.none() | earlier.map(tuple)))
    deploys = draw(st.lists(st.booleans(), min_size=len(stages), max_size=len(stages)))
    return stages, needs, deploys


@dataclass
class Table:
    """A run in plain dictionaries: what a store holds, with the core as the only one that decides."""

    run: Run
    jobs: dict[int, Job]
    gates: dict[int, Gate]
    graph: Graph
    queue: set[int] = field(default_factory=set)

    @classmethod
    def made(cls, shape) -> Table:
        stages, needs, deploys = shape
        jobs = [Job(i + 1, f"j{i}", stages[i], at_most_once=deploys[i]) for i in range(len(stages))]
        edges = {i + 1: tuple(need + 1 for need in found) for i, found in enumerate(needs) if found is not None}
        graph = Graph(max(stages) + 1, edges)
        rows = begin(1, jobs, graph)
        return cls(rows.run, dict(rows.jobs), {g.stage: g for g in rows.gates}, graph, set(rows.queued))

    def apply(self, *events) -> None:
        """Applies (job id, event) pairs as one transaction."""
        generator = follow(self.run, [(self.jobs[job], event) for job, event in events])
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
        self.queue -= set(changes.unqueued)
        self.queue |= set(changes.queued)

    def standing(self, **doors: Door) -> Standing:
        """The run as it is; `doors` by the names of their stages."""
        jobs = sorted(self.jobs.values(), key=lambda job: job.id)
        return Standing(self.run, jobs, self.graph, list(self.gates.values()), {d.stage: d for d in doors.values()})

    def extend(self, parent: int, addition: Addition) -> None:
        """A step of the job `parent` adds something, as one transaction."""
        made = extend(self.standing(), parent, addition)
        self.run = made.run
        self.jobs = {key: replace(job, stage=made.moved.get(job.stage, job.stage)) for key, job in self.jobs.items()}
        self.jobs |= made.jobs
        self.gates = {
            made.moved.get(stage, stage): replace(gate, stage=made.moved.get(stage, stage))
            for stage, gate in self.gates.items()
        }
        self.gates = dict(sorted((self.gates | made.gates).items()))
        self.graph = Graph(self.graph.stages + len(addition.stages), {**self.graph.needs, **addition.needs})
        self.apply(*made.events)

    def _answer(self, need):
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
                return [
                    job
                    for job in self.jobs.values()
                    if job.stage == stage and job.id not in self.graph.needs and job.state is JobState.WAITING
                ]

    def dependencies(self, job: Job) -> list[Job]:
        """By the plain meaning of the language: its needs, or all jobs of all earlier stages."""
        if job.id in self.graph.needs:
            return [self.jobs[need] for need in self.graph.needs[job.id]]
        return [each for each in self.jobs.values() if each.stage < job.stage]
