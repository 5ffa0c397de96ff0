"""The last jobs of a stage end at once on different replicas, and the next stage starts every time."""

from __future__ import annotations

import random

import pytest

from coordinator.store import settle
from coordinator.store.migrate import migrate
from tests.chaos.last_jobs import Stuck, play

TIMES = 120
"""The long form: `python scripts/last_jobs.py --times 2000`."""


async def test_the_next_stage_starts_whoever_hears_of_the_last_jobs(fresh_database: str) -> None:
    """A stage that waits for jobs which have all ended would wait for ever, and its run with it."""
    await migrate(fresh_database)
    seed = random.SystemRandom().randrange(1 << 30)
    assert await play(fresh_database, TIMES, seed) >= TIMES


async def test_it_would_be_noticed(fresh_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the lock on the run: each of the last two sees the other still running."""
    await migrate(fresh_database)
    unlocked = settle.SQL.lock_runs.replace("FOR UPDATE", "")
    assert unlocked != settle.SQL.lock_runs
    monkeypatch.setattr(settle.SQL, "lock_runs", unlocked)
    with pytest.raises(Stuck):
        await play(fresh_database, TIMES, 1)
