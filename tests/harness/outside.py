"""What a job must reach, and what it must not: a machine elsewhere, the cloud's metadata, this host."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

OUTSIDE = "203.0.113.7"
"""A host beyond the router, made of a namespace (the range is reserved for documentation)."""
SERVER = """
import socket
s = socket.create_server(("", 80))
print("ready", flush=True)
while True: s.accept()[0].close()
"""
METADATA = "169.254.169.254"
"""The cloud's own address for a machine's credentials."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def outside() -> Iterator[str]:
    """A machine elsewhere that listens on port 80 at its own address and at the cloud metadata's; its interface
    is no bridge of an engine and no job's.
    """
    with contextlib.ExitStack() as end:
        one_at_a_time = end.enter_context(Path(__file__).open("rb"))
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)  # its addresses are the machine's
        end.enter_context(machine("out", "198.51.100", (OUTSIDE, METADATA), (sys.executable, "-c", SERVER)))
        yield OUTSIDE


@contextlib.contextmanager
def machine(name: str, link: str, addresses: Sequence[str], server: Sequence[str]) -> Iterator[None]:
    """A namespace that is reached at some addresses, over a link of its own (its first three numbers). Its server says
    `ready` in a line.
    """
    space, near, far = f"{name}-test", f"{name}-near", f"{name}-far"
    with contextlib.ExitStack() as end:
        ip("netns", "add", space)
        end.callback(ip, "netns", "delete", space)
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
        ip("address", "add", f"{link}.1/24", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", space, "link", "set", "lo", "up")
        for address in (*(f"{each}/32" for each in addresses), f"{link}.2/24"):
            ip("-n", space, "address", "add", address, "dev", far)
        ip("-n", space, "link", "set", far, "up")
        ip("-n", space, "route", "add", "default", "via", f"{link}.1")
        for address in addresses:
            ip("route", "add", f"{address}/32", "via", f"{link}.2")
        running = end.enter_context(
            subprocess.Popen(["nsenter", f"--net=/run/netns/{space}", "--", *server], stdout=subprocess.PIPE)
        )
        end.callback(running.kill)
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        yield


@contextlib.asynccontextmanager
async def service() -> AsyncIterator[int]:
    """A service of this host, on all its addresses; gives its port."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(greet, "0.0.0.0", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def own_addresses() -> set[str]:
    """All IPv4 addresses of this host."""
    shown = subprocess.run(["ip", "-4", "-o", "address"], capture_output=True, text=True, check=True).stdout
    return {line.split()[3].split("/")[0] for line in shown.splitlines()}
