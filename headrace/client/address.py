"""Where a coordinator is, and whether one may speak with it in the clear."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from headrace.errors import BadInput

DEFAULT_PORT = 7433
"""Of the coordinator's gRPC endpoint."""


@dataclass(frozen=True, slots=True)
class Address:
    """One endpoint. `target` is gRPC's name for it; `tls` whether it is spoken to in TLS."""

    shown: str
    target: str
    loopback: bool
    tls: bool


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own loopback. Names but `localhost` are not resolved."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def addresses(url: str, *, insecure: bool) -> tuple[Address, ...]:
    """A list of endpoints, separated by commas: `host`, `host:port`, `[v6]:port`, `unix:/path`.

    A scheme `http://` or `https://` may stand before it. Plaintext goes to loopback alone, unless `insecure`.

    Raises:
        BadInput: an endpoint cannot be read; the sentence names it.

    """
    found = tuple(_one(part.strip(), insecure=insecure) for part in url.split(",") if part.strip())
    if not found:
        raise BadInput("the coordinator's address is empty: give HOST:PORT")
    return found


def _one(text: str, *, insecure: bool) -> Address:
    if text.startswith("unix:"):
        return Address(text, text, loopback=True, tls=False)
    scheme, _, rest = text.rpartition("://")
    if scheme not in {"", "http", "https"}:
        raise BadInput(f"the coordinator's address {text!r} has the unknown scheme {scheme!r}: give HOST:PORT")
    host, port = _split(rest.rstrip("/"), text)
    loopback = is_loopback(host)
    tls = scheme == "https" or not (loopback or insecure)
    if scheme == "http" and tls:
        raise BadInput(
            f"the coordinator's address {text!r} would send the token in the clear over the network: "
            "use https, or set HEADRACE_INSECURE=1 where the network itself is trusted"
        )
    shown = f"{host}:{port}"
    return Address(shown, shown, loopback, tls)


def _split(rest: str, text: str) -> tuple[str, int]:
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]"):
        host, port = rest, str(DEFAULT_PORT)
    bare = host.strip("[]")
    if not bare or "/" in host or "@" in host or (":" in host and not host.startswith("[")):
        raise BadInput(f"the coordinator's address {text!r} cannot be read: give HOST:PORT")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadInput(f"the coordinator's address {text!r} has no valid port: give HOST:PORT, 1 to 65535")
    return host, int(port)
