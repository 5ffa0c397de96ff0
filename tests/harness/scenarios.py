"""Scenarios: a pipeline file beside what people and agents do, and what must come of it. Data, no code.

```yaml
# tests/scenarios/NNN_name/expected.yml; all but `about` and `jobs` may be left out
about: One sentence of the manual.
event: {type: push, branch: main}      # manual, if left out; `params: {K: V}`, `pull_request: {number, head, base}`
results:                               # by key (one job) or job (all its cells); what is not named passes
  unit: failed      # its first step; or passed, `exit:3`, `log:text` (failed, with that in its log), `running`: until
                    # it is ended. Of the whole attempt: timed_out oom errored lost service_failed
  flaky: [failed, passed]              # by attempt; the last one holds for all further ones
  tests: {steps: {lint: failed, 1: {outputs: {a: b}}, 2: [failed, passed]}}    # by id or number; a list: by try
then:                                  # one after another, each when nothing more can happen by itself
  - cancel
  - {approve: release}                 # or `reject:`; `as: ana` says who
  - {retry: unit}                      # "" for all that did not pass
  - {end: {slow: passed}}              # of a job that is `running`
  - {wait: 4d}
  - {start: second}                    # another run of the pipeline; its own `event` and `results`, if they differ
  - {end: {slow: passed}, of: second}  # all of the above is done to a further run by `of: NAME`
  - {cancel: second}
plan: [wheel, "unit[python=3.11]"]     # keys in order
warns: part of a warning of the plan
problem: part of the sentence that the run is refused with; `jobs` is empty then
run: passed                            # pending running blocked passed failed canceled
warnings: 1
jobs: {wheel: passed}                  # every job of the plan, and every cell that came later
says: {unit: part of its sentence}
steps: {unit: [passed, failed, skipped]}   # of its newest attempt; canceled, too
outputs: {wheel: {version: "1.2"}}
env: {unit: {V: main}}                 # what the first step of its newest attempt finds; null: no such variable
tries: {flaky: 2}
at_most: {unit: 2}                     # of it that ran at a time: its cells, in all runs
refused: part of the sentence that the last of `then` is refused with
runs:                                  # what comes of further runs: `run` to `tries` of the above
  second: {run: passed, jobs: {wheel: passed}}
```
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from headrace.pipeline import Event, Plan, PlannedJob, expand, load
from headrace.pipeline.event import PullRequest
from headrace.pipeline.late_matrix import Lists

FOLDER = Path(__file__).parents[1] / "scenarios"
_OF_A_RUN = "run warnings jobs says steps outputs env tries"
KEYS = frozenset(f"about event results then plan warns problem at_most refused runs {_OF_A_RUN}".split())
KEYS_OF_A_RUN = frozenset(_OF_A_RUN.split())
WHOLE = frozenset({"timed_out", "oom", "errored", "lost", "service_failed"})
"""Words for an attempt that say nothing of its steps."""


@dataclass(frozen=True, slots=True)
class Try:
    """What one try of a step does. `exit_code` 0: it passes; `hangs`: until it is ended, or canceled."""

    exit_code: int = 0
    says: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False

    @classmethod
    def told(cls, told: Any) -> Try:
        """From the scenario's word, or mapping."""
        if isinstance(told, Mapping):
            return Try(outputs=told["outputs"])
        word, _, rest = told.partition(":")
        match word:
            case "passed":
                return Try()
            case "failed":
                return Try(1)
            case "exit":
                return Try(int(rest))
            case "log":
                return Try(1, says=rest)
            case "running":
                return Try(hangs=True)
        raise AssertionError(f"{told!r} is nothing that a step can do")


@dataclass(frozen=True, slots=True)
class Told:
    """What one attempt does. `whole`: a word for all of it; else each step does what is told of it."""

    whole: str = ""
    steps: Mapping[Any, Any] = field(default_factory=dict)
    first: str = "passed"

    def tries(self, job: PlannedJob, number: int) -> list[Try]:
        """What the tries of a step do; the last holds for all further ones."""
        step = job.steps[number]
        may_fail = [each.number for each in job.steps if not each.allow_failure] or [0]
        word = self.first if number == may_fail[0] else "passed"
        told = self.steps.get(step.id, self.steps.get(number, word))
        return [Try.told(each) for each in (told if isinstance(told, list) else [told])]


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
        told = dict(self.expected.get("event", {}))
        if "pull_request" in told:
            told["pull_request"] = PullRequest(**told["pull_request"])
        elif "tag" not in told:
            told.setdefault("branch", "main")
        return Event(**{"type": "manual", **told})

    @property
    def actions(self) -> list[Any]:
        """What people and time do, in order."""
        return list(self.expected.get("then", ()))

    def further(self, action: Mapping[str, Any]) -> Scenario:
        """Of the run that a `start` makes: what is told of the first holds for it, unless it says otherwise."""
        told = {name: each for name, each in {**self.expected, **action}.items() if name in {"event", "results"}}
        return replace(self, expected={**told, **self.expected["runs"][action["start"]]})

    def plan(self, lists: Lists | None = None) -> Plan:
        """`lists`: what matrices from expressions have come to."""
        return expand(load(self.pipeline, "pipeline.yml", self.files.get), self.event, lists=lists)

    def told(self, job: PlannedJob, attempt: int) -> Told:
        """What an attempt (from 1) of a job does."""
        results = self.expected.get("results", {})
        told = results.get(job.key, results.get(job.name, "passed"))
        if isinstance(told, list):
            told = told[min(attempt, len(told)) - 1]
        if isinstance(told, Mapping):
            return Told(steps=told["steps"])
        return Told(whole=told) if told in WHOLE else Told(first=told)

    def attempts_told(self, job: PlannedJob) -> int:
        """For how many attempts something of their own is told."""
        results = self.expected.get("results", {})
        told = results.get(job.key, results.get(job.name, "passed"))
        return len(told) if isinstance(told, list) else 1


def scenarios() -> list[Path]:
    """All folders of scenarios."""
    return sorted(each for each in FOLDER.iterdir() if (each / "expected.yml").is_file())
