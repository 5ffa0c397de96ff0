"""The rules that keep a job with network away from this host, from other jobs and from the cloud's metadata.

One chain for each attempt, jumped to from `DOCKER-USER` where there is an engine (which puts that chain first
again whenever it restarts), else from `FORWARD`. The rules are in place before the job's interface is up, and
each bears the agent's id and the attempt in a comment, by which they are found again.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.sandbox import names
from agent.sandbox.commands import CommandFailedError, run
from headrace.pipeline.plan import SandboxKind

_METADATA: Final = "169.254.0.0/16"
_LOCAL_NETWORKS: Final = (f"{names.PREFIX}+", "docker0", "br-+", "virbr+", "lxdbr+", "cni+")
"""Interfaces behind which this host's own containers and machines are, and the other jobs."""
_TRIAL: Final = 0
"""No attempt has this number."""
_TRIAL_SUBNET: Final = "192.0.2.0/30"
_FAMILIES: Final = ("iptables", "ip6tables")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the rules of one attempt depend on."""

    interface: str
    """The host's side of the job's network."""
    resolvers: Sequence[str]
    """Addresses of name servers: those of IPv4 are reachable on port 53, wherever they are."""
    subnet: str = ""
    """Addresses to translate on their way out; empty where the engine does it."""


class Firewall:
    """The firewall rules of one agent's jobs in one kind of sandbox; only root can change any.

    The kinds keep their rules apart, so that one's sweep never takes away what still guards the other's job.
    """

    def __init__(self, agent: str, kind: SandboxKind) -> None:
        self._agent = names.checked(agent)
        self._kind = kind

    @staticmethod
    def why_not() -> str:
        """The sentence that says what is missing on this machine; empty: nothing."""
        if all(shutil.which(f"{family}-restore") for family in _FAMILIES):
            return ""
        return "iptables cannot be found: install it for jobs with `network: full`"

    async def try_out(self) -> bool:
        """Whether this kernel takes the rules: they are put in place for an interface that is not there."""
        try:
            await self.close(_TRIAL, Rules(names.interface(self._agent, _TRIAL), (), _TRIAL_SUBNET))
            await self.open(_TRIAL)
        except CommandFailedError:
            return False
        return True

    async def close(self, attempt: int, rules: Rules) -> None:
        """Puts the attempt's rules in place; before its interface is up. Raises `CommandFailedError`."""
        chain = f"HR-{rules.interface}"
        mark = f'-m comment --comment "{names.comment(self._kind, self._agent, attempt)}"'
        parent = "DOCKER-USER" if await self._has_chain("DOCKER-USER") else "FORWARD"
        text = "\n".join(_filter(chain, parent, mark, rules)) + "\n"
        if rules.subnet:
            nat = f"-A POSTROUTING -s {rules.subnet} ! -o {rules.interface} {mark} -j MASQUERADE"
            text += f"*nat\n{nat}\nCOMMIT\n"
        await run(("iptables-restore", "--wait", "--noflush"), text)
        if _has_ipv6():
            drops = (f"-I {hook} 1 -i {rules.interface} {mark} -j DROP" for hook in ("INPUT", "FORWARD"))
            closed = "\n".join(("*filter", *drops, "COMMIT", ""))
            await run(("ip6tables-restore", "--wait", "--noflush"), closed)

    async def open(self, attempt: int) -> None:
        """Takes the attempt's rules away; none there is fine."""
        for family in _FAMILIES:
            for table in ("filter", "nat"):
                listed = await self._listed(family, table)
                lines = _removal(listed, names.comment(self._kind, self._agent, attempt))
                if lines:
                    text = "\n".join((f"*{table}", *lines, "COMMIT", ""))
                    await run((f"{family}-restore", "--wait", "--noflush"), text)

    async def attempts(self) -> frozenset[int]:
        """The attempts of this agent that have a rule now."""
        listed = [line for family in _FAMILIES for line in await self._listed(family, "filter")]
        marks = re.compile(rf"headrace:{self._kind}:{re.escape(self._agent)}:(\d+)\b")
        return frozenset(int(found[1]) for line in listed if (found := marks.search(line)))

    async def _listed(self, family: str, table: str) -> list[str]:
        if table == "nat" and family == "ip6tables":
            return []  # nothing is ever put there
        try:
            return (await run((family, "--wait", "-t", table, "-S"))).splitlines()
        except CommandFailedError:
            return []  # a kernel without this table has no rule of ours in it

    async def _has_chain(self, chain: str) -> bool:
        return f"-N {chain}" in await self._listed("iptables", "filter")


def _has_ipv6() -> bool:
    return Path("/proc/net/if_inet6").exists()


def _filter(chain: str, parent: str, mark: str, rules: Rules) -> list[str]:
    """The filter table's part. Inserted rules come to stand in reverse: the last one is judged first."""
    interface = rules.interface
    names_allowed = [
        f"-A {chain} -d {address} -p {protocol} --dport 53 {mark} -j ACCEPT"
        for address in rules.resolvers
        if ipaddress.ip_address(address).version == 4
        for protocol in ("udp", "tcp")
    ]
    # A job and its services are on one bridge; a kernel with br_netfilter asks these rules about them too.
    own = f"-A {chain} -o {interface} {mark} -j ACCEPT"
    local = [f"-A {chain} -o {pattern} {mark} -j DROP" for pattern in _LOCAL_NETWORKS]
    # Behind an engine's bridge the engine's own rules decide what is left; a veth has no other friend.
    rest = "ACCEPT" if rules.subnet else "RETURN"
    return [
        "*filter",
        f":{chain} - [0:0]",
        *names_allowed,
        f"-A {chain} -d {_METADATA} {mark} -j DROP",
        own,
        *local,
        f"-A {chain} {mark} -j {rest}",
        f"-I {parent} 1 -o {interface} {mark} -j DROP",
        f"-I {parent} 1 -o {interface} -m conntrack --ctstate RELATED,ESTABLISHED {mark} -j ACCEPT",
        f"-I {parent} 1 -i {interface} {mark} -j {chain}",
        f"-I INPUT 1 -i {interface} {mark} -j DROP",
        "COMMIT",
    ]


def _removal(listed: Sequence[str], mark: str) -> list[str]:
    """Lines that undo those of `listed` (the output of `iptables -S`) that bear `mark`, and drop their
    chains."""
    bearing = re.compile(rf'--comment "?{re.escape(mark)}"?(\s|$)')
    ours = [line for line in listed if line.startswith("-A ") and bearing.search(line)]
    chains = sorted({line.split()[1] for line in ours if line.startswith("-A HR-")})
    return [
        *(f"-D {line.removeprefix('-A ')}" for line in ours),
        *(f"-X {chain}" for chain in chains),
    ]
