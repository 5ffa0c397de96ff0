"""A campaign: work goes on while faults come, and when they have stopped all of it has to be right."""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.campaign.faults import FAULTS, Hand
from tests.chaos.campaign.fleet import Fleet, Scale, made_fleet
from tests.chaos.campaign.judge import Verdict, judge
from tests.chaos.campaign.work import JOBS_OF_A_RUN, People
from tests.chaos.engine import Engine, own_engine
from tests.chaos.power import instance_of
from tests.harness.leftovers import Leftovers

_PAUSE_S = 1.0
_AFTERWARDS_S = 600.0


@dataclass
class Report:
    """What a campaign found; `back` has, by fault, the seconds until all agents were connected again."""

    seed: int
    verdict: Verdict
    back: dict[str, list[float]]
    seconds: float
    slowest_call: float
    redeployed: int
    left: list[str] = field(default_factory=list)

    @property
    def complaints(self) -> list[str]:
        return [*self.verdict.complaints, *(f"left behind: {each}" for each in self.left)]

    def __str__(self) -> str:
        states = ", ".join(f"{count} {state}" for state, count in sorted(self.verdict.attempts.items()))
        whole = (
            f"seed {self.seed}: {self.seconds:.0f} s, {self.verdict.jobs} jobs, attempts: {states};"
            f" {self.verdict.log_bytes} log bytes compared; {self.redeployed} deployments asked for again;"
            f" slowest call {self.slowest_call:.1f} s"
        )
        faults = [
            f"  {name}: {len(spans)} times, agents back after {statistics.median(spans):.1f} s,"
            f" at most {max(spans):.1f} s"
            for name, spans in sorted(self.back.items())
        ]
        return "\n".join([whole, *faults, *(f"WRONG: {each}" for each in self.complaints)])


def play(
    folder: Path,
    scale: Scale,
    seed: int,
    tell: Callable[[str], object] = print,
    faults: Sequence[Callable[[Hand], None]] = FAULTS,
) -> Report:
    """A whole campaign in an empty folder with a short path. `tell` is told each fault as it comes."""
    with own_engine(folder / "e") as engine:
        return _play(folder / "fleet", scale, seed, engine, tell, faults)


def _play(
    folder: Path,
    scale: Scale,
    seed: int,
    engine: Engine,
    tell: Callable[[str], object],
    faults: Sequence[Callable[[Hand], None]],
) -> Report:
    leftovers = Leftovers.begin(folder)
    leftovers.watch_engine(engine.url)
    begun = time.monotonic()
    with made_fleet(folder, scale, engine) as fleet:
        runs = -(-scale.jobs // JOBS_OF_A_RUN)
        slots = scale.agents * scale.slots
        people = People(fleet, runs, _pauses(scale), at_once=slots // 2)
        people.begin()
        back = _hurt(fleet, people, faults, random.Random(seed), tell)
        if not people.join(_AFTERWARDS_S):
            people.problems.append(AssertionError(f"{len(people.ended)} of {runs} runs ended in {_AFTERWARDS_S:.0f} s"))
        fleet.all_back()
        report = Report(
            seed, judge(fleet, people), back, time.monotonic() - begun, people.slowest, sum(people.retried.values())
        )
        leftovers.agents = [instance_of(each.daemon) for each in fleet.machines]  # some disks go with the fleet
    report.left = leftovers.found()
    return report


def _pauses(scale: Scale) -> float:
    """Seconds that a job takes, so that the work lasts for as long as the faults come."""
    return max(1.0, 0.8 * scale.seconds * scale.agents * scale.slots / scale.jobs)


def _hurt(
    fleet: Fleet,
    people: People,
    faults: Sequence[Callable[[Hand], None]],
    chances: random.Random,
    tell: Callable[[str], object],
) -> dict[str, list[float]]:
    """Every fault in turn, in a new order each time, while the work lasts."""
    back: dict[str, list[float]] = defaultdict(list)
    begun, deck = time.monotonic(), list[Callable[[Hand], None]]()
    while people.busy and time.monotonic() < begun + fleet.scale.seconds:
        if not deck:
            deck = chances.sample(faults, len(faults))
        fault = deck.pop()
        tell(f"{time.monotonic() - begun:6.1f} s  {fault.__name__}")
        hand = Hand(fleet, random.Random(chances.random()))
        fault(hand)
        back[fault.__name__].append(fleet.all_back() if hand.back is None else hand.back)
        people.join(_PAUSE_S)  # a breath for the fleet, or the end of the work
    return back
