"""A scenario played against the pure core: rows in memory, no time, no wire."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from coordinator.api.new_runs import new_run
from coordinator.core.job import Job, Place, Turn
from coordinator.core.matching import Ability
from coordinator.core.stages import Decision
from coordinator.core.states import RUN_OVER, AttemptState, Cause, JobState
from coordinator.dispatch.port import Claimed, EndedReport, Hello, StartedReport, Wake, Want
from coordinator.errors import Conflict
from headrace.pipeline import PlannedJob, stepping
from headrace.pipeline.plan import RunStep
from headrace.pipeline.stepping import Ended, Facts, Rules, Skip, StepOutcome
from headrace.pipeline.values import EvaluationFailed, Text, rendered, text_of
from headrace.v1 import common_pb2 as common
from headrace.v1 import run_pb2 as wire
from tests.harness.memory_rows import Rows
from tests.harness.memory_runs import MemoryRuns
from tests.harness.memory_store import MemoryDispatch
from tests.harness.scenarios import Scenario, Told, Try

T = TypeVar("T")
_WHOLE = {
    "timed_out": (AttemptState.TIMED_OUT, Cause.JOB_TIMED_OUT),
    "oom": (AttemptState.FAILED, Cause.OOM),
    "errored": (AttemptState.ERRORED, Cause.ERRORED),
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> int:
    """Of a duration like `4d`."""
    return int(text[:-1]) * _UNITS[text[-1]]


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
class _Played:
    """What came of an attempt so far. `hangs`: one of its steps has not ended, and nobody has ended it."""

    ended: list[Ended] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)
    exit_code: int | None = None
    log: str = ""
    sentence: str = ""
    hangs: bool = False


@dataclass
class Scene:
    """A run of a scenario, with an agent that does what the scenario tells."""

    scenario: Scenario
    now: float = 0.0
    running: dict[int, Claimed] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    peak: Counter[str] = field(default_factory=Counter)
    steps: dict[str, list[str]] = field(default_factory=dict)
    found: dict[str, dict[str, str]] = field(default_factory=dict)
    """By key, what the first step finds in its environment."""
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

    def begin(self) -> None:
        """Creates the run, and lets agents work until nothing more can happen by itself."""
        abilities = tuple(Ability(k, frozenset({"full", "none"}), hard_limits=True) for k in ("docker", "bubblewrap"))
        hello = Hello("a", "i", "1", "default", {}, 10_000, abilities)
        at_once(self.dispatch.open_session(hello, "s", "r"))
        event = self.scenario.event
        source = common.Source(repository="r", commit="0" * 40, path="/r", branch=event.branch, tag=event.tag)
        request = wire.CreateRunRequest(source=source, event=event.type)
        run_id, ids = at_once(self.runs.allocate(len(self.plan.jobs)))
        self.run_id = run_id
        at_once(self.runs.create(next(self.requests), new_run(request, self.plan, run_id, ids, "")))
        self.settle()

    def play(self) -> None:
        """From the creation of the run to the last of what people do."""
        self.begin()
        for action in self.scenario.actions:
            self.act(action)

    def settle(self) -> None:
        """Lets agents work until nothing more can happen by itself."""
        while True:
            at_once(self.dispatch.release_due())
            want = [Want("s", 10_000, 1)]
            claimed = at_once(self.dispatch.claim(sorted(self.rows.classes), want))
            for each in claimed:
                self._begin(each)
            self.peak |= Counter(self._job(each).name for each in self.running.values())
            ended = [each for each in list(self.running.values()) if self._ends(each)]
            if not claimed and not ended:
                return

    # Agents

    def _job(self, claimed: Claimed) -> PlannedJob:
        return self.jobs[self.rows.jobs[claimed.job_id].job.key]

    def _begin(self, claimed: Claimed) -> None:
        job = self._job(claimed)
        self.attempts[job.key] += 1
        at_once(self.dispatch.report([StartedReport(f"b{claimed.attempt_id}", claimed.attempt_id, claimed.token)]))
        self.running[claimed.job_id] = claimed

    def _ends(self, claimed: Claimed, *, as_told: str = "") -> bool:
        job = self._job(claimed)
        told = self.scenario.told(job, self.attempts[job.key])
        lease = self.rows.leases.get(claimed.attempt_id)
        canceled = lease is not None and bool(lease.cancel)
        whole = as_told or told.whole
        if whole == "lost":
            del self.running[claimed.job_id]
            self.rows.gone({claimed.attempt_id: "its agent fell silent"})
            return True
        try:
            played = self._play(job, told, claimed, as_told=as_told, canceled=canceled)
        except EvaluationFailed as error:
            self._report(claimed, AttemptState.FAILED, Cause.EXPRESSION_FAILED, _Played(sentence=str(error)), {})
            return True
        if played.hangs:
            return False
        self.steps[job.key] = [each.outcome.value for each in played.ended]
        if whole in _WHOLE:
            self._report(claimed, *_WHOLE[whole], _Played(sentence=whole), {})
            return True
        self._conclude(job, claimed, played, canceled=canceled)
        return True

    def _conclude(self, job: PlannedJob, claimed: Claimed, played: _Played, *, canceled: bool) -> None:
        """The outcome follows from the steps, and so do the outputs."""
        outcome, cause = AttemptState.PASSED, Cause.NONE
        if any(each.outcome is StepOutcome.FAILED and not each.allowed for each in played.ended):
            outcome, cause = AttemptState.FAILED, Cause.EXPRESSION_FAILED if played.sentence else Cause.STEP_FAILED
        values = {**self._values(job, claimed), "steps": stepping.seen(played.ended)}
        outputs = {}
        for name, text in job.outputs.items():
            try:
                outputs[name] = rendered(text, values)
            except EvaluationFailed as error:
                if outcome is AttemptState.PASSED:
                    outcome, cause, played.sentence = AttemptState.FAILED, Cause.EXPRESSION_FAILED, str(error)
        if canceled:
            outcome, cause = AttemptState.CANCELED, Cause.CANCELED
        self._report(claimed, outcome, cause, played, outputs)

    def _report(
        self, claimed: Claimed, outcome: AttemptState, cause: Cause, played: _Played, outputs: Mapping[str, Any]
    ) -> None:
        del self.running[claimed.job_id]
        rules = self._job(claimed).retry
        patterns = [rule.pattern for rule in rules.on if rule.pattern] if rules else []
        report = EndedReport(
            f"e{claimed.attempt_id}", claimed.attempt_id, claimed.token, outcome, cause, played.sentence, b"",
            exit_code=played.exit_code, outputs=json.dumps(outputs) if outputs else "",
            log_patterns=frozenset(each for each in patterns if re.search(each, played.log)),
        )  # fmt: skip
        at_once(self.dispatch.report([report]))

    def _values(self, job: PlannedJob, claimed: Claimed) -> dict[str, Any]:
        """What expressions see: the job's own variables, too."""
        known = {name: value for name, value in job.env.items() if isinstance(value, str)}
        needs = json.loads(claimed.needs or b"{}")
        values = {**job.context, "env": known, "needs": needs, "run": {"id": self.run_id, "url": ""}}
        return {**values, "env": _evaluated(job.env, values)}

    def _play(self, job: PlannedJob, told: Told, claimed: Claimed, *, as_told: str, canceled: bool) -> _Played:
        """All steps in order, as an agent would."""
        played = _Played()
        values = self._values(job, claimed)
        for number, step in enumerate(job.steps):
            seen = {**values, "steps": stepping.seen(played.ended)}
            rules = Rules(step.number, step.id, step.condition, step.allow_failure, name=step.name)
            facts = Facts(tuple(played.ended), canceled=played.facts.canceled)
            try:
                decision = stepping.decide(rules, facts, seen, {"hash": lambda *_: ""})
                env = _evaluated(step.env, seen) if isinstance(step, RunStep) else {}
            except EvaluationFailed as error:
                played.ended.append(Ended(rules, StepOutcome.FAILED))
                played.sentence = played.sentence or str(error)
                continue
            if isinstance(decision, Skip):
                played.ended.append(Ended(rules, StepOutcome.SKIPPED))
                continue
            if number == 0:
                given = common.JobSpec.FromString(claimed.spec).given_env
                self.found[job.key] = {**values["env"], **env, **given}
            tried = self._tried(told, job, number, facts)
            if tried.hangs:
                if not canceled and not as_told:
                    played.hangs = True
                    return played
                if not as_told:
                    played.ended.append(Ended(rules, StepOutcome.CANCELED))
                    played.facts = Facts(canceled=True)
                    continue
                tried = Try() if as_told in _WHOLE else Try.told(as_told)
            failed = tried.exit_code != 0
            outcome = StepOutcome.FAILED if failed else StepOutcome.PASSED
            allowed = failed and step.allow_failure
            played.ended.append(Ended(rules, outcome, allowed, dict(tried.outputs)))
            if failed and not allowed and played.exit_code is None:
                played.exit_code, played.log = tried.exit_code, tried.says
        return played

    def _tried(self, told: Told, job: PlannedJob, number: int, facts: Facts) -> Try:
        """The try of a step that decides: the first that does not fail, or the last that there is."""
        tries, most = told.tries(job, number), 1 + (retry.max if (retry := job.steps[number].retry) else 0)
        allowed = tries[: 1 if facts.halted else most]
        found = next((each for each in allowed if not each.exit_code), None)
        return found or (allowed[-1] if len(tries) >= most else tries[-1])

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
                    self._ends(claimed, as_told=told)
            case {"wait": text}:
                self.now += seconds(text)
                at_once(self.dispatch.release_due())
            case _:
                raise AssertionError(f"{action!r} is nothing that can be done")

    # What came of it

    def states(self) -> dict[str, str]:
        """By key, the job's state."""
        return {job.key: job.state.value for job in self._all()}

    def sentence(self, key: str) -> str:
        """What is said of a job."""
        return next(job.sentence for job in self._all() if job.key == key)

    def outputs(self, key: str) -> dict[str, Any]:
        """Of a job's newest attempt."""
        row = next(row for row in self.rows.jobs.values() if row.job.key == key)
        found: dict[str, Any] = json.loads(row.outputs or "{}")
        return found

    def _all(self) -> list[Job]:
        return [self.rows.jobs[key].job for key in self.rows.runs[self.run_id].jobs]

    def defects(self) -> list[str]:
        """What must never be: jobs that nobody will ever wake, a run that does not know that it is over."""
        row, jobs = self.rows.runs[self.run_id], self._all()
        found = [f"{job.key} waits for nothing" for job in jobs if not self._has_a_reason(job)]
        if (row.run.state in RUN_OVER) != all(job.over for job in jobs):
            found.append(f"the run is {row.run.state}, and its jobs are {self.states()}")
        if any(door.is_asked for door in row.doors.values()) and not any(job.awaits and not job.over for job in jobs):
            found.append("a person is asked, and nobody waits for the answer")
        return found

    def _has_a_reason(self, job: Job) -> bool:
        """Whether somebody or something will end what a job waits for."""
        row = self.rows.runs[self.run_id]
        if job.awaits and job.state in (JobState.WAITING, JobState.BLOCKED):
            return row.doors[job.stage].is_asked
        if job.state is not JobState.WAITING:
            return True
        if job.unfinished == 0:
            return False
        group = row.groups.get(job.rules.group)
        if job.place is Place.HELD:
            return group is not None and group.active >= group.max_parallel > 0
        if job.turn in (Turn.WAITS, Turn.RUN_WAITS):  # somebody is in the group that it waits for
            return any(each.entered for each in self.rows.members)
        if self.rows.jobs[job.id].due_at is not None:
            return True
        needs = row.graph.needs.get(job.id, ())
        earlier = [each for each in self._all() if row.graph.waits_for_gate(job) and each.stage < job.stage]
        return any(not each.over for each in (*(self.rows.jobs[key].job for key in needs), *earlier))


def _evaluated(env: Mapping[str, Text], values: Mapping[str, Any]) -> dict[str, str]:
    return {name: text_of(value, values) for name, value in env.items()}
