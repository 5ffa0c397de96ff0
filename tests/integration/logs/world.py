"""A coordinator's log and blob services over a real database and a real wire, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import zstandard

from coordinator.api.blob_service import BlobService
from coordinator.api.limits import Limits
from coordinator.api.log_service import LogService
from coordinator.blobs.folder import ObjectFolder
from coordinator.blobs.local import LocalBlobs
from coordinator.blobs.urls import UrlSigner
from coordinator.core.bucket import Rate
from coordinator.logs.bells import LogBells
from coordinator.logs.reader import LogReader
from coordinator.logs.writer import LogWriter
from coordinator.store.artifacts import Artifacts
from coordinator.store.database import Database
from coordinator.store.logs import PostgresLogs
from coordinator.store.runs import Unfinished
from headrace.v1 import blob_pb2_grpc, log_pb2, log_pb2_grpc

TOKEN = bytes(range(16))


class CountedClock:
    """Unix seconds that stand still."""

    def __call__(self) -> float:
        return 1_700_000_000.0


@dataclass
class World:
    """One replica: its parts, and stubs of its services over loopback."""

    dsn: str
    database: Database
    bells: LogBells
    writer: LogWriter
    reader: LogReader
    blobs: LocalBlobs
    address: str
    logs: Any
    artifacts: Any

    @property
    def replica(self) -> contextlib.AbstractAsyncContextManager[World]:
        """Another replica over the same database and blobs."""
        return replica(self.dsn, self.blobs)

    async def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        async with self.database.connection() as db:
            return list(await db.fetch(statement, *arguments))

    async def value(self, statement: str, *arguments: object) -> Any:
        async with self.database.connection() as db:
            return await db.fetchval(statement, *arguments)

    async def append(self, *batches: log_pb2.RecordBatch) -> list[log_pb2.Durable]:
        """Appends over one stream, a message a batch, and returns all answers."""
        return [durable async for durable in self.appended(batches)]

    async def appended(self, batches: Iterable[log_pb2.RecordBatch]) -> AsyncIterator[log_pb2.Durable]:
        call = self.logs.Append(log_pb2.AppendRequest(batches=[batch]) for batch in batches)
        async for response in call:
            for durable in response.durable:
                yield durable

    def tail(self, run: int, job: str = "build", *, follow: bool = True, **more: Any) -> Any:
        return self.logs.Tail(log_pb2.TailRequest(run_id=run, job=job, follow=follow, **more))


@contextlib.asynccontextmanager
async def replica(dsn: str, blobs: LocalBlobs) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as up:
        database = await up.enter_async_context(Database.open(dsn, size=8))
        bells = LogBells()
        writer = LogWriter(PostgresLogs(database), bells)
        reader = LogReader(database, blobs, bells, poll_s=0.05)
        writing = asyncio.create_task(writer.run())
        up.push_async_callback(_ended, writing)
        rate, runs = Rate(1, 1), Unfinished(1, 1)
        limits = Limits(caller=rate, subject=rate, streams=1_000, unfinished=runs, clock=time.monotonic)
        server = grpc.aio.server()
        log_pb2_grpc.add_LogServiceServicer_to_server(LogService(writer, reader, limits), server)
        blob_pb2_grpc.add_BlobServiceServicer_to_server(BlobService(Artifacts(database), blobs), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        up.push_async_callback(server.stop, 0)
        address = f"127.0.0.1:{port}"
        channel = await up.enter_async_context(grpc.aio.insecure_channel(address))
        stubs = log_pb2_grpc.LogServiceStub(channel), blob_pb2_grpc.BlobServiceStub(channel)
        yield World(dsn, database, bells, writer, reader, blobs, address, *stubs)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def local_blobs(folder: Path) -> LocalBlobs:
    return LocalBlobs(ObjectFolder(folder), "http://127.0.0.1:1", UrlSigner([b"s" * 32]), CountedClock())


async def make_run(world: World) -> int:
    project = await world.value(
        """INSERT INTO project (repository, name) VALUES ('r', 'p')
           ON CONFLICT (repository) DO UPDATE SET name = 'p' RETURNING id"""
    )
    return int(
        await world.value(
            """INSERT INTO run (project_id, pipeline, pipeline_file, pipeline_text, source, commit, event, trusted,
                                parameters, state, unfinished, active, blocked, failed, canceled)
               VALUES ($1, 'p', 'f', '', '', 'c', 'manual', true, '{}', 'running', 1, 1, 0, 0, 0) RETURNING id""",
            project,
        )
    )


async def make_job(
    world: World, run: int, key: str = "build", *, stage: int = 0, needs: Sequence[str] | None = None
) -> int:
    await world.value(
        "INSERT INTO stage (run_id, index, name, unfinished) VALUES ($1, $2, 's', 1) ON CONFLICT DO NOTHING", run, stage
    )
    cls = await world.value(
        """INSERT INTO class (pool, requires, sandbox, network, trusted) VALUES ('default', '{}', 'any', 'full', true)
           ON CONFLICT (pool, requires, sandbox, network, trusted, cpu, memory, hard_limits)
           DO UPDATE SET pool = 'default' RETURNING id"""
    )
    job = await world.value(
        """INSERT INTO job (run_id, stage, place, key, needs, spec, cls, pool, at_most_once, state, unfinished)
           VALUES ($1, $2, 0, $3, $4, '', $5, 'default', false, 'queued', 0) RETURNING id""",
        run,
        stage,
        key,
        needs,
        cls,
    )
    for need in needs or ():
        await world.value(
            """INSERT INTO dependency (run_id, job_id, dependent)
               SELECT $1, id, $3 FROM job WHERE run_id = $1 AND key = $2""",
            run,
            need,
            job,
        )
    return int(job)


async def make_attempt(
    world: World, job: int, *, token: bytes = TOKEN, attempt_try: int = 1, state: str = "running"
) -> int:
    agent = await world.value(
        """INSERT INTO agent (name, pool, instance, version, labels, slots, sandboxes)
           VALUES ('a', 'default', 'i', '1', '{}', 1, '[]')
           ON CONFLICT (name) DO UPDATE SET version = '1' RETURNING id"""
    )
    return int(
        await world.value(
            """INSERT INTO attempt (job_id, run_id, agent_id, token, try, state, ended_at)
               SELECT $1, run_id, $2, $3, $4, $5,
                      CASE WHEN $5 NOT IN ('leased', 'running') THEN clock_timestamp() END
               FROM job WHERE id = $1 RETURNING id""",
            job,
            agent,
            token,
            attempt_try,
            state,
        )
    )


class Stream:
    """Makes the records of one stream, as a supervisor would: frames cut from text, numbered, with offsets."""

    def __init__(self, attempt: int, *, stream: str = "main", token: bytes = TOKEN) -> None:
        self.attempt = attempt
        self.stream = stream
        self.token = token
        self.records: list[log_pb2.Record] = []
        self.raw = b""
        self.section = 0
        self._compressor = zstandard.ZstdCompressor(level=1)

    def _next(self) -> log_pb2.Record:
        record = log_pb2.Record(sequence=len(self.records) + 1, offset=len(self.raw), time_ms=1_000 + len(self.records))
        self.records.append(record)
        return record

    def write(self, text: bytes) -> Stream:
        record = self._next()
        record.frame.raw_length = len(text)
        record.frame.zstd = self._compressor.compress(text)
        record.frame.section = self.section
        self.raw += text
        return self

    def open(self, title: str = "a step") -> Stream:
        self.section += 1
        self._next().opened.MergeFrom(log_pb2.SectionOpened(section=self.section, kind="step", title=title))
        return self

    def close(self, result: str = "") -> Stream:
        self._next().closed.MergeFrom(log_pb2.SectionClosed(section=self.section, result=result))
        return self

    def batch(self, first: int = 1, last: int | None = None, *, token: bytes | None = None) -> log_pb2.RecordBatch:
        """The records from sequence `first` up to and with `last`."""
        return log_pb2.RecordBatch(
            attempt_id=self.attempt,
            token=self.token if token is None else token,
            stream=self.stream,
            records=self.records[first - 1 : last],
        )


def inflated(record: log_pb2.Record) -> bytes:
    return zstandard.ZstdDecompressor().decompress(record.frame.zstd, max_output_size=1 << 17)


@dataclass
class Seen:
    """What a tail brought."""

    records: list[log_pb2.Record]
    end: log_pb2.TailEnd | None
    attempt: int
    attempt_try: int

    @property
    def complete(self) -> bool:
        return self.end is not None and self.end.complete

    @property
    def raw(self) -> bytes:
        return b"".join(inflated(record) for record in self.records if record.HasField("frame"))


async def read(call: Any) -> Seen:
    """Reads a tail to its end."""
    seen = Seen([], None, 0, 0)
    async for response in call:
        seen.attempt, seen.attempt_try = response.attempt_id, getattr(response, "try")
        if response.HasField("end"):
            seen.end = response.end
        else:
            seen.records.append(response.record)
    return seen
