"""Scenarios: a pipeline file beside what people and agents do, and what must come of it. Data, no code.

```yaml
# tests/scenarios/NNN_name/expected.yml; all but `about` and `jobs` may be left out
about: One sentence of the manual.
event: {type: push, branch: main}      # manual, if left out; `params: {K: V}`
results:                               # by job (all its cells) or key (one); what is not named passes
  unit: failed      # passed failed timed_out oom errored lost canceled, `exit:3`; `running`: until it is ended
  flaky: [failed, passed]              # by attempt; the last one holds for all further ones
  ver: {outputs: {version: "1.2"}}
  tests: {steps: {lint: failed, 1: {outputs: {a: b}}}}     # by id or number; the job's outcome follows from its steps
then:                                  # one after another, each when nothing more can happen by itself
  - cancel
  - {approve: release}                 # or `reject:`; `as: ana` says who
  - {retry: unit}                      # "" for all that did not pass
  - {end: {slow: passed}}              # of a job that is `running`
  - {wait: 4d}
plan: [wheel, "unit[python=3.11]"]     # keys in order
run: passed                            # pending running blocked passed failed canceled
warnings: 1
jobs: {wheel: passed}                  # every job of the plan
says: {unit: part of its sentence}
tries: {flaky: 2}
at_most: {unit: 2}                     # cells of it that ran at a time
refused: part of the sentence that the last of `then` is refused with
```
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML

from coordinator.api.new_runs import new_run
from coordinator.core.matching import Ability
from coordinator.core.stages import Decision
from coordinator.core.states import AttemptState, Cause, JobState
from coordinator.dispatch.port import Claimed, EndedReport, Hello, StartedReport, Wake, Want
from coordinator.errors import Conflict
from headrace.pipeline import Event, Plan, PlannedJob, expand, load, stepping
from headrace.pipeline.stepping import Ended, Facts, Rules, Skip, StepOutcome
from headrace.pipeline.values import EvaluationFailed, rendered
from headrace.v1 import common_pb2 as common
from headrace.v1 import run_pb2 as wire
from tests.harness.memory_rows import Rows
from tests.harness.memory_runs import MemoryRuns
from tests.harness.memory_store import MemoryDispatch

FOLDER = Path(__file__).parents[1] / "scenarios"
T = TypeVar("T")
_CAUSES = {
    "passed": (AttemptState.PASSED, Cause.NONE),
    "failed": (AttemptState.FAILED, Cause.STEP_FAILED),
    "timed_out": (AttemptState.TIMED_OUT, Cause.JOB_TIMED_OUT),
    "oom": (AttemptState.FAILED, Cause.OOM),
    "errored": (AttemptState.ERRORED, Cause.ERRORED),
    "canceled": (AttemptState.CANCELED, Cause.CANCELED),
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Scenario:
    """One folder: the pipeline's text, files beside it that it may include, and what is expected."""

    name: str
    pipeline: bytes
    files: Mapping[str, bytes]
    expected: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Scenario:
        files = {each.name: each.read_bytes() for each in folder.iterdir() if each.suffix == ".yml"}
        expected = YAML(typ="safe").load(files.pop("expected.yml"))
        return cls(folder.name, files.pop("pipeline.yml"), files, expected)

    @property
    def event(self) -> Event:
        return Event(**{"type": "manual", "branch": "main", **self.expected.get("event", {})})

    def plan(self) -> Plan:
        return expand(load(self.pipeline, "pipeline.yml", self.files.get), self.event)


def scenarios() -> list[Path]:
    """All folders of scenarios."""
    return sorted(each for each in FOLDER.iterdir() if (each / "expected.yml").is_file())


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waits")


class _NoBells:
    def ring(self, wake: Wake) -> None:
        del wake


