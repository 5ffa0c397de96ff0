"""The other side of an agent: a coordinator over real gRPC that gives what a test tells it to, and keeps what comes."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

import grpc
import grpc.aio
import zstandard

from headrace.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    blob_pb2,
    blob_pb2_grpc,
    common_pb2,
    log_pb2,
    log_pb2_grpc,
)

TOKEN = "agent-token-of-the-tests"


@dataclass
class Log:
    """What was appended for one attempt."""

    records: list[log_pb2.Record] = field(default_factory=list)
    repeats: int = 0
    final: int = -1
    """The last word: so many records, and no more."""

    @property
    def text(self) -> str:
        """All frames, inflated."""
        return self._inflated(record.frame for record in self.records)

    @property
    def ours(self) -> str:
        """Those that are Headrace's own."""
        return self._inflated(record.frame for record in self.records if record.frame.ours)

    @staticmethod
    def _inflated(frames: Iterable[log_pb2.Frame]) -> str:
        inflate = zstandard.ZstdDecompressor().decompress
        return b"".join(inflate(frame.zstd, max_output_size=1 << 16) for frame in frames if frame.zstd).decode()

    @property
    def sections(self) -> list[tuple[str, str]]:
        """Kind and title of each, in order."""
        return [(r.opened.kind, r.opened.title) for r in self.records if r.WhichOneof("what") == "opened"]


