"""Real processes are killed exactly where it hurts, again and again, and all that was begun comes to its end, once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.failpoints.fleet import clear
from tests.chaos.failpoints.history import AttemptRow, History, JobRow, judge
from tests.chaos.failpoints.hooks import AFTER, NoSuchPlace, Point, Trap, resolve
from tests.chaos.failpoints.play import Play, printed
from tests.chaos.failpoints.points import AGENT, COORDINATOR, SUPERVISOR

POINTS = {**COORDINATOR, **AGENT, **SUPERVISOR}
TIMES = 1
"""The long form: `python scripts/failpoints.py --times 50`."""


@pytest.fixture
def fleet_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "f"
    folder.mkdir()
    yield folder
    left = clear(folder)
    assert not left, left


@pytest.mark.timeout(240)
async def test_whatever_dies_at_any_point_every_job_comes_to_one_end(fleet_folder: Path, fresh_database: str) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    played = await Play(fleet_folder, fresh_database, TIMES, random.Random(seed), print).run()
    assert judge(played.history) == [], f"seed {seed}"
    assert set(played.tally) == set(POINTS)
    assert all(played.tally[point] >= TIMES for point in POINTS)


@pytest.mark.parametrize("name", POINTS)
def test_every_point_is_a_function_of_the_product(name: str) -> None:
    """One that was renamed is never reached, and nobody would see that."""
    resolve(POINTS[name].place)


def test_a_point_whose_function_is_gone_ends_the_start(tmp_path: Path) -> None:
    for place in ("agent.jobs:RunningJobs.began", "agent.jobbs:RunningJobs.begin", "agent.jobs:LEAST_FREE"):
        with pytest.raises(NoSuchPlace):
            Trap("point", Point(place, AFTER), 1, str(tmp_path / "hits")).set()


def test_the_product_knows_nothing_of_points() -> None:
    """Nothing that a user sets, or an attacker, can make a daemon die: the hook is not there."""
    root = Path(__file__).resolve().parents[3]
    for room in ("headrace", "coordinator", "agent"):
        for file in (root / room).rglob("*.py"):
            assert "failpoint" not in file.read_text().lower(), file


def passed(number: int = 1, state: str = "passed", **more: Any) -> AttemptRow:
    return AttemptRow(7, number, state, began=True, **({"printed": printed(1, "one", number)} | more))


GOOD = JobRow(
    1,
    "one",
    deployment=False,
    state="passed",
    sentence="",
    attempts=[passed()],
    expected={n: printed(1, "one", n) for n in (1, 2)},
)
HISTORY = History(1, {1: "passed"}, [GOOD], [(1, "one", 1)])


def test_the_judge_accepts_what_is_right() -> None:
    assert judge(HISTORY) == []
    errored = passed(state="errored", printed=b"")
    again = replace(GOOD, attempts=[errored, replace(passed(2), id=8)])
    assert judge(replace(HISTORY, jobs=[again], ledger=[(1, "one", 1), (1, "one", 2)], killed=frozenset({7}))) == []


def wrong_job(**changed: Any) -> History:
    return replace(HISTORY, jobs=[replace(GOOD, **changed)])


DEPLOYED_TWICE = replace(GOOD, deployment=True, attempts=[passed(state="errored"), replace(passed(2), id=8)])


@pytest.mark.parametrize(
    ("history", "complaint"),
    [
        (replace(HISTORY, asked=2), "2 runs were asked for, and there are 1"),
        (replace(HISTORY, runs={1: "running"}), "run 1 is running"),
        (replace(HISTORY, standing={"lost_sight": 1}), "lost_sight is 1"),
        (wrong_job(state="queued"), "is queued"),
        (wrong_job(attempts=[passed(), replace(passed(2), id=8)]), "2 outcomes were accepted"),
        (wrong_job(attempts=[passed(state="lost"), replace(passed(2), id=8)]), "attempt 7 is lost"),
        (wrong_job(attempts=[passed(state="errored"), replace(passed(2), id=8)]), "nobody killed its supervisor"),
        (wrong_job(attempts=[passed(2)]), "its tries are numbered [2]"),
        (wrong_job(attempts=[replace(passed(), printed=printed(1, "one", 1)[:-9])]), "its log has"),
        (wrong_job(attempts=[replace(passed(), printed=printed(1, "one", 1) * 2)]), "its log has"),
        (wrong_job(attempts=[passed(sealed=False)]), "never complete"),
        (replace(HISTORY, ledger=[]), "did nothing"),
        (replace(HISTORY, ledger=[(1, "one", 1), (1, "one", 1)]), "did its work 2 times"),
        (replace(HISTORY, ledger=[(1, "one", 1), (1, "one", 2)]), "never began"),
        (replace(HISTORY, ledger=[(1, "one", 1), (2, "one", 1)]), "a job that there is not"),
        (replace(HISTORY, jobs=[DEPLOYED_TWICE], killed=frozenset({7})), "a deployment began 2 times"),
    ],
)
def test_the_judge_notices(history: History, complaint: str) -> None:
    assert any(complaint in each for each in judge(history)), Counter(judge(history))
