"""One run of a scenario against the pure core: an agent that does what the scenario tells, and what came of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from coordinator.core.job import Job, Place, Turn
from coordinator.core.states import RUN_OVER, AttemptState, Cause, JobState
from coordinator.dispatch.port import Claimed, EndedReport, StartedReport
from headrace.pipeline import PlannedJob, stepping
from headrace.pipeline.plan import RunStep
from headrace.pipeline.stepping import Ended, Facts, Rules, Skip, StepOutcome
from headrace.pipeline.values import EvaluationFailed, Text, rendered, text_of
from headrace.v1 import common_pb2 as common
from tests.harness.memory_rows import Rows
from tests.harness.memory_store import MemoryDispatch
from tests.harness.scenarios import Scenario, Told, Try

T = TypeVar("T")
_WHOLE = {
    "timed_out": (AttemptState.TIMED_OUT, Cause.JOB_TIMED_OUT),
    "oom": (AttemptState.FAILED, Cause.OOM),
    "errored": (AttemptState.ERRORED, Cause.ERRORED),
    "service_failed": (AttemptState.FAILED, Cause.SERVICE_FAILED),
}


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waits")


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
class SceneRun:
    """A run of a scenario. `scenario`: what is told of it, and expected."""

    scenario: Scenario
    rows: Rows
    dispatch: MemoryDispatch
    id: int = 0
    running: dict[int, Claimed] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    steps: dict[str, list[str]] = field(default_factory=dict)
    found: dict[str, dict[str, str]] = field(default_factory=dict)
    """By key, what the first step finds in its environment."""

    def __post_init__(self) -> None:
        self.plan = self.scenario.plan()
        self.jobs = {job.key: job for job in self.plan.jobs}

    def learn(self) -> None:
        """Takes in the cells of matrices that have become known."""
        lists = self.rows.runs[self.id].lists
        known = {self.rows.jobs[key].job.key: json.loads(told) for key, (_, told) in lists.items()}
        self.jobs |= {job.key: job for job in self.scenario.plan(known).jobs}

    # Agents

    def planned(self, claimed: Claimed) -> PlannedJob:
        """The job that was claimed."""
        return self.jobs[self.rows.jobs[claimed.job_id].job.key]

    def start(self, claimed: Claimed) -> None:
        """An agent begins to work on it."""
        self.attempts[self.planned(claimed).key] += 1
        at_once(self.dispatch.report([StartedReport(f"b{claimed.attempt_id}", claimed.attempt_id, claimed.token)]))
        self.running[claimed.job_id] = claimed

    def end(self, outcomes: Mapping[str, str]) -> None:
        """Ends what hangs, as told by key."""
        for key, told in outcomes.items():
            (claimed,) = [each for each in self.running.values() if self.planned(each).key == key]
            self.ends(claimed, as_told=told)

    def ends(self, claimed: Claimed, *, as_told: str = "") -> bool:
        """Plays all of an attempt that can be played by now. Whether it has ended."""
        job = self.planned(claimed)
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
        rules = self.planned(claimed).retry
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
        values = {**job.context, "env": known, "needs": needs, "run": {"id": self.id, "url": ""}}
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

    # What came of it

    @property
    def state(self) -> str:
        """Of the run itself."""
        return self.rows.runs[self.id].run.state.value

    def states(self) -> dict[str, str]:
        """By key, the state of each job that is shown."""
        with_cells = {job.rules.expander for job in self.all}
        shown = (JobState.FAILED, JobState.SKIPPED, JobState.CANCELED)
        return {
            job.key: job.state.value
            for job in self.all
            if not (job.rules.expands and job.key in with_cells) or job.state in shown
        }

    def sentence(self, key: str) -> str:
        """What is said of a job."""
        return next(job.sentence for job in self.all if job.key == key)

    def outputs(self, key: str) -> dict[str, Any]:
        """Of a job's newest attempt."""
        row = next(row for row in self.rows.jobs.values() if row.job.key == key)
        found: dict[str, Any] = json.loads(row.outputs or "{}")
        return found

    @property
    def all(self) -> list[Job]:
        """Its jobs, in order."""
        return [self.rows.jobs[key].job for key in self.rows.runs[self.id].jobs]

    def defects(self) -> list[str]:
        """What must never be: jobs that nobody will ever wake, a run that does not know that it is over."""
        row, jobs = self.rows.runs[self.id], self.all
        found = [f"{job.key} waits for nothing" for job in jobs if not self._has_a_reason(job)]
        if (row.run.state in RUN_OVER) != all(job.over for job in jobs):
            found.append(f"the run is {row.run.state}, and its jobs are {self.states()}")
        if any(door.is_asked for door in row.doors.values()) and not any(job.awaits and not job.over for job in jobs):
            found.append("a person is asked, and nobody waits for the answer")
        return found

    def _has_a_reason(self, job: Job) -> bool:
        """Whether somebody or something will end what a job waits for."""
        row = self.rows.runs[self.id]
        if job.awaits and job.state in (JobState.WAITING, JobState.BLOCKED):
            return row.doors[job.stage].is_asked
        if job.waits_for_its_door and not self.rows.has_place(self.id):
            return self._group_is_full(None)
        if job.state is not JobState.WAITING:
            return True
        if job.unfinished == 0:
            return False
        group = row.groups.get(job.rules.group)
        if job.place is Place.HELD:
            return group is not None and group.active >= group.max_parallel > 0
        if job.turn in (Turn.WAITS, Turn.RUN_WAITS):
            return self._group_is_full(job.id if job.turn is Turn.WAITS else None)
        if self.rows.jobs[job.id].due_at is not None:
            return True
        needs = row.graph.needs.get(job.id, ())
        earlier = [each for each in self.all if row.graph.waits_for_gate(job) and each.stage < job.stage]
        return any(not each.over for each in (*(self.rows.jobs[key].job for key in needs), *earlier))

    def _group_is_full(self, job_id: int | None) -> bool:
        """Whether it stands before a group in which somebody is."""
        mine = [each for each in self.rows.members if (each.run_id, each.job_id) == (self.id, job_id)]
        return any(each.key == me.key and each.entered for me in mine for each in self.rows.members)


def _evaluated(env: Mapping[str, Text], values: Mapping[str, Any]) -> dict[str, str]:
    return {name: text_of(value, values) for name, value in env.items()}