@dataclass
class Scene:
    """A run of a scenario against the pure core: rows in memory, no time, no wire."""

    scenario: Scenario
    now: float = 0.0
    running: dict[int, Claimed] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    peak: Counter[str] = field(default_factory=Counter)
    refused: str = ""

    def __post_init__(self) -> None:
        self.plan = self.scenario.plan()
        self.jobs = {job.key: job for job in self.plan.jobs}
        self.rows = Rows(lambda: self.now)
        tokens = iter(range(1 << 30))
        self.dispatch = MemoryDispatch(self.rows, _NoBells(), lambda: next(tokens).to_bytes(16, "big"))
        self.runs = MemoryRuns(self.rows, _NoBells())
        for pool in {job.pool for job in self.plan.jobs} - {"default"}:
            self.rows.pools[pool] = type(self.rows.pools["default"])()
        self.requests = iter(f"request-{number}" for number in range(1 << 30))

    def play(self) -> None:
        """From the creation of the run to the last of what people do."""
        abilities = tuple(Ability(k, frozenset({"full", "none"}), hard_limits=True) for k in ("docker", "bubblewrap"))
        hello = Hello("a", "i", "1", "default", {}, 10_000, abilities)
        at_once(self.dispatch.open_session(hello, "s", "r"))
        source = common.Source(repository="r", commit="0" * 40, path="/r", branch=self.scenario.event.branch)
        request = wire.CreateRunRequest(source=source, event=self.scenario.event.type)
        run_id, ids = at_once(self.runs.allocate(len(self.plan.jobs)))
        self.run_id = run_id
        at_once(self.runs.create(next(self.requests), new_run(request, self.plan, run_id, ids, "")))
        self.settle()
        for action in self.scenario.expected.get("then", ()):
            self.refused = ""
            self._act(action)
            self.settle()

    def settle(self) -> None:
        """Lets agents work until nothing more can happen by itself."""
        while True:
            at_once(self.dispatch.release_due())
            want = [Want("s", 10_000, 1)]
            claimed = at_once(self.dispatch.claim(sorted(self.rows.classes), want))
            begun = [each for each in claimed if self._begins(each)]
            counted = Counter(self._job(each).name for each in self.running.values())
            self.peak |= counted
            ended = [each for each in list(self.running.values()) if self._ends(each)]
            if not begun and not ended:
                return

    # Agents

    def _job(self, claimed: Claimed) -> PlannedJob:
        return self.jobs[self.rows.jobs[claimed.job_id].job.key]

    def _begins(self, claimed: Claimed) -> bool:
        key = self.rows.jobs[claimed.job_id].job.key
        self.attempts[key] += 1
        at_once(self.dispatch.report([StartedReport(f"b{claimed.attempt_id}", claimed.attempt_id, claimed.token)]))
        self.running[claimed.job_id] = claimed
        return True

    def _ends(self, claimed: Claimed) -> bool:
        lease = self.rows.leases.get(claimed.attempt_id)
        told = self._told(self._job(claimed), self.rows.jobs[claimed.job_id].job.key)
        if lease is not None and lease.cancel:
            told = "canceled"
        if told == "running":
            return False
        self._end(claimed, told)
        return True

    def _end(self, claimed: Claimed, told: Any) -> None:
        del self.running[claimed.job_id]
        if told == "lost":
            self.rows.gone({claimed.attempt_id: "its agent fell silent"})
            return
        outcome, cause, code, sentence, outputs = self._outcome(self._job(claimed), told, claimed)
        report = EndedReport(
            f"e{claimed.attempt_id}", claimed.attempt_id, claimed.token, outcome, cause, sentence, b"",
            exit_code=code, outputs=json.dumps(outputs) if outputs else "",
        )  # fmt: skip
        at_once(self.dispatch.report([report]))

    def _told(self, job: PlannedJob, key: str) -> Any:
        results = self.scenario.expected.get("results", {})
        told = results.get(key, results.get(job.name, "passed"))
        return told[min(self.attempts[key], len(told)) - 1] if isinstance(told, list) else told

    def _outcome(
        self, job: PlannedJob, told: Any, claimed: Claimed
    ) -> tuple[AttemptState, Cause, int | None, str, Mapping[str, Any]]:
        if isinstance(told, str) and told.startswith("exit:"):
            return AttemptState.FAILED, Cause.STEP_FAILED, int(told[5:]), f"exit code {told[5:]}", {}
        if isinstance(told, str) and told != "passed":
            return *_CAUSES[told], None, told, {}
        steps = told.get("steps", {}) if isinstance(told, Mapping) else {}
        try:
            ended = self._steps(job, steps, claimed)
        except EvaluationFailed as error:
            return AttemptState.FAILED, Cause.EXPRESSION_FAILED, None, str(error), {}
        failed = any(each.outcome is StepOutcome.FAILED and not each.allowed for each in ended)
        given = told.get("outputs", {}) if isinstance(told, Mapping) else {}
        values = {**self._values(job, claimed), "steps": stepping.seen(ended)}
        try:
            outputs = given or {name: rendered(text, values) for name, text in job.outputs.items()}
        except EvaluationFailed as error:
            if not failed:
                return AttemptState.FAILED, Cause.EXPRESSION_FAILED, None, str(error), {}
            outputs = {}
        word = "failed" if failed else told.get("outcome", "passed") if isinstance(told, Mapping) else "passed"
        return *_CAUSES[word], 1 if failed else None, word, outputs

    def _values(self, job: PlannedJob, claimed: Claimed) -> dict[str, Any]:
        env = {name: value for name, value in job.env.items() if isinstance(value, str)}
        needs = json.loads(claimed.needs or b"{}")
        return {**job.context, "env": env, "needs": needs, "run": {"id": self.run_id, "url": ""}}

    def _steps(self, job: PlannedJob, told: Mapping[Any, Any], claimed: Claimed) -> list[Ended]:
        ended: list[Ended] = []
        for step in job.steps:
            rules = Rules(step.number, step.id, step.condition, step.allow_failure, name=step.name)
            values = {**self._values(job, claimed), "steps": stepping.seen(ended)}
            decision = stepping.decide(rules, Facts(tuple(ended)), values, {"hash": lambda *_: ""})
            if isinstance(decision, Skip):
                ended.append(Ended(rules, StepOutcome.SKIPPED))
                continue
            said = told.get(step.id, told.get(step.number, "passed"))
            tries = said if isinstance(said, list) else [said]
            most = 1 + (step.retry.max if step.retry else 0)
            said = next((each for each in tries[:most] if each != "failed"), tries[min(most, len(tries)) - 1])
            outputs = said.get("outputs", {}) if isinstance(said, Mapping) else {}
            word = said.get("outcome", "passed") if isinstance(said, Mapping) else said
            outcome = StepOutcome(word)
            ended.append(Ended(rules, outcome, outcome is StepOutcome.FAILED and step.allow_failure, outputs))
        return ended

    # People and time

    def _act(self, action: Any) -> None:
        try:
            self._do(action)
        except Conflict as error:
            self.refused = str(error)

    def _do(self, action: Any) -> None:
        if action == "cancel":
            at_once(self.runs.cancel(next(self.requests), self.run_id, "canceled by a person"))
            return
        match action:
            case {"approve": stage} | {"reject": stage}:
                decision = Decision(action.get("as", "client"), "approve" in action, action.get("comment", ""))
                at_once(self.runs.decide(next(self.requests), self.run_id, stage or "", decision))
            case {"retry": job}:
                at_once(self.runs.retry(next(self.requests), self.run_id, job or ""))
            case {"end": outcomes}:
                for key, told in outcomes.items():
                    (claimed,) = [each for each in self.running.values() if self._job(each).key == key]
                    self._end(claimed, told)
            case {"wait": text}:
                self.now += int(text[:-1]) * _UNITS[text[-1]]
                at_once(self.dispatch.release_due())
            case _:
                raise AssertionError(f"{action!r} is nothing that can be done")

    # What came of it

    def states(self) -> dict[str, str]:
        return {self.rows.jobs[key].job.key: self.rows.jobs[key].job.state.value for key in self._ids()}

    def sentence(self, key: str) -> str:
        return next(self.rows.jobs[i].job.sentence for i in self._ids() if self.rows.jobs[i].job.key == key)

    def _ids(self) -> tuple[int, ...]:
        return self.rows.runs[self.run_id].jobs

    def waiting_for_nothing(self) -> list[str]:
        """Jobs that nobody will ever wake: there must be none."""
        jobs = (self.rows.jobs[key].job for key in self._ids())
        return [job.key for job in jobs if job.state is JobState.WAITING and not job.unfinished]
