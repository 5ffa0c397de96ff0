"""How both drivers open a channel: sizes bounded, dead peers noticed, plaintext on loopback alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from headrace.client.address import Address, addresses
from headrace.client.methods import Method
from headrace.client.pace import Pace, RetryPolicy
from headrace.client.status import Failure, error_of
from headrace.errors import BadInput, HeadraceError, Unreachable

CALL_TIMEOUT = 30.0
"""Seconds for one request with one response."""

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Connection:
    """What both clients are made of: endpoints, credential, patience, and where time and chance come from."""

    url: str
    token: str = field(default="", repr=False)
    insecure: bool = False
    root_certificates: bytes | None = None
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    clock: Callable[[], float] = time.monotonic
    rng: random.Random = field(default_factory=random.SystemRandom)

    def pace(self) -> Pace:
        """A patience of its own for one client."""
        return Pace(self.policy, self.clock, self.rng)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The credential, as every call carries it; BadInput where it cannot be one."""
        if not all("!" <= letter <= "~" for letter in self.token):
            raise BadInput("the token holds a space, a line break or a letter that no token has: check HEADRACE_TOKEN")
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def request_id(self) -> str:
        """A random id for something that creates or changes: the same again does it once."""
        return f"{self.rng.getrandbits(128):032x}"

    def credentials(self) -> grpc.ChannelCredentials:
        """TLS with the roots given, else gRPC's own."""
        return grpc.ssl_channel_credentials(root_certificates=self.root_certificates)


class Endpoints:
    """The addresses of a connection, and which of them is asked now: one that does not answer gives way."""

    def __init__(self, connection: Connection) -> None:
        self._all = addresses(connection.url, insecure=connection.insecure)
        self.metadata = connection.metadata()
        self.at = 0

    @property
    def current(self) -> Address:
        """The one in use."""
        return self._all[self.at]

    def failed(self, at: int, failure: Failure) -> HeadraceError:
        """What a failed call to endpoint `at` means."""
        error = error_of(failure, self._all[at].shown)
        return self.cut(at, error.sentence) if isinstance(error, Unreachable) else error

    def cut(self, at: int, sentence: str) -> Unreachable:
        """Endpoint `at` gives way to the next, unless another flow has already seen to it."""
        if at == self.at:
            self.at = (at + 1) % len(self._all)
        return Unreachable(self._all[at].shown, sentence)


def stub(kind: Callable[..., Any], method: Method[Any, Any]) -> Any:
    """A callable of a channel for one method; `kind` is the channel's `unary_unary` or `unary_stream`."""
    return kind(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )


def options(address: Address) -> list[tuple[str, int]]:
    """gRPC's settings for a client's channel."""
    chosen = [
        ("grpc.max_receive_message_length", 32 * _MIB),
        ("grpc.max_send_message_length", 16 * _MIB),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 8_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),  # ours are in the flows: they keep the request id and count patience
    ]
    if address.loopback:
        chosen.append(("grpc.enable_http_proxy", 0))
    return chosen
