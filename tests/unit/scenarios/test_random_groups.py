"""Random runs of random pipelines with groups: no group is ever fuller than it may be, and nobody waits for ever."""

from __future__ import annotations

import io
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML

from coordinator.core.states import JobState
from headrace.pipeline.plan import Concurrency
from tests.harness.scenario_scene import Scene
from tests.harness.scenarios import Scenario

SEEDS = 120
AT_A_TIME = 30
BUSY = (JobState.QUEUED, JobState.RUNNING)


def group(rng: random.Random) -> dict[str, Any]:
    """Its limit follows from its name, so that all who are in it mean the same."""
    name, when_full = rng.choice(["one", "two"]), rng.choice(["queue", "cancel-older", "cancel-newer"])
    return {"group": name, "limit": 1 + (name == "two"), "when_full": when_full}


def job(rng: random.Random, earlier: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {"steps": [{"run": "make"}]}
    if rng.random() < 0.5:
        made["concurrency"] = group(rng)
    if rng.random() < 0.25:
        made["if"] = rng.choice(["always()", "failure()", "canceled()", "success()"])
    if earlier and rng.random() < 0.3:
        made["needs"] = [rng.choice(earlier)]
    if rng.random() < 0.2:
        made["retry"] = {"max": 1, "on": ["failed"], "delay": rng.choice(["1s", "10s"])}
    if rng.random() < 0.2:
        made["matrix"] = {"n": [1, 2, 3], "max_parallel": 2, "fail_fast": rng.random() < 0.5}
    return made


def pipeline(rng: random.Random) -> dict[str, Any]:
    tree: dict[str, Any] = {"stages": []}
    if rng.random() < 0.7:
        tree["concurrency"] = group(rng)
    names: list[str] = []
    for index in range(rng.randint(1, 3)):
        stage: dict[str, Any] = {"name": f"s{index}", "jobs": {}}
        if rng.random() < 0.25:
            stage["approval"] = {}
        if rng.random() < 0.25:
            stage["environment"] = "production"
        if rng.random() < 0.2:
            stage["if"] = rng.choice(["always()", "failure()", "success()"])
        for number in range(rng.randint(1, 2)):
            stage["jobs"][f"j{index}{number}"] = job(rng, names)
            names.append(f"j{index}{number}")
        tree["stages"].append(stage)
    return tree


def results(rng: random.Random, tree: dict[str, Any]) -> dict[str, list[str]]:
    """What becomes of attempts; a deployment is not lost for ever."""
    names = [name for stage in tree["stages"] for name in stage["jobs"]]
    words = ["passed", "failed", "running", "lost", "errored"]
    return {name: [*rng.choices(words, k=rng.randint(0, 2)), rng.choice(words[:3])] for name in names}


def action(rng: random.Random, scene: Scene, tree: dict[str, Any], number: int) -> dict[str, Any]:
    """Something that people or agents may do now."""
    name = rng.choice(list(scene.runs))
    run = scene.runs[name]
    hanging = sorted(run.planned(each).key for each in run.running.values())
    kinds = ["start", "start", "cancel", "retry", "job", "approve", "reject", "wait", *(["end"] * 4 if hanging else [])]
    match rng.choice(kinds):
        case "start":
            return {"start": f"run {number}", "results": results(rng, tree)}
        case "cancel":
            return {"cancel": name}
        case "retry":
            return {"retry": "", "of": name}
        case "job":
            return {"retry": rng.choice(sorted(run.jobs)), "of": name}
        case "wait":
            return {"wait": "20s"}
        case "end":
            return {"end": {rng.choice(hanging): rng.choice(["passed", "failed", "lost"])}, "of": name}
        case decision:
            return {decision: "", "of": name}


def inside(scene: Scene) -> Iterator[tuple[str, Concurrency, int]]:
    """Who is in which group, by what agents work on, and not by the books: (whether jobs, the group, who)."""
    for run_id, row in scene.rows.runs.items():
        for each in (scene.rows.jobs[key].job for key in row.jobs):
            if each.state in BUSY and row.new.concurrency is not None:
                yield "runs", row.new.concurrency, run_id
            if each.state in BUSY and each.rules.concurrency is not None:
                yield "jobs", each.rules.concurrency, each.id


def held(scene: Scene, what: object) -> None:
    """Holds everything to what must always be."""
    found: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for kind, concurrency, who in inside(scene):
        found[kind, concurrency.group, concurrency.limit].add(who)
    full = [f"{kind} {who} are in `{name}`" for (kind, name, limit), who in found.items() if len(who) > limit]
    assert not scene.defects() + full, what


def finish(scene: Scene) -> None:
    """People approve, and start what was lost; agents end what they do. Then all is over, and all groups are empty."""
    for _ in range(60):
        for name, run in scene.runs.items():
            for key in [run.planned(each).key for each in run.running.values()]:
                if key in [run.planned(each).key for each in run.running.values()]:
                    scene.act({"end": {key: "passed"}, "of": name})
            for door in list(scene.rows.runs[run.id].doors.values()):
                if scene.rows.runs[run.id].doors[door.stage].is_asked:
                    scene.act({"approve": door.name, "of": name})
            for key in [each.key for each in run.all if each.state is JobState.BLOCKED and not each.awaits]:
                scene.act({"retry": key, "of": name})
        scene.act({"wait": "60s"})
        held(scene, "at the end")
        if all(each.over for run in scene.runs.values() for each in run.all):
            assert not scene.rows.members
            return
    raise AssertionError({name: (run.state, run.states()) for name, run in scene.runs.items()})


@pytest.mark.parametrize("first", range(0, SEEDS, AT_A_TIME))
def test_no_group_is_ever_too_full_and_nobody_waits_for_ever(first: int) -> None:
    """Whatever people do to whatever runs: the seed is the whole story."""
    for seed in range(first, first + AT_A_TIME):
        rng = random.Random(seed)
        tree, text = pipeline(rng), io.BytesIO()
        YAML(typ="safe").dump(tree, text)
        further = {f"run {number}": {} for number in range(10)}
        told = {"results": results(rng, tree), "runs": further}
        scene = Scene(Scenario(f"seed {seed}", text.getvalue(), {}, told))
        done: list[Any] = []
        try:
            scene.begin()
            held(scene, "at the beginning")
            for number in range(10):
                done.append(action(rng, scene, tree, number))
                scene.act(done[-1])
                held(scene, done)
            finish(scene)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}\n{text.getvalue().decode()}{done}") from error
