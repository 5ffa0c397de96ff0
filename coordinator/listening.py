"""How the gRPC server listens: what a connection may cost, and how many of them there can be."""

from __future__ import annotations

import resource
from typing import Final

MOST_MESSAGE: Final = 20 << 20
"""Bytes. An outcome has up to 16 MiB of outputs, and says more."""
SERVER_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MOST_MESSAGE),
    ("grpc.max_send_message_length", MOST_MESSAGE),
    # A second coordinator on the same port must fail, not share it.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Of the pings that measure the way: while one is unanswered none is sent for the sake of keepalive.
    ("grpc.http2.ping_timeout_ms", 8_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # A connection that never begins to speak HTTP/2; two minutes, if left out.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # A connection without a call. Whoever calls again connects again, and does not notice.
    ("grpc.max_connection_idle_ms", 60_000),
    # Above what one token may watch, which is refused in words; without a limit, if left out.
    ("grpc.max_concurrent_streams", 4_096),
)
_FEW_DESCRIPTORS: Final = 8_192
_AN_AGENTS: Final = 3
"""Connections that an agent has: its session, its logs, and a call now and then."""


def raise_descriptors() -> str:
    """Lets this process open as many files as the system allows it. Returns one sentence if those are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return few_descriptors(hard)


def few_descriptors(limit: int) -> str:
    """What to tell an operator of a limit of open files; empty: it is enough."""
    if limit == resource.RLIM_INFINITY or limit >= _FEW_DESCRIPTORS:
        return ""
    return (
        f"only {limit:,} files may be open here, enough for about {limit // _AN_AGENTS:,} agents: raise the limit with"
        " LimitNOFILE= in the systemd unit, --ulimit nofile= of the container, or `ulimit -Hn`"
    )
