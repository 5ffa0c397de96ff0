"""The database's time as a replica knows it, whatever its own clock says."""

from __future__ import annotations

import time

import pytest

from coordinator.store.clock import DatabaseClock
from tests.integration.store.world import PostgresWorld


@pytest.mark.parametrize("step", [-3600, 3600])
async def test_a_clock_that_steps_is_told_at_once_and_the_time_goes_on(postgres: PostgresWorld, step: int) -> None:
    """By it signed addresses expire: an hour's step would end all of them, or let them live on."""
    steps = [0.0]
    clock = DatabaseClock(postgres.database, lambda: time.time() + steps[-1], time.monotonic)
    await clock.learn()
    assert (clock.warning(), abs(clock.skew_s) < 5) == ("", True)
    steps.append(step)
    assert abs(clock.now() - time.time()) < 5
    where = "3600 s ahead of" if step > 0 else "3600 s behind"
    assert clock.warning().startswith(f"the clock of this machine is {where} the database's: ")
    steps.append(0.0)
    assert clock.warning() == ""


@pytest.mark.parametrize("wrong_by", [-3600, 3600])
async def test_a_replica_that_starts_with_a_wrong_clock_goes_by_the_databases(
    postgres: PostgresWorld, wrong_by: int
) -> None:
    """Another replica may check what this one signs."""
    clock = DatabaseClock(postgres.database, lambda: time.time() + wrong_by, time.monotonic)
    await clock.learn()
    assert abs(clock.now() - time.time()) < 5
    assert abs(clock.skew_s - wrong_by) < 5
