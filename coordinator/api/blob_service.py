"""BlobService on the wire: signed requests for exactly one object each, and names that become digests."""

# ruff: noqa: ARG002, N802  (gRPC gives methods their names and their two arguments)

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from coordinator.api.artifact_names import DAY_MS, check_blobs, check_files, check_keep, check_name
from coordinator.api.errors import rpc
from coordinator.blobs.keys import artifact_key, bundle_key
from coordinator.blobs.store import BlobStore, SignedRequest
from coordinator.errors import BadInput, Conflict, NotFound, Violation
from coordinator.store.artifacts import Artifact, Artifacts, File
from headrace.v1 import blob_pb2, blob_pb2_grpc, common_pb2

BUNDLE_MOST = 200 << 20
"""Bytes of a git bundle."""
KEEP_MS = 30 * DAY_MS
"""How long an artifact is kept that does not say."""

# Requests to the blob store at a time, for one call.
_AT_ONCE = 32

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class BlobService(blob_pb2_grpc.BlobServiceServicer):
    """Signs for a blob store what the artifacts of a database allow. `keep_ms`: where an artifact does not say."""

    def __init__(self, artifacts: Artifacts, blobs: BlobStore, *, keep_ms: int = KEEP_MS) -> None:
        self._artifacts = artifacts
        self._blobs = blobs
        self._keep_ms = keep_ms

    @rpc
    async def PrepareUpload(
        self, request: blob_pb2.PrepareUploadRequest, context: Any
    ) -> blob_pb2.PrepareUploadResponse:
        """Signs an upload for each file that is not there yet."""
        check_blobs(request.files)
        attempt = await self._artifacts.live(request.attempt_id, request.token)

        async def transfer(file: blob_pb2.BlobFile) -> common_pb2.Transfer:
            return await self._upload(artifact_key(attempt.run_id, attempt.id, file.sha256), file)

        return blob_pb2.PrepareUploadResponse(transfers=await _each(transfer, request.files))

    @rpc
    async def PublishArtifact(
        self, request: blob_pb2.PublishArtifactRequest, context: Any
    ) -> blob_pb2.PublishArtifactResponse:
        """Makes a name stand for files, once all of them are there."""
        check_name(request.name)
        check_files(request.files)
        check_keep(request.keep_ms)
        attempt = await self._artifacts.live(request.attempt_id, request.token)
        sizes = {file.sha256: file for file in request.files}

        async def missing(file: blob_pb2.ArtifactFile) -> str:
            info = await self._blobs.head(artifact_key(attempt.run_id, attempt.id, file.sha256))
            return "" if info is not None and info.size == file.size else file.path

        absent = [path for path in await _each(missing, list(sizes.values())) if path]
        if absent:
            more = f" and {len(absent) - 1} more files were" if len(absent) > 1 else " was"
            raise Conflict(f"artifact `{request.name}`: `{absent[0]}`{more} not uploaded")
        files = [File(each.path, bytes.fromhex(each.sha256), each.size, each.executable) for each in request.files]
        keep = timedelta(milliseconds=request.keep_ms or self._keep_ms)
        await self._artifacts.publish(attempt.id, request.token, request.name, files, keep)
        return blob_pb2.PublishArtifactResponse()

    @rpc
    async def FetchArtifact(
        self, request: blob_pb2.FetchArtifactRequest, context: Any
    ) -> blob_pb2.FetchArtifactResponse:
        """Signs downloads of an artifact for a job that depends on its producer."""
        check_name(request.name)
        found = await self._artifacts.fetch(request.attempt_id, request.token, request.name)
        return blob_pb2.FetchArtifactResponse(files=_files(found), transfers=await self._downloads(found))

    @rpc
    async def FetchBundle(self, request: blob_pb2.FetchBundleRequest, context: Any) -> blob_pb2.FetchBundleResponse:
        """Signs a download of the run's source bundle."""
        attempt = await self._artifacts.live(request.attempt_id, request.token)
        source = common_pb2.Source.FromString(await self._artifacts.source(attempt))
        if source.WhichOneof("fetch") != "bundle_sha256":
            raise Conflict("the source of this run is not a bundle")
        key = bundle_key(source.bundle_sha256)
        info = await self._blobs.head(key)
        if info is None:
            raise NotFound("the source bundle of this run is gone: start the run again")
        signed = await self._blobs.sign_get(key, "source.bundle")
        return blob_pb2.FetchBundleResponse(transfer=_transfer(source.bundle_sha256, info.size, signed))

    @rpc
    async def ListArtifacts(
        self, request: blob_pb2.ListArtifactsRequest, context: Any
    ) -> blob_pb2.ListArtifactsResponse:
        """The artifacts of a run."""
        found = await self._artifacts.of_run(request.run_id)
        return blob_pb2.ListArtifactsResponse(artifacts=map(_artifact, found))

    @rpc
    async def DownloadArtifact(
        self, request: blob_pb2.DownloadArtifactRequest, context: Any
    ) -> blob_pb2.DownloadArtifactResponse:
        """Signs downloads of an artifact for a person."""
        check_name(request.name)
        found = await self._artifacts.newest(request.run_id, request.name)
        return blob_pb2.DownloadArtifactResponse(artifact=_artifact(found), transfers=await self._downloads(found))

    @rpc
    async def PrepareBundle(
        self, request: blob_pb2.PrepareBundleRequest, context: Any
    ) -> blob_pb2.PrepareBundleResponse:
        """Signs an upload of a git bundle."""
        check_blobs([request.bundle])
        if request.bundle.size > BUNDLE_MOST:
            sentence = "a bundle is at most 200 MiB: push the commit to a server that agents reach, and use --repo"
            raise BadInput(sentence, (Violation("bundle.size", sentence),))
        await self._artifacts.hand_in(request.bundle.sha256)
        transfer = await self._upload(bundle_key(request.bundle.sha256), request.bundle)
        return blob_pb2.PrepareBundleResponse(transfer=transfer)

    async def _upload(self, key: str, file: blob_pb2.BlobFile) -> common_pb2.Transfer:
        info = await self._blobs.head(key)
        if info is not None:
            return common_pb2.Transfer(sha256=file.sha256, size=info.size, present=True)
        return _transfer(file.sha256, file.size, await self._blobs.sign_put(key, file.size, file.sha256))

    async def _downloads(self, artifact: Artifact) -> list[common_pb2.Transfer]:
        async def transfer(file: File) -> common_pb2.Transfer:
            digest = file.sha256.hex()
            key = artifact_key(artifact.run_id, artifact.attempt_id, digest)
            return _transfer(digest, file.size, await self._blobs.sign_get(key, file.path.rsplit("/", 1)[-1]))

        return await _each(transfer, artifact.files)


