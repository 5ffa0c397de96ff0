"""The wire to a coordinator: one bidirectional stream, as a session needs it, and how it is dialled.

`Wire` and `Dialer` are what the session logic knows; the simulation has its own. Here are the real ones, over
gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import grpc
import grpc.aio

from headrace.v1 import agent_pb2, agent_pb2_grpc

MESSAGE_LIMIT = 20 << 20
"""Bytes of one message, both ways: a job's spec with its scripts must fit, and an outcome with 16 MiB of outputs."""

Metadata = tuple[tuple[str, str], ...]


class WireClosed(Exception):
    """The stream is over. `code` is its status, OK when the other side ended it in good order."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(f"{code.name}: {sentence}")
        self.code = code
        self.sentence = sentence


class Wire(Protocol):
    """One stream. One task sends, one receives; messages arrive in order or the stream is cut."""

    async def send(self, message: agent_pb2.SessionRequest) -> None:
        """Hands one message to the transport; waits while it is full. Raises `WireClosed`."""
        ...

    async def receive(self) -> agent_pb2.SessionResponse:
        """The next message. Raises `WireClosed`."""
        ...

    async def close(self) -> None:
        """Ends the stream; repeatable, never raises."""
        ...


class Dialer(Protocol):
    """Opens a wire to one address."""

    async def dial(self, address: str) -> Wire:
        """Opens a stream to `host:port`. Raises `WireClosed`; waits at most a few seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """How a coordinator is spoken to: which credential, and whether in the clear."""

    token: str
    secure: bool
    roots: bytes | None = None
    """PEM of the certificates to trust; None: those of the machine."""

    def metadata(self) -> Metadata:
        """The credential as call metadata."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel(self, address: str) -> grpc.aio.Channel:
        """A connection of its own to `host:port`: channels of the same address share none."""
        options: Sequence[tuple[str, int]] = (
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", MESSAGE_LIMIT),
            ("grpc.max_send_message_length", MESSAGE_LIMIT),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.http2.ping_timeout_ms", 8_000),  # of the pings that measure the way; a minute, if left out
            # Without a limit on pings: a quiet stream would stop asking after two of them.
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
        )
        if self.secure:
            return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(self.roots), options=options)
        return grpc.aio.insecure_channel(address, options=options)


@contextlib.asynccontextmanager
async def connected(access: Access, address: str, seconds: float) -> AsyncIterator[grpc.aio.Channel]:
    """A ready channel, closed at the end. Raises `WireClosed` when nobody answers in time."""
    async with access.channel(address) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), seconds)
        except TimeoutError as error:
            raise WireClosed(grpc.StatusCode.UNAVAILABLE, f"nobody answers at {address}") from error
        yield channel


def closed(error: grpc.aio.AioRpcError) -> WireClosed:
    """A driver's error in our words."""
    return WireClosed(error.code(), error.details() or "the connection was cut")


async def until_one_ends(**coroutines: Coroutine[None, None, None]) -> None:
    """Runs them side by side until the first ends, cancels the others, and raises what ended it.

    No `TaskGroup`: one whose child fails in the moment in which it is cancelled itself loses the cancellation.
    """
    tasks = [asyncio.create_task(each, name=name) for name, each in coroutines.items()]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if task in done:
            task.result()


class GrpcWire:
    """A session's stream over gRPC."""

    def __init__(self, channel: grpc.aio.Channel, call: _SessionCall) -> None:
        self._channel = channel
        self._call = call

    async def send(self, message: agent_pb2.SessionRequest) -> None:
        """Hands one message to the transport."""
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise closed(error) from error
        except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise await self._ended() from error

    async def receive(self) -> agent_pb2.SessionResponse:
        """The next message."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise closed(error) from error
        except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise await self._ended() from error
        if not isinstance(message, agent_pb2.SessionResponse):  # the library's end-of-stream object
            raise await self._ended()
        return message

    async def close(self) -> None:
        """Ends the stream in good order if that is quick, else by force."""
        # One that was cancelled with its reader is over: to read from it would say that we are cancelled ourselves.
        if not self._call.done():
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await self._call.done_writing()
                    while isinstance(await self._call.read(), agent_pb2.SessionResponse):
                        pass
        self._call.cancel()
        await self._channel.close()

    async def _ended(self) -> WireClosed:
        code = await self._call.code()
        return WireClosed(code, await self._call.details() or "the connection was cut")


class _SessionCall(Protocol):
    """The part of grpc.aio's StreamStreamCall that is used here."""

    async def write(self, message: agent_pb2.SessionRequest) -> None: ...
    async def read(self) -> object: ...
    async def done_writing(self) -> None: ...
    async def code(self) -> grpc.StatusCode: ...
    async def details(self) -> str: ...
    def cancel(self) -> bool: ...
    def done(self) -> bool: ...


class GrpcDialer:
    """Dials over gRPC, each wire on a connection of its own."""

    def __init__(self, access: Callable[[str], Access], *, seconds: float = 5.0) -> None:
        self._access = access
        self._seconds = seconds

    async def dial(self, address: str) -> Wire:
        """Opens a session's stream to `host:port`."""
        access = self._access(address)
        channel = access.channel(address)
        try:
            await asyncio.wait_for(channel.channel_ready(), self._seconds)
        except TimeoutError as error:
            await channel.close()
            raise WireClosed(grpc.StatusCode.UNAVAILABLE, f"nobody answers at {address}") from error
        except BaseException:
            await channel.close()
            raise
        stub = agent_pb2_grpc.AgentServiceStub(channel)
        return GrpcWire(channel, cast("_SessionCall", stub.Session(metadata=access.metadata())))
