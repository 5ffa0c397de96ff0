"""Git bundles that clients hand in for runs: kept for a week, and for as long as an unfinished run needs them."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.api.new_runs import new_run
from coordinator.blobs.keys import bundle_key
from headrace.pipeline import Event, expand, load
from headrace.v1 import blob_pb2, common_pb2, run_pb2
from tests.integration.artifacts.test_artifacts import digest
from tests.integration.artifacts.test_expiry import SQL, TERM, sweep
from tests.integration.logs.test_statements import plan, scanned
from tests.integration.logs.world import World, make_run

DATA = b"a git bundle"
OVER = "UPDATE run SET state = 'passed', ended_at = clock_timestamp(), unfinished = 0, active = 0 WHERE id = $1"


async def hand_in(world: World, data: bytes = DATA) -> bool:
    """Asks where to put a bundle; uploads it unless it is there. Returns whether it was."""
    request = blob_pb2.PrepareBundleRequest(bundle=blob_pb2.BlobFile(sha256=digest(data), size=len(data)))
    present = (await world.artifacts.PrepareBundle(request)).transfer.present
    if not present:
        await world.blobs.put(bundle_key(digest(data)), data)
    return bool(present)


async def days_pass(world: World, days: int) -> None:
    await world.value("UPDATE bundle SET asked_at = asked_at - make_interval(days => $1)", days)


async def there(world: World) -> bool:
    return await world.blobs.head(bundle_key(digest(DATA))) is not None


async def test_a_bundle_is_deleted_a_week_after_it_was_last_handed_in(world: World) -> None:
    """Each run of uncommitted work brings one: they would be most of what a store holds."""
    assert not await hand_in(world)
    await days_pass(world, 6)
    await sweep(world)
    assert await hand_in(world), "and it counts from now on"
    await days_pass(world, 6)
    await sweep(world)
    assert await there(world)
    await days_pass(world, 2)
    await sweep(world)
    assert not await there(world)
    assert not await hand_in(world), "whoever comes with it again uploads it again"


async def test_a_bundle_stays_for_a_run_that_has_not_ended(world: World) -> None:
    """It may wait for an approval for weeks, and its agents fetch the source only then."""
    await hand_in(world)
    run = await make_run(world)
    await world.value("UPDATE run SET bundle = $2 WHERE id = $1", run, bytes.fromhex(digest(DATA)))
    await days_pass(world, 30)
    await sweep(world)
    assert await there(world)
    await world.value(OVER, run)
    await sweep(world)
    assert not await there(world)


async def test_a_bundle_that_is_handed_in_while_it_is_swept_is_there_in_the_end(world: World) -> None:
    """Told that it is present, a client uploads nothing; it must not vanish behind this answer."""
    await hand_in(world)
    await days_pass(world, 8)

    class Slow:
        """The real store, where a client comes while an object is being deleted."""

        async def delete(self, keys: list[str]) -> None:
            self.coming = asyncio.create_task(hand_in(world))
            # It asks the database first, and waits there for the sweep.
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            while not await world.value(waiting):
                pass
            await world.blobs.delete(keys)

    slow = Slow()
    await sweep(world, slow)
    assert not await slow.coming
    assert await there(world)


def test_a_run_names_the_bundle_that_it_needs() -> None:
    """Or nobody knows that it still needs one."""
    text = b"name: p\nstages: [{name: a, jobs: {j: {steps: [{run: 'true'}]}}}]\n"
    planned = expand(load(text, "headrace.yml"), Event(type="manual", branch="", tag="", commit="c" * 40))
    for source, bundle in (
        (common_pb2.Source(repository="r", bundle_sha256="ab" * 32), bytes.fromhex("ab" * 32)),
        (common_pb2.Source(repository="r", url="https://x/y"), None),
    ):
        request = run_pb2.CreateRunRequest(source=source, pipeline_text=text)
        assert new_run(request, planned, 1, [1], "").bundle == bundle


@pytest.mark.parametrize("needed", [False, True])
async def test_the_sweep_of_bundles_reads_what_is_due(world: World, *, needed: bool) -> None:
    """It runs every minute beside all runs there ever were."""
    await world.value("INSERT INTO bundle (sha256) SELECT sha256(n::text::bytea) FROM generate_series(1, 20000) n")
    await hand_in(world)
    run = await make_run(world)
    await world.value("UPDATE run SET bundle = $2 WHERE id = $1", run, bytes.fromhex(digest(DATA)))
    if not needed:
        await world.value(OVER, run)
    await world.value(
        "UPDATE bundle SET asked_at = asked_at - interval '8 days' WHERE sha256 = $1", bytes.fromhex(digest(DATA))
    )
    await world.value(
        """INSERT INTO run (project_id, pipeline, pipeline_file, pipeline_text, source, commit, event, trusted, bundle,
                            parameters, state, unfinished, active, blocked, failed, canceled, ended_at)
           SELECT project_id, 'p', 'f', '', '', 'c', 'manual', true, sha256(n::text::bytea),
                  '{}', 'passed', 0, 0, 0, 0, 0, clock_timestamp()
           FROM run, generate_series(1, 20000) n"""
    )
    await world.value("VACUUM ANALYZE bundle, run")
    await world.value("INSERT INTO singleton (name, term, replica) VALUES ('expiry', $1, $1)", TERM)
    rows = scanned(await plan(world, SQL.old_bundles, TERM))
    assert rows["bundle"] == 1, rows
    assert rows.get("run", 0) <= 1, rows
