"""Artifacts: uploaded by signed requests, published once, fetched by who depends on them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import Any

import grpc
import pytest

from coordinator.blobs.keys import artifact_key, bundle_key
from coordinator.blobs.store import BlobExists
from headrace.v1 import blob_pb2, common_pb2
from tests.integration.logs.world import TOKEN, World, make_attempt, make_job, make_run

PNG = b"not really a picture"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def a_file(path: str, data: bytes, *, executable: bool = False) -> blob_pb2.ArtifactFile:
    return blob_pb2.ArtifactFile(path=path, sha256=digest(data), size=len(data), executable=executable)


def a_publication(
    attempt: int, name: str, *files: blob_pb2.ArtifactFile, **more: Any
) -> blob_pb2.PublishArtifactRequest:
    return blob_pb2.PublishArtifactRequest(
        request_id="12345678", attempt_id=attempt, token=more.pop("token", TOKEN), name=name, files=files, **more
    )


async def upload(world: World, run: int, attempt: int, *contents: bytes) -> None:
    """What the agent does with the signed requests, without the detour over HTTP."""
    for data in contents:
        await world.blobs.put(artifact_key(run, attempt, digest(data)), data, sha256_hex=digest(data))


async def publish(world: World, run: int, attempt: int, name: str, *contents: bytes, **more: Any) -> None:
    await upload(world, run, attempt, *contents)
    files = [a_file(f"out/{n}.bin", data) for n, data in enumerate(contents)]
    await world.artifacts.PublishArtifact(a_publication(attempt, name, *files, **more))


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value.code(), failure.value.details() or ""


async def a_job(world: World, key: str = "build", **more: Any) -> tuple[int, int]:
    run = await make_run(world)
    return run, await make_attempt(world, await make_job(world, run, key, **more))


async def test_an_upload_is_signed_for_exactly_these_bytes_and_not_for_those_that_are_there(world: World) -> None:
    """A retry of the call after half of the files were sent sends the other half only."""
    run, attempt = await a_job(world)
    await upload(world, run, attempt, b"there")
    files = [blob_pb2.BlobFile(sha256=digest(data), size=len(data)) for data in (b"there", b"absent")]
    request = blob_pb2.PrepareUploadRequest(attempt_id=attempt, token=TOKEN, files=files)
    there, absent = (await world.artifacts.PrepareUpload(request)).transfers
    assert (there.present, there.url) == (True, "")
    assert (absent.present, absent.method, absent.size, absent.sha256) == (False, "PUT", 6, digest(b"absent"))
    assert absent.headers["content-length"] == "6"
    assert f"/artifacts/{run}/{attempt}/{digest(b'absent')}?" in absent.url


async def test_a_thousand_files_are_signed_in_one_call_and_not_one_more(world: World) -> None:
    """A call is bounded, and big enough that an upload is not made of round trips."""
    _, attempt = await a_job(world)
    files = [blob_pb2.BlobFile(sha256=digest(b"%d" % n), size=n) for n in range(1_001)]
    request = blob_pb2.PrepareUploadRequest(attempt_id=attempt, token=TOKEN, files=files[:1_000])
    answer = await world.artifacts.PrepareUpload(request)
    assert [each.sha256 for each in answer.transfers] == [each.sha256 for each in files[:1_000]]
    request = blob_pb2.PrepareUploadRequest(attempt_id=attempt, token=TOKEN, files=files)
    assert (await refused(world.artifacts.PrepareUpload(request)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_published_artifact_is_listed_and_downloaded(world: World) -> None:
    """The end of the way: a person gets the files under the names that the job gave them."""
    run, attempt = await a_job(world)
    await upload(world, run, attempt, PNG, b"#!/bin/sh\n")
    files = [a_file("a/é 1.png", PNG), a_file("b/run", b"#!/bin/sh\n", executable=True)]
    await world.artifacts.PublishArtifact(a_publication(attempt, "pictures", *files, keep_ms=60_000))
    (artifact,) = (await world.artifacts.ListArtifacts(blob_pb2.ListArtifactsRequest(run_id=run))).artifacts
    assert (artifact.name, artifact.job, getattr(artifact, "try")) == ("pictures", "build", 1)
    assert list(artifact.files) == files
    assert 0 <= artifact.expires_ms - artifact.published_ms - 60_000 < 1_000
    answer = await world.artifacts.DownloadArtifact(blob_pb2.DownloadArtifactRequest(run_id=run, name="pictures"))
    assert answer.artifact == artifact
    assert [(each.method, each.sha256) for each in answer.transfers] == [("GET", file.sha256) for file in files]


async def test_publishing_again_is_the_same_or_refused(world: World) -> None:
    """An answer may be lost; but a name never comes to mean something else."""
    run, attempt = await a_job(world)
    await publish(world, run, attempt, "dist", b"one", b"two")
    again = a_publication(attempt, "dist", a_file("out/1.bin", b"two"), a_file("out/0.bin", b"one"))
    await world.artifacts.PublishArtifact(again)
    code, sentence = await refused(
        world.artifacts.PublishArtifact(a_publication(attempt, "dist", a_file("out/0.bin", b"one")))
    )
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "other files" in sentence
    assert await world.value("SELECT count(*) FROM artifact") == 1


async def test_many_at_once_publish_an_artifact_once(world: World) -> None:
    """A retry may overtake the first call."""
    run, attempt = await a_job(world)
    await asyncio.gather(*(publish_uploaded(world, run, attempt) for _ in range(8)))
    assert await world.value("SELECT count(*) FROM artifact_file") == 1


async def publish_uploaded(world: World, run: int, attempt: int) -> None:
    with contextlib.suppress(BlobExists):
        await upload(world, run, attempt, b"one")
    await world.artifacts.PublishArtifact(a_publication(attempt, "dist", a_file("x", b"one")))


async def test_what_was_not_uploaded_is_not_published(world: World) -> None:
    """A name that leads to nothing would fail in a job that did nothing wrong."""
    run, attempt = await a_job(world)
    await upload(world, run, attempt, b"one")
    request = a_publication(attempt, "dist", a_file("x", b"one"), a_file("y", b"two"))
    code, sentence = await refused(world.artifacts.PublishArtifact(request))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "`y` was not uploaded" in sentence
    assert await world.value("SELECT count(*) FROM artifact") == 0


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("", ["a"]),
        ("a/b", ["a"]),
        ("..", ["a"]),
        ("a\nb", ["a"]),
        ("x" * 101, ["a"]),
        ("dist", ["/etc/passwd"]),
        ("dist", ["a/../b"]),
        ("dist", ["a//b"]),
        ("dist", ["."]),
        ("dist", ["a\0b"]),
        ("dist", ["x" * 256]),
        ("dist", ["/".join(["x" * 200] * 6)]),
        ("dist", ["a", "a"]),
        ("dist", ["a", "a/b"]),
    ],
)
async def test_names_and_paths_that_could_leave_their_place_are_refused(
    world: World, name: str, paths: list[str]
) -> None:
    """They become paths in other workspaces and on people's machines."""
    run, attempt = await a_job(world)
    await upload(world, run, attempt, b"one")
    request = a_publication(attempt, name, *(a_file(path, b"one") for path in paths))
    assert (await refused(world.artifacts.PublishArtifact(request)))[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("state", ["passed", "lost", "returned"])
async def test_an_attempt_that_is_over_gets_and_publishes_nothing(world: World, state: str) -> None:
    """Its job may run elsewhere: a late writer must not change what that one makes."""
    run = await make_run(world)
    attempt = await make_attempt(world, await make_job(world, run), state=state)
    await upload(world, run, attempt, b"one")
    calls = [
        world.artifacts.PrepareUpload(blob_pb2.PrepareUploadRequest(attempt_id=attempt, token=TOKEN)),
        world.artifacts.PublishArtifact(a_publication(attempt, "dist", a_file("x", b"one"))),
        world.artifacts.FetchArtifact(blob_pb2.FetchArtifactRequest(attempt_id=attempt, token=TOKEN, name="dist")),
        world.artifacts.FetchBundle(blob_pb2.FetchBundleRequest(attempt_id=attempt, token=TOKEN)),
    ]
    for call in calls:
        assert (await refused(call))[0] is grpc.StatusCode.FAILED_PRECONDITION


async def test_another_token_is_refused(world: World) -> None:
    """The number of an attempt is no secret; its token is."""
    run, attempt = await a_job(world)
    await upload(world, run, attempt, b"one")
    request = a_publication(attempt, "dist", a_file("x", b"one"), token=b"x" * 16)
    assert (await refused(world.artifacts.PublishArtifact(request)))[0] is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_name_has_one_producer_in_a_run(world: World) -> None:
    """`use: artifact/dist` must not depend on who was faster."""
    run = await make_run(world)
    first, second = [await make_attempt(world, await make_job(world, run, key)) for key in ("one", "two")]
    await publish(world, run, first, "dist", b"one")
    await upload(world, run, second, b"two")
    code, sentence = await refused(world.artifacts.PublishArtifact(a_publication(second, "dist", a_file("x", b"two"))))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "`one`" in sentence


async def fetch(world: World, attempt: int, name: str = "dist") -> list[str]:
    request = blob_pb2.FetchArtifactRequest(attempt_id=attempt, token=TOKEN, name=name)
    answer = await world.artifacts.FetchArtifact(request)
    assert [each.sha256 for each in answer.transfers] == [each.sha256 for each in answer.files]
    return [each.sha256 for each in answer.files]


async def test_an_artifact_goes_to_jobs_that_depend_on_its_producer_and_to_no_others(world: World) -> None:
    """A job that does not wait for the producer would find the artifact or not, by the hour."""
    run = await make_run(world)
    jobs = {
        "wheel": await make_job(world, run, "wheel", needs=[]),
        "near": await make_job(world, run, "near", needs=["wheel"]),
        "far": await make_job(world, run, "far", needs=["near"]),
        "beside": await make_job(world, run, "beside", needs=[]),
        "later": await make_job(world, run, "later", stage=1),
        "choosy": await make_job(world, run, "choosy", stage=1, needs=["beside"]),
        "behind": await make_job(world, run, "behind", stage=2, needs=["later"]),
    }
    attempts = {key: await make_attempt(world, job) for key, job in jobs.items()}
    await publish(world, run, attempts["wheel"], "dist", b"one")
    for key in ("near", "far", "later", "behind"):
        assert await fetch(world, attempts[key]) == [digest(b"one")], key
    for key in ("wheel", "beside", "choosy"):
        code, sentence = await refused(fetch(world, attempts[key]))
        assert code is grpc.StatusCode.FAILED_PRECONDITION, key
        assert "`wheel`" in sentence
    assert (await refused(fetch(world, attempts["near"], "other")))[0] is grpc.StatusCode.NOT_FOUND


async def test_after_a_retry_the_newest_attempts_artifact_counts(world: World) -> None:
    """Whoever retries a job wants what it makes now."""
    run = await make_run(world)
    job = await make_job(world, run, "wheel", needs=[])
    user = await make_attempt(world, await make_job(world, run, "user", needs=["wheel"]))
    for number, data in ((1, b"old"), (2, b"new")):
        await publish(world, run, await make_attempt(world, job, attempt_try=number), "dist", data)
    assert await fetch(world, user) == [digest(b"new")]
    (artifact,) = (await world.artifacts.ListArtifacts(blob_pb2.ListArtifactsRequest(run_id=run))).artifacts
    assert getattr(artifact, "try") == 2


async def test_artifacts_of_other_runs_are_out_of_reach(world: World) -> None:
    """Names are looked for in the attempt's own run alone."""
    run, attempt = await a_job(world, "wheel", needs=[])
    await publish(world, run, attempt, "dist", b"one")
    _, stranger = await a_job(world, "later", stage=1)
    assert (await refused(fetch(world, stranger)))[0] is grpc.StatusCode.NOT_FOUND


async def test_a_bundle_is_handed_in_by_a_client_and_fetched_by_the_runs_agents(world: World) -> None:
    """A run of what lies on somebody's disk: the agent needs no way to that machine."""
    data = b"a git bundle"
    request = blob_pb2.PrepareBundleRequest(bundle=blob_pb2.BlobFile(sha256=digest(data), size=len(data)))
    assert not (await world.artifacts.PrepareBundle(request)).transfer.present
    await world.blobs.put(bundle_key(digest(data)), data)
    assert (await world.artifacts.PrepareBundle(request)).transfer.present
    run, attempt = await a_job(world)
    fetch = blob_pb2.FetchBundleRequest(attempt_id=attempt, token=TOKEN)
    assert (await refused(world.artifacts.FetchBundle(fetch)))[0] is grpc.StatusCode.FAILED_PRECONDITION
    source = common_pb2.Source(repository="r", bundle_sha256=digest(data), commit="c").SerializeToString()
    await world.value("UPDATE run SET source = $2 WHERE id = $1", run, source)
    transfer = (await world.artifacts.FetchBundle(fetch)).transfer
    assert (transfer.method, transfer.size, transfer.sha256) == ("GET", len(data), digest(data))
    request.bundle.size = (200 << 20) + 1
    assert (await refused(world.artifacts.PrepareBundle(request)))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_run_is_not_found(world: World) -> None:
    """An empty list would say that it has no artifacts."""
    code, _ = await refused(world.artifacts.ListArtifacts(blob_pb2.ListArtifactsRequest(run_id=1 << 40)))
    assert code is grpc.StatusCode.NOT_FOUND
