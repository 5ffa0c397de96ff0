"""The scenarios of the language once more, by a real coordinator, a real agent and the SDK: side by side, all at once.

What people do is done when the run stands where it stands in the pure core, so nothing here has to know how long
something takes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from headrace.client import Client, Source
from headrace.client.types import Attempt, Run
from headrace.errors import BadInput, Conflict, HeadraceError
from tests.e2e.scene import Started
from tests.harness.scenario_player import Player
from tests.harness.scenario_run import SceneRun
from tests.harness.scenario_scene import FIRST, Scene
from tests.harness.scenarios import Scenario, scenarios
from tests.harness.waiting import wait_for

pytestmark = pytest.mark.timeout(600)

SLOTS = 64
AT_A_TIME = 24
PATIENCE_S = 60.0
CANNOT = {
    "an agent would have to die": ["096", "097", "098", "099", "100", "169", "170", "171", "323"],
    "the machinery would have to fail": ["106", "172"],
    "memory would have to run out": ["095", "101", "105"],
    "a service would have to fail, and only docker has some": ["340", "341", "342", "343", "344"],
    "hours would have to pass": ["013", "014", "161"],
    "several people would have to approve, and a token is one person": ["138", "141", "164"],
    "the API makes no run for a pull request": ["137"],
}
"""Scenarios that cannot be played, by their numbers."""


def test_what_cannot_be_played_is_little_and_there() -> None:
    """The list is for what nobody can do here, not for what fails here."""
    known = {folder.name[:3] for folder in scenarios()}
    listed = [number for numbers in CANNOT.values() for number in numbers]
    assert set(listed) <= known
    assert len(listed) == len(set(listed)) <= len(known) / 5


@pytest.fixture
def address(scene) -> Iterator[str]:
    """A coordinator with an embedded PostgreSQL, and one agent that lets jobs run on the host."""
    data = scene.folder / "coordinator"
    ports = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--blob-listen", "127.0.0.1:0")
    coordinator = scene.start("coordinator", "--data-dir", str(data), *ports)
    found = wait_for(lambda: _address(coordinator), "the coordinator", 90)
    token = (data / "tokens" / "agent").read_text().strip()
    agent = scene.start(
        "agent", "--url", found, "--name", "a", "--slots", str(SLOTS), "--data-dir", str(scene.folder / "agent"),
        HEADRACE_TOKEN=token, HEADRACE_ALLOW_HOST="true",
    )  # fmt: skip
    yield found
    agent.signal(15)
    assert agent.end().code == 0, agent.err
    coordinator.signal(15)
    assert coordinator.end().code == 0, coordinator.err


def _address(coordinator: Started) -> str:
    for line in (coordinator.err + coordinator.out).splitlines():
        if line.startswith("{") and "coordinator is ready" in line:
            return str(json.loads(line)["address"])
    assert coordinator.process.poll() is None, coordinator.err
    return ""


def test_scenarios_come_true_on_a_real_coordinator_and_a_real_agent(scene, address, capsys) -> None:
    """What holds for the pure core holds for the store, the wire, the agent and the SDK."""
    listed = {number for numbers in CANNOT.values() for number in numbers}
    wanted = [Scenario.read(folder) for folder in scenarios() if folder.name[:3] not in listed]
    token = (scene.folder / "coordinator" / "tokens" / "client").read_text().strip()
    began = time.monotonic()
    wrong = asyncio.run(_all(wanted, address, token, scene.folder / "played"))
    with capsys.disabled():
        print(json.dumps({"scenarios played": len(wanted), "s": round(time.monotonic() - began, 1)}))
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in sorted(wrong.items()))


async def _all(wanted: list[Scenario], address: str, token: str, folder: Path) -> dict[str, str]:
    """What went wrong, by scenario."""
    wrong: dict[str, str] = {}
    room = asyncio.Semaphore(AT_A_TIME)

    async def one(scenario: Scenario) -> None:
        async with room:
            try:
                await _Play(client, Player.made(scenario, folder / scenario.name)).play()
            except (AssertionError, HeadraceError) as error:
                wrong[scenario.name] = str(error).split("\n")[0] or repr(error)

    async with Client(address, token) as client, asyncio.TaskGroup() as group:
        for each in wanted:
            group.create_task(one(each))
    return wrong


class _Play:
    """One scenario, in step with the pure core."""

    def __init__(self, client: Client, player: Player) -> None:
        self.client = client
        self.scenario = player.scenario
        self.players = {FIRST: player}
        self.ids: dict[str, int] = {}

    async def play(self) -> None:
        if "problem" in self.scenario.expected:
            with pytest.raises(BadInput) as refused:
                await self._create(FIRST)
            assert self.scenario.expected["problem"] in str(refused.value)
            return
        scene = Scene(self.scenario)
        await self._create(FIRST)
        try:
            scene.begin()
            runs = await self._stand_like(scene)
            refused = ""
            for action in self.scenario.actions:
                refused = await self._act(action, runs)
                scene.act(action)
                runs = await self._stand_like(scene)
            assert self.scenario.expected.get("refused", "") in refused, refused
            assert bool(refused) == ("refused" in self.scenario.expected), refused
            for name, run in runs.items():
                self._judge(run, self.players[name])
        finally:
            await self._leave()

    async def _create(self, name: str) -> None:
        player = self.players[name]
        event = player.scenario.event
        source = Source(
            f"/{self.scenario.name}", "0" * 40, url="https://example.com/none", branch=event.branch, tag=event.tag
        )
        text = self.scenario.pipeline if "problem" in self.scenario.expected else player.pipeline()
        run = await self.client.create_run(
            source, text, pipeline_file="pipeline.yml", event=event.type, parameters=dict(event.params), sandbox="host"
        )
        self.ids[name] = run.id

    async def _act(self, action: Any, runs: Mapping[str, Run]) -> str:
        """Does what people do; what it is refused with."""
        of = action.get("of", FIRST) if isinstance(action, dict) else FIRST
        try:
            match action:
                case "cancel":
                    await self.client.cancel(self.ids[FIRST])
                case {"cancel": name}:
                    await self.client.cancel(self.ids[name])
                case {"start": name}:
                    self.players[name] = self.players[FIRST].further(action)
                    await self._create(name)
                case {"approve": stage} | {"reject": stage}:
                    rejects, comment = "reject" in action, action.get("comment", "")
                    await self.client.approve(self.ids[of], stage or "", reject=rejects, comment=comment)
                case {"retry": job}:
                    await self.client.retry(self.ids[of], job=job or "")
                case {"end": outcomes}:
                    for key, told in outcomes.items():
                        self.players[of].end(key, len(_job(runs[of], key).attempts), told)
        except Conflict as error:
            return str(error)
        return ""

    async def _stand_like(self, scene: Scene) -> dict[str, Run]:
        """Waits until all runs stand where they stand in the pure core, at once."""
        end = time.monotonic() + PATIENCE_S
        while True:
            runs = {name: await self.client.run(self.ids[name]) for name in scene.runs}
            wrong = [_differs(run, scene.runs[name], self.players[name]) for name, run in runs.items()]
            if not any(wrong):
                return runs
            assert time.monotonic() < end, "; ".join(filter(None, wrong))
            await asyncio.sleep(0.4)

    def _judge(self, run: Run, player: Player) -> None:
        expected = player.scenario.expected
        assert {job.key: str(job.state) for job in run.jobs} == expected["jobs"]
        assert str(run.state) == expected.get("run", str(run.state))
        assert sum(job.warned for job in run.jobs) == expected.get("warnings", 0)
        for key, told in expected.get("says", {}).items():
            # The rewritten file has other lines.
            part = "pipeline.yml:" if told.startswith("pipeline.yml:") else told
            assert part in _job(run, key).sentence, f"{key} says {_job(run, key).sentence}"
        for key, steps in expected.get("steps", {}).items():
            assert _steps(_job(run, key).attempts[-1]) == steps
        for key, outputs in expected.get("outputs", {}).items():
            assert dict(_job(run, key).outputs) == outputs
        for key, env in expected.get("env", {}).items():
            assert {name: player.found(key, name) for name in env} == env

    async def _leave(self) -> None:
        """Nothing is to run when the test is over."""
        for run_id in (*self.ids.values(), *self.ids.values()):
            await self.client.cancel(run_id)


def _differs(run: Run, wanted: SceneRun, player: Player) -> str:
    """Where a run stands, if not where it stands in the pure core, with what hangs there hanging here."""
    states, tries = wanted.states(), dict(wanted.attempts)
    found = {job.key: str(job.state) for job in run.jobs}
    tried = {job.key: len(job.attempts) for job in run.jobs if job.attempts}
    hangs = all(player.hangs(key, tries[key]) for key, state in states.items() if state == "running")
    if (found, tried, str(run.state)) == (states, tries, wanted.state) and hangs:
        return ""
    return f"it is {run.state}, {found}, and not {wanted.state}, {states}; tried {tried}, and not {tries}"


def _job(run: Run, key: str) -> Any:
    return next(job for job in run.jobs if job.key == key)


def _steps(attempt: Attempt) -> list[str]:
    words = {None: "passed", "canceled": "canceled"}
    return ["skipped" if each.skipped else words.get(each.cause, "failed") for each in attempt.steps]
