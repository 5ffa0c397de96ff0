"""What is shown of a run, from the rows to the words of the client."""

from __future__ import annotations

from dataclasses import replace

from coordinator.api.run_messages import run_message
from coordinator.core.states import AttemptState
from coordinator.store.views import Views
from headrace.client import types, wire
from headrace.v1 import agent_pb2
from tests.integration.store.world import J, PostgresWorld, ended


async def shown(world: PostgresWorld, run_id: int) -> types.Run:
    return wire.run(run_message(await Views(world.database, world.bells).run(run_id)))


async def test_where_the_time_went_is_not_known_before_it_has_gone(postgres: PostgresWorld) -> None:
    """0 would mean that it took no time."""
    made = await postgres.run(J("a"))
    opened = await postgres.open()
    (claimed,) = await postgres.claim(opened.session_id)
    await postgres.start(claimed)
    (job,) = (await shown(postgres, made[""])).jobs
    assert job.attempt is not None
    assert (job.attempt.sandbox_ms, job.attempt.steps_ms) == (None, None)
    told = agent_pb2.Ended(timings=agent_pb2.Timings(sandbox_ms=7))
    await postgres.at.report([replace(ended(claimed), details=told.SerializeToString())])
    (job,) = (await shown(postgres, made[""])).jobs
    assert job.attempt is not None
    assert (job.attempt.state, job.attempt.sandbox_ms, job.attempt.steps_ms) == (AttemptState.PASSED, 7, 0)


async def test_who_waits_for_all_earlier_stages_is_told_apart_from_who_waits_for_nothing(
    postgres: PostgresWorld,
) -> None:
    """`needs: []` starts at once; no `needs` waits for every job before it."""
    made = await postgres.run(J("a"), J("b", 1), J("c", 1, needs=()), J("d", 1, needs=("a",)))
    jobs = (await shown(postgres, made[""])).jobs
    assert {job.key: job.needs for job in jobs} == {"a": None, "b": None, "c": (), "d": ("a",)}


async def test_the_time_that_a_retried_run_took_begins_with_the_retry(postgres: PostgresWorld) -> None:
    """A run that failed on Friday and was retried on Monday did not take the weekend."""
    made = await postgres.run(J("a"))
    opened = await postgres.open()
    (claimed,) = await postgres.claim(opened.session_id)
    await postgres.start(claimed)
    await postgres.end(claimed, AttemptState.FAILED)
    hour = "UPDATE run SET started_at = started_at - interval '1 hour', ended_at = ended_at - interval '1 minute'"
    await postgres.fetch(hour)
    run = await shown(postgres, made[""])
    assert run.took_ms is not None
    assert run.took_ms > 3_500_000
    await postgres.retry(made[""])
    assert (await shown(postgres, made[""])).took_ms is None
    (claimed,) = await postgres.claim(opened.session_id)
    await postgres.start(claimed)
    await postgres.end(claimed)
    run = await shown(postgres, made[""])
    assert run.took_ms is not None
    assert run.took_ms < 60_000
