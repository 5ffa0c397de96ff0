"""The semantics of the language, as data: a newcomer adds a case by adding a folder to tests/scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.errors import BadInput
from headrace.pipeline import PipelineError
from tests.harness.scenario_run import SceneRun
from tests.harness.scenario_scene import Scene
from tests.harness.scenarios import KEYS, KEYS_OF_A_RUN, Scenario, scenarios


@pytest.mark.parametrize("folder", scenarios(), ids=lambda folder: folder.name)
def test_what_the_scenario_says_comes_true(folder: Path) -> None:
    """Each folder says in `about` what it shows."""
    scenario = Scenario.read(folder)
    expected = scenario.expected
    assert not set(expected) - KEYS, "a key that nobody reads"
    assert expected["about"].endswith(".")
    if "problem" in expected:
        with pytest.raises((PipelineError, BadInput)) as refused:
            Scene(scenario).begin()
        assert expected["problem"] in str(refused.value)
        return
    scene = Scene(scenario)
    scene.begin()
    assert not scene.defects()
    for action in scenario.actions:
        scene.act(action)
        assert not scene.defects(), f"after {action}"
    assert expected.get("refused", "") in scene.refused, scene.refused
    assert bool(expected.get("refused")) == bool(scene.refused)
    plan = scene.first.plan
    assert [job.key for job in plan.jobs] == expected.get("plan", [job.key for job in plan.jobs])
    assert expected.get("warns", "") in "\n".join(plan.warnings)
    assert {name: scene.peak[name] for name in expected.get("at_most", {})} == expected.get("at_most", {})
    further = {name: run for name, run in scene.runs.items() if run is not scene.first}
    assert set(further) == set(expected.get("runs", {})), "the runs that are started are those that it speaks of"
    judge(scene.first)
    for run in further.values():
        assert not set(run.scenario.expected) - KEYS_OF_A_RUN - {"event", "results"}, "a key that nobody reads"
        judge(run)


def judge(run: SceneRun) -> None:
    """Holds a run to what its scenario says."""
    expected = run.scenario.expected
    assert run.states() == expected["jobs"], [run.sentence(key) for key in run.jobs]
    assert run.state == expected.get("run", run.state)
    assert run.rows.runs[run.id].run.warned == expected.get("warnings", 0)
    for key, part in expected.get("says", {}).items():
        assert part in run.sentence(key), run.sentence(key)
    for key, steps in expected.get("steps", {}).items():
        assert run.steps[key] == steps
    for key, outputs in expected.get("outputs", {}).items():
        assert run.outputs(key) == outputs
    for key, env in expected.get("env", {}).items():
        assert {name: run.found[key].get(name) for name in env} == env
    assert {key: run.attempts[key] for key in expected.get("tries", {})} == expected.get("tries", {})
