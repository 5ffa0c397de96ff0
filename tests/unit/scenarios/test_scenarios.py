"""The semantics of the language, as data: a newcomer adds a case by adding a folder to tests/scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.scenarios import Scenario, Scene, scenarios

KNOWN = {"about", "event", "results", "then", "plan", "run", "warnings", "jobs", "says", "tries", "at_most", "refused"}


@pytest.mark.parametrize("folder", scenarios(), ids=lambda folder: folder.name)
def test_what_the_scenario_says_comes_true(folder: Path) -> None:
    """Each folder says in `about` what it shows."""
    scenario = Scenario.read(folder)
    expected = scenario.expected
    assert not set(expected) - KNOWN, "a key that nobody reads"
    assert expected["about"].endswith(".")
    scene = Scene(scenario)
    scene.play()
    if "plan" in expected:
        assert [job.key for job in scene.plan.jobs] == expected["plan"]
    assert scene.states() == expected["jobs"]
    run = scene.rows.runs[scene.run_id].run
    assert run.state.value == expected.get("run", run.state.value)
    assert run.warned == expected.get("warnings", 0)
    for key, part in expected.get("says", {}).items():
        assert part in scene.sentence(key)
    for key, tries in expected.get("tries", {}).items():
        assert scene.attempts[key] == tries
    for name, most in expected.get("at_most", {}).items():
        assert scene.peak[name] == most
    assert expected.get("refused", "") in scene.refused
    assert bool(expected.get("refused")) == bool(scene.refused)
    assert not scene.waiting_for_nothing()