class OtherSide(
    agent_pb2_grpc.AgentServiceServicer, log_pb2_grpc.LogServiceServicer, blob_pb2_grpc.BlobServiceServicer
):
    """One coordinator. Set `queue` to give jobs; look at `started`, `ended`, `logs`."""

    def __init__(self) -> None:
        self.address = ""
        self.changed = asyncio.Condition()
        self.hellos: list[agent_pb2.Hello] = []
        self.heartbeats: list[agent_pb2.Heartbeat] = []
        self.heard: list[float] = []
        """When each came."""
        self.started: dict[int, str] = {}
        self.ended: dict[int, agent_pb2.Ended] = {}
        self.reports: dict[str, int] = {}
        self.accepted: dict[int, bool] = {}
        self.refusals: dict[int, str] = {}
        self.refusal = ""
        self.logs: dict[int, Log] = collections.defaultdict(Log)
        self.artifacts: dict[str, list[blob_pb2.ArtifactFile]] = {}
        self.stored: dict[str, bytes] = {}
        self.credit = 0
        self.draining = False
        self.number = 0
        self.waiting: list[agent_pb2.Assignment] = []
        self.tokens: dict[int, bytes] = {}
        self.specs: dict[int, common_pb2.JobSpec] = {}
        self.stale: set[int] = set()
        self.permits: list[agent_pb2.PermitRequest] = []
        self.grant_permits = True
        self.when_asked: Callable[[], object] = lambda: None
        """Called before a permit is answered."""
        self.out: asyncio.Queue[agent_pb2.SessionResponse] | None = None
        self.answer_heartbeats = True
        self.cut_logs_after: int | None = None
        self.take_logs = True
        self.answer_reports = True
        self.logs_end: asyncio.Event | None = None
        """When it is set, the streams of logs are cut; nothing is read from them, or answered, before that."""
        self.blob_url = ""
        self.uploads = 0
        self.hold_uploads = False
        self.extends: list[agent_pb2.ExtendRequest] = []
        self.extension: agent_pb2.ExtendResponse | grpc.StatusCode = agent_pb2.ExtendResponse(added=1)

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Callable[[], object], seconds: float = 30.0) -> None:
        """Waits until something is so."""
        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(lambda: bool(condition()))

    def give(self, spec: common_pb2.JobSpec, attempt: int | None = None, *, needs: bytes = b"") -> int:
        """Queues a job; returns the attempt's id."""
        attempt = attempt or len(self.tokens) + 1
        self.tokens[attempt] = os.urandom(16)
        self.specs[attempt] = spec
        self.waiting.append(
            agent_pb2.Assignment(
                attempt_id=attempt,
                token=self.tokens[attempt],
                spec=spec.SerializeToString(),
                needs=needs,
                **{"try": 1},
            )
        )
        self.assign()
        return attempt

    def assign(self) -> None:
        found = []
        while self.out is not None and self.credit and self.waiting and not self.draining:
            self.credit -= 1
            self.number += 1
            assignment = self.waiting.pop(0)
            assignment.number = self.number
            found.append(assignment)
        if found and self.out is not None:
            self.say(assignments=agent_pb2.Assignments(assignments=found))

    def say(self, **message: object) -> None:
        assert self.out is not None
        self.out.put_nowait(agent_pb2.SessionResponse(**message))  # type: ignore[arg-type]

    def cancel(self, attempt: int, *, kill: bool = False, abort: bool = False) -> None:
        order = agent_pb2.Cancel(attempt_id=attempt, kill=kill, abort=abort, sentence="canceled by ana")
        self.say(cancels=agent_pb2.Cancels(cancels=[order]))

    # AgentService

    async def Session(  # noqa: N802
        self, requests: AsyncIterator[agent_pb2.SessionRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[agent_pb2.SessionResponse]:
        await check(context)
        first = await anext(aiter(requests))
        hello = first.hello
        self.hellos.append(hello)
        self.credit, self.number, self.draining = hello.credit, 0, hello.draining
        self.out = out = asyncio.Queue()
        verdicts = [
            agent_pb2.Verdict(attempt_id=each.attempt_id, resume=self.tokens.get(each.attempt_id) == each.token)
            for each in hello.held
        ]
        welcome = agent_pb2.Welcome(session_id="s", heartbeat_interval_ms=500, lease_ms=30_000, verdicts=verdicts)
        self.say(welcome=welcome)
        self.assign()
        await self.tell()
        reading = asyncio.create_task(self.read(requests))
        try:
            while True:
                getting = asyncio.create_task(out.get())
                await asyncio.wait((getting, reading), return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    return
                yield getting.result()
        finally:
            reading.cancel()
            if self.out is out:
                self.out = None

    async def read(self, requests: AsyncIterator[agent_pb2.SessionRequest]) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "heartbeat":
                    self.heartbeats.append(request.heartbeat)
                    self.heard.append(time.monotonic())
                    if self.answer_heartbeats:
                        self.say(heartbeat_answer=agent_pb2.HeartbeatAnswer(sequence=request.heartbeat.sequence))
                case "credit":
                    self.credit += request.credit.slots
                case "acknowledgements":
                    for each in request.acknowledgements.acknowledgements:
                        self.accepted[each.attempt_id] = each.accepted
                        self.refusals[each.attempt_id] = each.sentence
                case "draining":
                    self.draining, self.refusal = True, request.draining.sentence
                case "permit_request":
                    asked = request.permit_request
                    self.permits.append(asked)
                    self.when_asked()
                    self.say(
                        permit_answer=agent_pb2.PermitAnswer(
                            attempt_id=asked.attempt_id,
                            nonce=asked.nonce,
                            granted=self.grant_permits,
                            fencing_token=7,
                            sentence="" if self.grant_permits else "somebody else has it",
                        )
                    )
                case "reports":
                    answers = [self.take(report) for report in request.reports.reports]
                    if self.answer_reports:
                        self.say(report_answers=agent_pb2.ReportAnswers(answers=answers))
            self.assign()
            await self.tell()

    def take(self, report: agent_pb2.Report) -> agent_pb2.ReportAnswer:
        self.reports[report.id] = self.reports.get(report.id, 0) + 1
        stale = report.attempt_id in self.stale or report.token != self.tokens.get(report.attempt_id)
        if not stale and report.WhichOneof("what") == "started":
            self.started[report.attempt_id] = report.id
        elif not stale:
            self.ended[report.attempt_id] = report.ended
        return agent_pb2.ReportAnswer(id=report.id, attempt_id=report.attempt_id, abort=stale)

    # LogService

    async def Append(  # noqa: N802
        self, requests: AsyncIterator[log_pb2.AppendRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[log_pb2.AppendResponse]:
        await check(context)
        taken = 0
        async for request in requests:
            if self.logs_end is not None:
                await self.logs_end.wait()
                self.logs_end = None
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the test")
            if not self.take_logs:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "no log is taken now")
            response = log_pb2.AppendResponse()
            for batch in request.batches:
                log = self.logs[batch.attempt_id]
                assert batch.token == self.tokens.get(batch.attempt_id)
                for record in batch.records:
                    if record.sequence == len(log.records) + 1:
                        log.records.append(record)
                    else:
                        assert record.sequence <= len(log.records), "a gap in the log"
                        log.repeats += 1
                    taken += 1
                if batch.HasField("final"):
                    log.final = batch.final
                offset = sum(record.frame.raw_length for record in log.records)
                response.durable.append(
                    log_pb2.Durable(
                        attempt_id=batch.attempt_id, stream=batch.stream, sequence=len(log.records), offset=offset
                    )
                )
            await self.tell()
            if self.cut_logs_after is not None and taken > self.cut_logs_after:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the test")
            yield response

    # BlobService

    async def PrepareUpload(  # noqa: N802
        self, request: blob_pb2.PrepareUploadRequest, context: grpc.aio.ServicerContext
    ) -> blob_pb2.PrepareUploadResponse:
        await check(context)
        self.uploads += 1
        await self.tell()
        await self.until(lambda: not self.hold_uploads)
        return blob_pb2.PrepareUploadResponse(
            transfers=[self.transfer(file.sha256, file.size, "PUT") for file in request.files]
        )

    async def Extend(  # noqa: N802
        self, request: agent_pb2.ExtendRequest, context: grpc.aio.ServicerContext
    ) -> agent_pb2.ExtendResponse:
        await check(context)
        self.extends.append(request)
        await self.tell()
        if isinstance(self.extension, grpc.StatusCode):
            await context.abort(self.extension, "no")
        return self.extension

    async def PublishArtifact(  # noqa: N802
        self, request: blob_pb2.PublishArtifactRequest, context: grpc.aio.ServicerContext
    ) -> blob_pb2.PublishArtifactResponse:
        await check(context)
        for file in request.files:
            assert hashlib.sha256(self.stored[file.sha256]).hexdigest() == file.sha256
        self.artifacts[request.name] = list(request.files)
        return blob_pb2.PublishArtifactResponse()

    async def FetchArtifact(  # noqa: N802
        self, request: blob_pb2.FetchArtifactRequest, context: grpc.aio.ServicerContext
    ) -> blob_pb2.FetchArtifactResponse:
        await check(context)
        if request.name not in self.artifacts:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no artifact {request.name} in this run")
        files = self.artifacts[request.name]
        return blob_pb2.FetchArtifactResponse(
            files=files, transfers=[self.transfer(file.sha256, file.size, "GET") for file in files]
        )

    def transfer(self, sha256: str, size: int, method: str) -> common_pb2.Transfer:
        return common_pb2.Transfer(sha256=sha256, size=size, method=method, url=f"{self.blob_url}/{sha256}")

    async def store(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The smallest blob store: PUT and GET of one object a connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, path, _ = head.split(" ", 2)
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if method == "PUT":
                self.stored[path[1:]] = body
            found = self.stored[path[1:]] if method == "GET" else b""
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Length: {len(found)}\r\nConnection: close\r\n\r\n".encode() + found
            )
            await writer.drain()
        writer.close()


async def check(context: grpc.aio.ServicerContext) -> None:
    """Only the agent with the token is let in."""
    found = dict(context.invocation_metadata() or ())
    if found.get("authorization") != f"Bearer {TOKEN}":
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is wrong")


@contextlib.asynccontextmanager
async def other_side(address: str = "127.0.0.1:0") -> AsyncIterator[OtherSide]:
    """A running coordinator of the tests."""
    side = OtherSide()
    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentServiceServicer_to_server(side, server)
    log_pb2_grpc.add_LogServiceServicer_to_server(side, server)
    blob_pb2_grpc.add_BlobServiceServicer_to_server(side, server)
    side.address = f"127.0.0.1:{server.add_insecure_port(address)}"
    await server.start()
    store = await asyncio.start_server(side.store, "127.0.0.1", 0)
    side.blob_url = f"http://127.0.0.1:{store.sockets[0].getsockname()[1]}"
    try:
        yield side
    finally:
        store.close()
        await server.stop(0)