async def _each(work: Callable[[_In], Awaitable[_Out]], items: Sequence[_In]) -> list[_Out]:
    """Works on all items, a bounded number at a time; results in order. The first error ends it."""
    results: dict[int, _Out] = {}
    todo = iter(enumerate(items))

    async def worker() -> None:
        for index, item in todo:
            results[index] = await work(item)

    workers = [asyncio.ensure_future(worker()) for _ in range(min(_AT_ONCE, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[index] for index in range(len(items))]


def _transfer(sha256: str, size: int, signed: SignedRequest) -> common_pb2.Transfer:
    return common_pb2.Transfer(
        sha256=sha256, size=size, method=signed.method, url=signed.url, headers=dict(signed.headers)
    )


def _files(artifact: Artifact) -> Iterable[blob_pb2.ArtifactFile]:
    for file in artifact.files:
        yield blob_pb2.ArtifactFile(
            path=file.path, sha256=file.sha256.hex(), size=file.size, executable=file.executable
        )


def _artifact(artifact: Artifact) -> blob_pb2.Artifact:
    answer = blob_pb2.Artifact(
        name=artifact.name,
        job=artifact.job,
        files=_files(artifact),
        published_ms=_ms(artifact.published_at),
        expires_ms=0 if artifact.expires_at is None else _ms(artifact.expires_at),
        expired=artifact.expired,
    )
    setattr(answer, "try", artifact.attempt_try)  # a keyword of Python: it has no attribute syntax
    return answer


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
