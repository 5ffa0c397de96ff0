"""A scenario played against the pure core: rows in memory, no time, no wire."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from coordinator.api.expansions import Expansions
from coordinator.api.new_runs import new_run
from coordinator.core.matching import Ability
from coordinator.core.stages import Decision
from coordinator.core.states import RUN_OVER
from coordinator.dispatch.bells import LocalBells
from coordinator.dispatch.port import Hello, Wake, Want
from coordinator.errors import Conflict
from coordinator.store.expanding import DueMatrix
from headrace.pipeline.fragments import Expanded
from headrace.v1 import common_pb2 as common
from headrace.v1 import run_pb2 as wire
from tests.harness.memory_extending import MemoryExtensions
from tests.harness.memory_rows import Rows
from tests.harness.memory_runs import MemoryRuns
from tests.harness.memory_store import MemoryDispatch
from tests.harness.scenario_run import SceneRun, at_once
from tests.harness.scenarios import Scenario

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
FIRST = ""
"""What the first run is called."""


def seconds(text: str) -> int:
    """Of a duration like `4d`."""
    return int(text[:-1]) * _UNITS[text[-1]]


async def _here(plan: Callable[[DueMatrix], Expanded], due: DueMatrix) -> Expanded:
    return plan(due)


@dataclass
class _Bells:
    """Remember whether somebody has to look at the groups again."""

    groups: bool = False

    def ring(self, wake: Wake) -> None:
        self.groups = self.groups or wake.groups

    def answered(self) -> bool:
        """Whether they rang, which is then over."""
        rang, self.groups = self.groups, False
        return rang


@dataclass
class Scene:
    """The runs of a scenario over one store, with an agent that takes all that there is."""

    scenario: Scenario
    now: float = 0.0
    runs: dict[str, SceneRun] = field(default_factory=dict)
    peak: Counter[str] = field(default_factory=Counter)
    """By job, how many of it ran at a time, in all runs."""
    refused: str = ""

    def __post_init__(self) -> None:
        self.rows = Rows(lambda: self.now)
        self.bells = _Bells()
        tokens = iter(range(1 << 30))
        self.dispatch = MemoryDispatch(self.rows, self.bells, lambda: next(tokens).to_bytes(16, "big"))
        self.people = MemoryRuns(self.rows, self.bells)
        growing = MemoryExtensions(self.rows, self.bells)
        self.expansions = Expansions(growing, LocalBells(), run_url="", aside=_here)
        self.requests = iter(f"request-{number}" for number in range(1 << 30))

    @property
    def first(self) -> SceneRun:
        """The run that a scenario begins with."""
        return self.runs[FIRST]

    def begin(self) -> None:
        """Creates the first run, and lets agents work until nothing more can happen by itself."""
        abilities = tuple(Ability(k, frozenset({"full", "none"}), hard_limits=True) for k in ("docker", "bubblewrap"))
        hello = Hello("a", "i", "1", "default", {}, 10_000, abilities)
        at_once(self.dispatch.open_session(hello, "s", "r"))
        self._start(FIRST, self.scenario)
        self.settle()

    def _start(self, name: str, scenario: Scenario) -> None:
        run = SceneRun(scenario, self.rows, self.dispatch)
        for pool in {job.pool for job in run.plan.jobs} - set(self.rows.pools):
            self.rows.pools[pool] = type(self.rows.pools["default"])()
        event = scenario.event
        source = common.Source(repository="r", commit="0" * 40, path="/r", branch=event.branch, tag=event.tag)
        request = wire.CreateRunRequest(
            source=source, event=event.type, pipeline_text=scenario.pipeline, pipeline_file="pipeline.yml",
            included=scenario.files, parameters=event.params,
        )  # fmt: skip
        run.id, ids = at_once(self.people.allocate(len(run.plan.jobs)))
        at_once(self.people.create(next(self.requests), new_run(request, run.plan, run.id, ids, "")))
        self.runs[name] = run

    def play(self) -> None:
        """From the creation of the first run to the last of what people do."""
        self.begin()
        for action in self.scenario.actions:
            self.act(action)

    def settle(self) -> None:
        """Lets agents work until nothing more can happen by itself."""
        while True:
            at_once(self.dispatch.release_due())
            expanded = at_once(self.expansions.once())
            for run in self.runs.values() if expanded else ():
                run.learn()
            want = [Want("s", 10_000, 1)]
            claimed = at_once(self.dispatch.claim(sorted(self.rows.classes), want))
            by_id = {run.id: run for run in self.runs.values()}
            for each in claimed:
                by_id[each.run_id].start(each)
            self.peak |= Counter(run.planned(each).name for run, each in self._running())
            ended = [each for run, each in list(self._running()) if run.ends(each)]
            if not claimed and not ended and not expanded and not self.bells.answered():
                return

    def _running(self) -> Iterator[tuple[SceneRun, Any]]:
        return ((run, each) for run in self.runs.values() for each in run.running.values())

    # People and time

    def act(self, action: Any) -> None:
        """Does it, and lets agents work until nothing more can happen by itself."""
        self.refused = ""
        try:
            self._do(action)
        except Conflict as error:
            self.refused = str(error)
        self.settle()

    def _do(self, action: Any) -> None:
        if action == "cancel":
            action = {"cancel": FIRST}
        run = self.runs[action.get("of", FIRST)]
        match action:
            case {"start": name}:
                self._start(name, self.scenario.further(action))
            case {"cancel": name}:
                at_once(self.people.cancel(next(self.requests), self.runs[name].id, "canceled by a person"))
            case {"approve": stage} | {"reject": stage}:
                decision = Decision(action.get("as", "client"), "approve" in action, action.get("comment", ""))
                at_once(self.people.decide(next(self.requests), run.id, stage or "", decision))
            case {"retry": job}:
                at_once(self.people.retry(next(self.requests), run.id, job or ""))
            case {"end": outcomes}:
                run.end(outcomes)
            case {"wait": text}:
                self.now += seconds(text)
                at_once(self.dispatch.release_due())
            case _:
                raise AssertionError(f"{action!r} is nothing that can be done")

    # What came of it

    def defects(self) -> list[str]:
        """What must never be, of all runs and of their groups."""
        found = [defect for run in self.runs.values() for defect in run.defects()]
        for key in {each.key for each in self.rows.members}:
            inside = [each for each in self.rows.members if each.key == key and each.entered]
            if len(inside) > max((each.group.limit for each in inside), default=0):
                found.append(f"{len(inside)} are in the group {key}")
        for each in self.rows.members:
            job = self.rows.jobs[each.job_id].job if each.job_id is not None else None
            if job.over if job else self.rows.runs[each.run_id].run.state in RUN_OVER:
                found.append(f"{job.key if job else each.run_id} is over and in the group {each.key}")
        return found
