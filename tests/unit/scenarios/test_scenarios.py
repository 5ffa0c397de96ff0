"""The semantics of the language, as data: a newcomer adds a case by adding a folder to tests/scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.errors import BadInput
from headrace.pipeline import PipelineError
from tests.harness.scenario_scene import Scene
from tests.harness.scenarios import KEYS, Scenario, scenarios


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
    assert scene.states() == expected["jobs"], [scene.sentence(key) for key in scene.jobs]
    run = scene.rows.runs[scene.run_id].run
    assert run.state.value == expected.get("run", run.state.value)
    assert run.warned == expected.get("warnings", 0)
    assert expected.get("refused", "") in scene.refused, scene.refused
    assert bool(expected.get("refused")) == bool(scene.refused)
    details(scene, scenario)


def details(scene: Scene, scenario: Scenario) -> None:
    """What it says beside the states."""
    expected = scenario.expected
    assert [job.key for job in scene.plan.jobs] == expected.get("plan", [job.key for job in scene.plan.jobs])
    assert expected.get("warns", "") in "\n".join(scene.plan.warnings)
    for key, part in expected.get("says", {}).items():
        assert part in scene.sentence(key)
    for key, steps in expected.get("steps", {}).items():
        assert scene.steps[key] == steps
    for key, outputs in expected.get("outputs", {}).items():
        assert scene.outputs(key) == outputs
    for key, env in expected.get("env", {}).items():
        assert {name: scene.found[key].get(name) for name in env} == env
    assert {key: scene.attempts[key] for key in expected.get("tries", {})} == expected.get("tries", {})
    assert {name: scene.peak[name] for name in expected.get("at_most", {})} == expected.get("at_most", {})
