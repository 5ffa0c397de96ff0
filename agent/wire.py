"""The wire to a coordinator: one bidirectional stream, of a session or of logs, and how it is dialled.

`Wire` and `Dialer` are what the session logic and the forwarder know; the simulation has its own. Here are the real
ones, over gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

import grpc
import grpc.aio

from headrace.v1 import agent_pb2, agent_pb2_grpc, log_pb2, log_pb2_grpc

MESSAGE_LIMIT = 20 << 20
"""Bytes of one message, both ways: a job's spec with its scripts must fit, and an outcome with 16 MiB of outputs."""

Metadata = tuple[tuple[str, str], ...]


class WireClosed(Exception):
    """The stream is over. `code` is its status, OK when the other side ended it in good order."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(f"{code.name}: {sentence}")
        self.code = code
        self.sentence = sentence


Sent_contra = TypeVar("Sent_contra", contravariant=True)
Got_co = TypeVar("Got_co", covariant=True)


class Wire(Protocol[Sent_contra, Got_co]):
    """One stream. One task sends, one receives; messages arrive in order or the stream is cut."""

    async def send(self, message: Sent_contra) -> None:
        """Hands one message to the transport; waits while it is full. Raises `WireClosed`."""
        ...

    async def receive(self) -> Got_co:
        """The next message. Raises `WireClosed`."""
        ...

    async def close(self) -> None:
        """Ends the stream; repeatable, never raises."""
        ...


class Dialer(Protocol[Sent_contra, Got_co]):
    """Opens a wire to one address."""

    async def dial(self, address: str) -> Wire[Sent_contra, Got_co]:
        """Opens a stream to `host:port`. Raises `WireClosed`; waits at most a few seconds."""
        ...


SessionWire: TypeAlias = Wire[agent_pb2.SessionRequest, agent_pb2.SessionResponse]
SessionDialer: TypeAlias = Dialer[agent_pb2.SessionRequest, agent_pb2.SessionResponse]
LogWire: TypeAlias = Wire[log_pb2.AppendRequest, log_pb2.AppendResponse]
LogDialer: TypeAlias = Dialer[log_pb2.AppendRequest, log_pb2.AppendResponse]


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


class GrpcWire(Generic[Sent_contra, Got_co]):
    """A stream over gRPC."""

    def __init__(self, channel: grpc.aio.Channel, call: _Call) -> None:
        self._channel = channel
        self._call = call

    async def send(self, message: Sent_contra) -> None:
        """Hands one message to the transport."""
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise closed(error) from error
        except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise await self._ended() from error

    async def receive(self) -> Got_co:
        """The next message."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise closed(error) from error
        except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            raise await self._ended() from error
        if message is grpc.aio.EOF:
            raise await self._ended()
        return cast("Got_co", message)

    async def close(self) -> None:
        """Ends the stream in good order if that is quick, else by force."""
        # One that was cancelled with its reader is over: to read from it would say that we are cancelled ourselves.
        if not self._call.done():
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await self._call.done_writing()
                    while await self._call.read() is not grpc.aio.EOF:
                        pass
        self._call.cancel()
        await self._channel.close()

    async def _ended(self) -> WireClosed:
        code = await self._call.code()
        return WireClosed(code, await self._call.details() or "the connection was cut")


class _Call(Protocol):
    """The part of grpc.aio's StreamStreamCall that is used here."""

    async def write(self, message: object) -> None: ...
    async def read(self) -> object: ...
    async def done_writing(self) -> None: ...
    async def code(self) -> grpc.StatusCode: ...
    async def details(self) -> str: ...
    def cancel(self) -> bool: ...
    def done(self) -> bool: ...


class GrpcDialer(Generic[Sent_contra, Got_co]):
    """Dials over gRPC, each wire on a connection of its own. `method`: the method of a stub on a channel."""

    def __init__(
        self, access: Callable[[str], Access], method: Callable[[grpc.aio.Channel], Any], *, seconds: float = 5.0
    ) -> None:
        self._access = access
        self._method = method
        self._seconds = seconds

    async def dial(self, address: str) -> Wire[Sent_contra, Got_co]:
        """Opens a stream to `host:port`."""
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
        return GrpcWire(channel, self._method(channel)(metadata=access.metadata()))


def sessions(access: Callable[[str], Access]) -> SessionDialer:
    """Dials for sessions."""
    return GrpcDialer(access, lambda channel: agent_pb2_grpc.AgentServiceStub(channel).Session)


def appends(access: Callable[[str], Access]) -> LogDialer:
    """Dials to append to logs."""
    return GrpcDialer(access, lambda channel: log_pb2_grpc.LogServiceStub(channel).Append)
