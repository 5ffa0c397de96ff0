"""The `/etc` of a bubblewrap sandbox: a few files made here, a few of the host's that hold no secret.

Never the host's own folder: it holds password hashes, keys and tokens. What is missing for somebody's tools
is listed by the operator.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from headrace.pipeline.plan import Network

HOST_PATHS: Final = (
    # what programs in /usr point to
    *("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/debian_version"),
    *("/etc/os-release", "/etc/localtime", "/etc/timezone", "/etc/mime.types", "/etc/magic", "/etc/terminfo"),
    *("/etc/services", "/etc/protocols", "/etc/bash.bashrc", "/etc/inputrc", "/etc/fonts"),
    # certificates: Debian's, Red Hat's, SUSE's places; never `private`
    *("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem", "/etc/gnutls"),
    *(
        "/etc/pki/tls/certs",
        "/etc/pki/tls/cert.pem",
        "/etc/pki/tls/openssl.cnf",
        "/etc/pki/ca-trust/extracted",
    ),
    *("/etc/ca-certificates", "/etc/crypto-policies", "/etc/java", "/etc/java-17-openjdk", "/etc/maven"),
    "/etc/pip.conf",
)
"""Shown read-only where they exist and everybody on the host may read them."""

USER: Final = "job"
HOME: Final = "/home/job"
UID: Final = 1000
"""The job's user, inside; outside it is the slot's own uid."""


def write(folder: Path, network: Network, resolvers: Sequence[str]) -> dict[str, Path]:
    """Writes the made files into `folder` (made if need be) and returns target -> file.

    `resolvers` are the addresses of name servers; without network none is named.
    """
    folder.mkdir(mode=0o755, exist_ok=True)
    folder.chmod(0o755)  # whatever the umask says: the job's uid reads these
    names = resolvers if network is Network.FULL else ()
    texts = {
        "passwd": f"root:x:0:0:root:/:/usr/sbin/nologin\n{USER}:x:{UID}:{UID}:job:{HOME}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        "group": f"root:x:0:\n{USER}:x:{UID}:\nnogroup:x:65534:\n",
        "hosts": "127.0.0.1 localhost headrace\n::1 localhost\n",
        "hostname": "headrace\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
        "resolv.conf": "".join(f"nameserver {address}\n" for address in names),
    }
    made = {}
    for name, text in texts.items():
        file = folder / name
        file.write_text(text)
        file.chmod(0o644)
        made[f"/etc/{name}"] = file
    return made


def resolvers(resolv_conf: str) -> tuple[str, ...]:
    """The name servers of a resolv.conf, in order."""
    words = [line.split() for line in resolv_conf.splitlines()]
    return tuple(line[1] for line in words if len(line) > 1 and line[0] == "nameserver")


def reachable_resolvers(resolv_conf: str, upstream: str) -> tuple[str, ...]:
    """The name servers that a namespace of its own can reach: those that do not listen on loopback, else those of
    `upstream` (what a local resolver keeps in /run/systemd/resolve/resolv.conf; empty: there is none).
    """
    for text in (resolv_conf, upstream):
        found = tuple(one for one in resolvers(text) if not ipaddress.ip_address(one).is_loopback)
        if found:
            return found
    return ()


def shown(paths: Sequence[str] = HOST_PATHS) -> tuple[Path, ...]:
    """Those of `paths` that exist here and are for everybody to read."""
    found = []
    for path in map(Path, paths):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        if mode & 0o004:
            found.append(path)
    return tuple(found)
