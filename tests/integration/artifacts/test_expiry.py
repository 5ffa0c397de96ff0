"""Artifacts whose time is over: refused at once, deleted soon after, and never anything that still has a name."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
import pytest

from coordinator.blobs.expiry import Expiry
from coordinator.blobs.keys import artifact_key
from coordinator.blobs.store import StoreUnavailable
from coordinator.store.singletons import Singleton
from coordinator.store.sql import statements
from headrace.v1 import blob_pb2
from tests.integration.artifacts.test_artifacts import a_job, digest, fetch, publish, refused
from tests.integration.logs.test_statements import plan, scanned
from tests.integration.logs.world import World, make_attempt, make_job, make_run

SQL = statements("expiry")
TERM = "00000000-0000-0000-0000-000000000001"


class Failing:
    """A store in which nothing can be deleted."""

    def __init__(self, world: World, *, after: bool = False) -> None:
        self._blobs = world.blobs
        self._after = after

    async def delete(self, keys: Iterable[str]) -> None:
        if self._after:
            await self._blobs.delete(keys)
        raise StoreUnavailable("the store does not answer")


def a_term(world: World) -> Singleton:
    return Singleton(world.database, "expiry", lambda: 0.0)


async def sweep(world: World, blobs: object = None) -> None:
    """One replica sweeps until there is nothing more to do."""
    term = a_term(world)
    expiry = Expiry(world.database, blobs or world.blobs, term)  # type: ignore[arg-type]  # a store that fails
    try:
        while await expiry.once():
            pass
    finally:
        await term.leave()


async def ago(world: World, name: str, minutes: int) -> None:
    """The time of an artifact was over so long ago."""
    await world.value(
        "UPDATE artifact SET expires_at = clock_timestamp() - make_interval(mins => $2) WHERE name = $1", name, minutes
    )


async def end(world: World, attempt: int) -> None:
    await world.value("UPDATE attempt SET state = 'passed', ended_at = clock_timestamp() WHERE id = $1", attempt)


async def there(world: World, run: int, attempt: int, *contents: bytes) -> list[bool]:
    """Whether the objects are still in the store."""
    return [await world.blobs.head(artifact_key(run, attempt, digest(each))) is not None for each in contents]


async def shown(world: World, run: int) -> dict[str, tuple[bool, int]]:
    """Name -> (expired, number of files), as people see it."""
    answer = await world.artifacts.ListArtifacts(blob_pb2.ListArtifactsRequest(run_id=run))
    return {each.name: (each.expired, len(each.files)) for each in answer.artifacts}


async def download(world: World, run: int, name: str) -> None:
    await world.artifacts.DownloadArtifact(blob_pb2.DownloadArtifactRequest(run_id=run, name=name))


async def test_an_expired_artifact_is_shown_as_such_and_refused_in_one_sentence(world: World) -> None:
    """Before and after its files are gone, to people and to jobs: nobody gets half of it, or an error of the store."""
    run = await make_run(world)
    made = await make_attempt(world, await make_job(world, run, "wheel"))
    user = await make_attempt(world, await make_job(world, run, "user", stage=1))
    await publish(world, run, made, "dist", b"one")
    await end(world, made)
    assert await shown(world, run) == {"dist": (False, 1)}
    await ago(world, "dist", 1)
    for swept in (False, True):
        if swept:
            await ago(world, "dist", 61)
            await sweep(world)
        assert await shown(world, run) == {"dist": (True, 0)}, swept
        for call in (download(world, run, "dist"), fetch(world, user)):
            assert await refused(call) == (
                grpc.StatusCode.NOT_FOUND,
                f"artifact `dist` of run {run} has expired: retry job `wheel`, which makes it",
            )


async def test_what_has_expired_is_deleted_and_what_has_not_stays(world: World) -> None:
    """`keep: 30d` is a promise in both directions: disks fill otherwise."""
    run, attempt = await a_job(world)
    await publish(world, run, attempt, "short", b"one", b"two")
    await publish(world, run, attempt, "long", b"three")
    await end(world, attempt)
    await ago(world, "short", 61)
    await sweep(world)
    assert await there(world, run, attempt, b"one", b"two", b"three") == [False, False, True]
    assert await shown(world, run) == {"short": (True, 0), "long": (False, 1)}
    assert await world.value("SELECT count(*) FROM artifact_file") == 1


async def test_an_object_stays_while_another_artifact_of_its_attempt_names_it(world: World) -> None:
    """Two artifacts may hold the same file: it is one object, and goes with the last of them."""
    run, attempt = await a_job(world)
    await publish(world, run, attempt, "short", b"shared", b"own")
    await world.value("UPDATE artifact SET name = 'first'")
    await world.artifacts.PublishArtifact(
        blob_pb2.PublishArtifactRequest(
            attempt_id=attempt,
            token=bytes(range(16)),
            name="second",
            files=[blob_pb2.ArtifactFile(path="x", sha256=digest(b"shared"), size=6)],
        )
    )
    await end(world, attempt)
    await ago(world, "first", 61)
    await sweep(world)
    assert await there(world, run, attempt, b"shared", b"own") == [True, False]
    await download(world, run, "second")
    await ago(world, "second", 61)
    await sweep(world)
    assert await there(world, run, attempt, b"shared") == [False]


async def test_nothing_is_deleted_under_a_running_attempt_or_a_download_under_way(world: World) -> None:
    """The attempt may yet publish the same objects under another name, and a signed request is good for minutes."""
    run, attempt = await a_job(world)
    await publish(world, run, attempt, "dist", b"one")
    await ago(world, "dist", 600)
    await sweep(world)
    assert await there(world, run, attempt, b"one") == [True]
    await end(world, attempt)
    await ago(world, "dist", 30)
    await sweep(world)
    assert await there(world, run, attempt, b"one") == [True]


@pytest.mark.parametrize("after", [False, True])
async def test_a_sweep_that_breaks_off_is_taken_up_again(world: World, *, after: bool) -> None:
    """Before or after its objects were deleted: what was refused once stays refused, also when clocks step back."""
    run, attempt = await a_job(world)
    await publish(world, run, attempt, "dist", b"one")
    await end(world, attempt)
    await ago(world, "dist", 61)
    with pytest.raises(StoreUnavailable):
        await sweep(world, Failing(world, after=after))
    await ago(world, "dist", -600)
    assert await shown(world, run) == {"dist": (True, 0)}
    await sweep(world)
    assert await there(world, run, attempt, b"one") == [False]
    assert await world.value("SELECT count(*) FROM artifact_file") == 0


async def test_a_replica_without_the_term_deletes_nothing(world: World) -> None:
    """Two that sweep would only be in each other's way, and a test of one must mean something."""
    run, attempt = await a_job(world)
    await publish(world, run, attempt, "dist", b"one")
    await end(world, attempt)
    await ago(world, "dist", 61)
    assert await a_term(world).hold()
    await sweep(world)
    assert await there(world, run, attempt, b"one") == [True]


async def test_the_sweep_reads_what_is_due_and_not_the_history(world: World) -> None:
    """It runs for ever beside artifacts of which most are long gone, or kept for months."""
    run, attempt = await a_job(world)
    await end(world, attempt)
    await world.value(
        """INSERT INTO artifact (run_id, job_id, attempt_id, name, expires_at, state)
           SELECT $1, a.job_id, a.id, 'n' || n,
                  clock_timestamp() + CASE WHEN n % 2 = 0 THEN interval '30 days' ELSE interval '-30 days' END,
                  CASE WHEN n % 2 = 0 THEN 'there' ELSE 'expired' END
           FROM attempt a, generate_series(1, 20000) n""",
        run,
    )
    await world.value("INSERT INTO singleton (name, term, replica) VALUES ('expiry', $1, $1)", TERM)
    await world.value("UPDATE artifact SET expires_at = clock_timestamp() - interval '2 hours' WHERE name = 'n2'")
    await world.value("VACUUM ANALYZE artifact")
    rows = scanned(await plan(world, SQL.expire, TERM))
    assert rows["artifact"] <= 4, rows
    assert scanned(await plan(world, SQL.expiring)).get("artifact", 0) == 0
