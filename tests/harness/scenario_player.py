"""A scenario as a pipeline that real agents can run: each step does what the scenario tells of its job and attempt.

What a step does stands in a script of its own outside the repository, so that no text of a scenario is ever read as
an expression. Files beside the scripts tell the test that a step hangs, and what it found in its environment, and
tell a step that somebody ends it.
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from headrace.pipeline import PlannedJob
from tests.harness.scenario_scene import Scene, seconds
from tests.harness.scenarios import Scenario, Told, Try

DELAY_OVER = 10
"""Pauses between tries are so much shorter, where the scenario waits for them."""
_ATTEMPT = "$HEADRACE_ATTEMPT"


@dataclass(frozen=True)
class Player:
    """One scenario with its folder. `hurries`: its pauses are shortened."""

    scenario: Scenario
    folder: Path
    hurries: bool

    @classmethod
    def made(cls, scenario: Scenario, folder: Path) -> Player:
        return cls(scenario, folder, _hurries(scenario))

    def further(self, action: Mapping[str, Any]) -> Player:
        """For the run that a `start` makes."""
        return Player(self.scenario.further(action), self.folder / f"run-{action['start']}", self.hurries)

    def pipeline(self) -> bytes:
        """Writes the scripts, and returns the pipeline that runs them."""
        self.folder.mkdir(parents=True)
        tree = YAML(typ="safe").load(self.scenario.pipeline)
        # With all cells that it ever gets: what they are is known when it has been played once.
        jobs = [job for job in _planned(self.scenario) if not job.expands]
        for index, stage in enumerate(tree["stages"]):
            for name, job in stage["jobs"].items():
                copies = [each for each in jobs if each.stage == index and each.name.split("/")[-1] == name]
                self._rewrite(f"{index}-{name}", job, copies)
        text = io.BytesIO()
        YAML().dump(tree, text)
        return text.getvalue()

    def _rewrite(self, name: str, job: dict[str, Any], copies: list[PlannedJob]) -> None:
        job["checkout"] = False
        if "timeout" in job:
            job["timeout"] = "5s"
        if self.hurries and "delay" in job.get("retry", {}):
            job["retry"]["delay"] = f"{seconds(job['retry']['delay']) // DELAY_OVER}s"
        for number, step in enumerate(job["steps"]):
            script = self.folder / f"{name}-{number}.sh"
            script.write_text("\n".join(self._script(copies, number)) + "\n")
            step["run"] = f". {shlex.quote(str(script))}"
            step["shell"] = "sh"

    def _script(self, copies: list[PlannedJob], number: int) -> Iterator[str]:
        yield 'case "$HEADRACE_JOB $HEADRACE_ATTEMPT" in'
        for job in copies:
            told = self.scenario.attempts_told(job)
            for attempt in range(1, told + 1):
                which = shlex.quote(f"{job.key} ") + ("*" if attempt == told else str(attempt))
                yield f"{which})"
                if number == 0:
                    yield from self._shows(job)
                yield from self._does(job, number, self.scenario.told(job, attempt))
                yield ";;"
        yield "esac"

    def _shows(self, job: PlannedJob) -> Iterator[str]:
        for name in self.scenario.expected.get("env", {}).get(job.key, {}):
            yield f'if [ -n "${{{name}+x}}" ]; then printf %s "${name}" > {self._file(f"env-{name}", job)}'
            yield f"else rm -f {self._file(f'env-{name}', job)}; fi"

    def _does(self, job: PlannedJob, number: int, told: Told) -> Iterator[str]:
        if told.whole == "timed_out":
            yield "sleep 600"
            return
        tries = told.tries(job, number)
        yield f"n=$(($(cat tries-{number} 2>/dev/null || echo 0) + 1)); echo $n > tries-{number}"
        yield "case $n in"
        for count, each in enumerate(tries, 1):
            yield f"{'*' if count == len(tries) else count})"
            yield from self._try(job, each)
            yield ";;"
        yield "esac"

    def _try(self, job: PlannedJob, told: Try) -> Iterator[str]:
        for name, value in told.outputs.items():
            block = " ".join(map(shlex.quote, (f"{name}<<END_OF_IT", value, "END_OF_IT")))
            yield f"printf '%s\\n' {block} >> \"$HEADRACE_OUTPUT\""
        if told.says:
            yield f"echo {shlex.quote(told.says)}"
        if told.hangs:
            ended = self._file("ended", job)
            yield f": > {self._file('hangs', job)}-{_ATTEMPT}"
            yield f"until [ -e {ended}-{_ATTEMPT} ]; do sleep 0.2; done"
            yield f"exit $(cat {ended}-{_ATTEMPT})"
        yield f"exit {told.exit_code}"

    def _file(self, what: str, job: PlannedJob) -> str:
        return shlex.quote(str(self._path(what, job.key)))

    def _path(self, what: str, key: str) -> Path:
        return self.folder / f"{key.replace('/', '.')}-{what}"

    # What the test asks and tells

    def hangs(self, key: str, attempt: int) -> bool:
        """Whether a step of that attempt hangs by now."""
        return Path(f"{self._path('hangs', key)}-{attempt}").exists()

    def end(self, key: str, attempt: int, told: str) -> None:
        """Ends it with what is told."""
        waiting = self.folder / "ended"
        waiting.write_text(str(Try.told(told).exit_code))
        waiting.rename(f"{self._path('ended', key)}-{attempt}")

    def found(self, key: str, name: str) -> str | None:
        """What the first step of the newest attempt found in its environment."""
        file = self._path(f"env-{name}", key)
        return file.read_text() if file.exists() else None


def _planned(scenario: Scenario) -> Iterable[PlannedJob]:
    """Its jobs, with all cells that it ever gets."""
    jobs = scenario.plan().jobs
    if not any(job.expands for job in jobs):
        return jobs
    scene = Scene(scenario)
    scene.play()
    return scene.first.jobs.values()


def _hurries(scenario: Scenario) -> bool:
    """Whether something waits for a pause to end, and nothing is to be seen in the midst of one."""
    if not any("wait" in each for each in scenario.actions if isinstance(each, dict)):
        return False
    scene = Scene(scenario)
    scene.begin()
    goes_on = False
    for action in scenario.actions:
        before = _tries(scene)
        scene.act(action)
        goes_on = goes_on or ("wait" in action and before != _tries(scene))
    return goes_on and not any("waiting" in run.states().values() for run in scene.runs.values())


def _tries(scene: Scene) -> list[dict[str, int]]:
    return [dict(run.attempts) for run in scene.runs.values()]
