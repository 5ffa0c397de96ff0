"""The simulation as a test: many seeds, the same each time, and a judge that notices when the core is broken."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.core import attempt as machine
from coordinator.core.attempt import Attempt, AttemptEvent, Gone
from tests.chaos.simulation.world import run_seed

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 25


@pytest.mark.parametrize("first", range(0, 200, BLOCK), ids=lambda first: f"seeds {first} to {first + BLOCK - 1}")
def test_whatever_breaks_no_job_is_lost_and_none_is_accepted_twice(first: int) -> None:
    """Two hundred histories of cuts, crashes and outages, judged from outside. A seed is the whole bug report:
    `python scripts/simulate.py --seeds 1 --from SEED` prints its trace."""
    for seed in range(first, first + BLOCK):
        outcome = run_seed(seed)
        assert not outcome.complaints, f"seed {seed}: {outcome.complaints[0]}"


def test_a_seed_plays_alike_in_every_process() -> None:
    """Nothing may depend on the order of a set or on an address in memory, or a failure cannot be played again."""
    program = "from tests.chaos.simulation.world import run_seed; print([run_seed(n).digest for n in (3, 15, 28)])"
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_the_judge_notices_a_core_that_believes_any_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A property that stays green without the fence is none."""
    step = machine.step

    def credulous(attempt: Attempt, event: AttemptEvent) -> Attempt:
        return step(attempt, event if isinstance(event, Gone) else replace(event, token=attempt.token))

    monkeypatch.setattr(machine, "step", credulous)
    assert any(run_seed(seed).complaints for seed in range(10))
