"""LogService on the wire: appended by agents, tailed by people."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from coordinator.api.access import Caller
from coordinator.api.errors import rpc, streamed
from coordinator.api.limits import Limits
from coordinator.errors import BadInput, NotFound, Violation
from coordinator.logs.bounds import MESSAGE_MOST, NUMBER_MOST, BadRecord, check_stream
from coordinator.logs.reader import LogReader, Tailed, TailOf
from coordinator.logs.writer import LogWriter
from headrace.v1 import log_pb2, log_pb2_grpc

# Messages of one stream that may wait for their commit: enough to keep the group commit busy, and a bound.
_PIPELINED = 32

_Answer = asyncio.Future[list[log_pb2.Durable]]


class LogService(log_pb2_grpc.LogServiceServicer):
    """Appends through a writer, tails through a reader."""

    def __init__(self, writer: LogWriter, reader: LogReader, limits: Limits) -> None:
        self._limits = limits
        self._writer = writer
        self._reader = reader

    @rpc
    async def Append(  # type: ignore[override]  # the stub knows generators alone; gRPC takes a coroutine that writes  # noqa: N802  gRPC's name
        self, request: AsyncIterator[log_pb2.AppendRequest], context: Any
    ) -> None:
        """Answers each message, in order, once it is durable."""
        pending: asyncio.Queue[_Answer | None] = asyncio.Queue(_PIPELINED)
        reading = asyncio.create_task(self._submit(request, pending), name="read appended logs")
        try:
            while (answer := await pending.get()) is not None:
                await context.write(log_pb2.AppendResponse(durable=await answer))
            await reading
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            while not pending.empty():
                _forget(pending.get_nowait())

    async def _submit(
        self, requests: AsyncIterator[log_pb2.AppendRequest], pending: asyncio.Queue[_Answer | None]
    ) -> None:
        try:
            async for message in requests:
                if sum(max(1, len(batch.records)) for batch in message.batches) > MESSAGE_MOST:
                    raise BadInput(f"a message of logs has at most {MESSAGE_MOST} records")
                await pending.put(await self._writer.submit(message.batches))
        finally:
            if not _cancelling():
                await pending.put(None)

    @streamed
    async def Tail(self, request: log_pb2.TailRequest, context: Any) -> AsyncIterator[log_pb2.TailResponse]:  # noqa: ARG002, N802  gRPC's shape
        """Sends records as they become durable, until the log is complete."""
        with self._limits.stream(Caller.CLIENT):
            async with contextlib.aclosing(self._reader.tail(_tail_of(request))) as tail:
                async for each in tail:
                    yield _response(each)


def _response(each: Tailed) -> log_pb2.TailResponse:
    response = log_pb2.TailResponse(attempt_id=each.attempt_id)
    setattr(response, "try", each.attempt_try)  # a keyword of Python: it has no attribute syntax
    if isinstance(each.what, log_pb2.Record):
        response.record.CopyFrom(each.what)
    else:
        response.end.CopyFrom(each.what)
    return response


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _forget(answer: _Answer | None) -> None:
    """Lets go of an answer that nobody waits for any more."""
    if answer is not None and not answer.cancel() and not answer.cancelled():
        answer.exception()


def _tail_of(request: log_pb2.TailRequest) -> TailOf:
    stream = request.stream or "main"
    try:
        check_stream(stream)
    except BadRecord as error:
        raise BadInput(str(error), (Violation("stream", str(error)),)) from error
    if not 0 <= request.offset <= NUMBER_MOST:
        sentence = f"{request.offset} is not an offset in a log"
        raise BadInput(sentence, (Violation("offset", sentence),))
    if "\0" in request.job:
        raise NotFound(f"run {request.run_id} has no such job")
    return TailOf(request.run_id, request.job, getattr(request, "try"), stream, request.offset, request.follow)
