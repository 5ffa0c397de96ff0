"""The agent's calls of the blob service: unary, fenced by the attempt's token, safe to repeat."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import grpc.aio

from agent.calls import CALL_S, Answer, Calls
from agent.workspace.artifacts import ArtifactFile, Ask
from agent.workspace.transfers import Transfer
from headrace.pipeline.plan import ArtifactSpec
from headrace.v1 import blob_pb2 as pb
from headrace.v1 import blob_pb2_grpc, common_pb2


class Blobs:
    """Asks a coordinator for signed requests."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def for_attempt(self, attempt: int, token: bytes) -> AttemptBlobs:
        """The calls of one attempt."""
        return AttemptBlobs(self, attempt, token)

    async def call(self, ask: Callable[[blob_pb2_grpc.BlobServiceAsyncStub], Awaitable[Answer]], what: str) -> Answer:
        """One call, tried again while nobody answers. Raises `JobProblem`."""

        def asked(channel: grpc.aio.Channel) -> Awaitable[Answer]:
            stub: blob_pb2_grpc.BlobServiceAsyncStub = blob_pb2_grpc.BlobServiceStub(channel)
            return ask(stub)

        return await self._calls.call(asked, what)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The agent's credential."""
        return self._calls.metadata()


class AttemptBlobs:
    """The blob calls of one attempt, as the workspace room wants them."""

    def __init__(self, blobs: Blobs, attempt: int, token: bytes) -> None:
        self._blobs = blobs
        self._attempt = attempt
        self._token = token

    async def prepare_upload(self, files: Sequence[ArtifactFile]) -> list[Transfer]:
        """Signed requests to upload the files, in their order."""
        request = pb.PrepareUploadRequest(
            attempt_id=self._attempt,
            token=self._token,
            files=[pb.BlobFile(sha256=file.sha256, size=file.size) for file in files],
        )
        answer = await self._blobs.call(
            lambda stub: stub.PrepareUpload(request, metadata=self._blobs.metadata(), timeout=CALL_S),
            "artifacts cannot be uploaded",
        )
        return [_transfer(each) for each in answer.transfers]

    async def publish(self, spec: ArtifactSpec, files: Sequence[ArtifactFile], request_id: str) -> None:
        """Gives the uploaded files their name."""
        request = pb.PublishArtifactRequest(
            request_id=request_id,
            attempt_id=self._attempt,
            token=self._token,
            name=spec.name,
            keep_ms=spec.keep_ms,
            files=[
                pb.ArtifactFile(path=file.path, sha256=file.sha256, size=file.size, executable=file.executable)
                for file in files
            ],
        )
        await self._blobs.call(
            lambda stub: stub.PublishArtifact(request, metadata=self._blobs.metadata(), timeout=CALL_S),
            f"artifact {spec.name} cannot be published",
        )

    async def fetch(self, name: str) -> tuple[list[ArtifactFile], Ask]:
        """An artifact's files, and how to ask for the requests that bring them."""
        answer = await self._fetch(name)
        files = [ArtifactFile(file.path, file.sha256, file.size, file.executable) for file in answer.files]
        known = {file: _transfer(each) for file, each in zip(files, answer.transfers, strict=True)}

        async def ask(wanted: Sequence[ArtifactFile]) -> list[Transfer]:
            if all(file in known for file in wanted):
                return [known.pop(file) for file in wanted]
            again = await self._fetch(name)
            fresh = {file.path: _transfer(each) for file, each in zip(again.files, again.transfers, strict=True)}
            return [fresh[file.path] for file in wanted]

        return files, ask

    async def fetch_bundle(self) -> Transfer:
        """The signed request for the run's source bundle."""
        request = pb.FetchBundleRequest(attempt_id=self._attempt, token=self._token)
        answer = await self._blobs.call(
            lambda stub: stub.FetchBundle(request, metadata=self._blobs.metadata(), timeout=CALL_S),
            "the run's source cannot be fetched",
        )
        return _transfer(answer.transfer)

    async def _fetch(self, name: str) -> pb.FetchArtifactResponse:
        request = pb.FetchArtifactRequest(attempt_id=self._attempt, token=self._token, name=name)
        return await self._blobs.call(
            lambda stub: stub.FetchArtifact(request, metadata=self._blobs.metadata(), timeout=CALL_S),
            f"artifact {name} cannot be fetched",
        )


def _transfer(told: common_pb2.Transfer) -> Transfer:
    return Transfer(told.sha256, told.size, told.url, told.method, dict(told.headers), told.present)
