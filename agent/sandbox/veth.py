"""A network of its own for a bubblewrap job: a namespace, a pair of virtual interfaces, and the firewall's
rules.

Only a root agent can make one. The job's side has one IPv4 address and no IPv6 at all, so nothing has to be
filtered there; the host's side is a router that forwards and translates.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from agent.problems import Cause, JobProblem
from agent.sandbox import names
from agent.sandbox.commands import CommandFailedError, run
from agent.sandbox.firewall import Firewall, Rules

_NAMESPACES: Final = Path("/run/netns")
_INTERFACES: Final = Path("/sys/class/net")
_FORWARDING: Final = Path("/proc/sys/net/ipv4/ip_forward")
_TRIAL: Final = 0
"""No attempt has this number."""
_LOCK: Final = Path("/run")
"""Locked as a folder: no file of ours has to lie about."""


class VethNetworks:
    """The networks of one agent's bubblewrap jobs."""

    def __init__(
        self,
        agent: str,
        firewall: Firewall,
        resolvers: tuple[str, ...],
        addresses: ipaddress.IPv4Network,
    ) -> None:
        """`addresses`: where jobs get theirs from, four for each."""
        self._agent = agent
        self._firewall = firewall
        self._resolvers = resolvers
        self._addresses = addresses
        self._one_at_a_time = asyncio.Lock()

    @staticmethod
    def why_not() -> str:
        """The sentence that says what is missing on this machine; empty: nothing."""
        if shutil.which("ip") is None:
            return "ip cannot be found: install iproute2 for jobs with `network: full`"
        return Firewall.why_not()

    async def try_out(self) -> bool:
        """Whether this machine can make such a network: one is made and taken away."""
        try:
            await self.make(_TRIAL)
        except JobProblem:
            return False
        await self.remove(_TRIAL)
        return True

    async def make(self, attempt: int) -> Path:
        """Makes the attempt's network and returns its namespace's file. Raises `JobProblem` when it
        cannot."""
        namespace, interface = names.namespace(self._agent, attempt), names.interface(self._agent, attempt)
        try:
            _FORWARDING.write_text("1\n")
            await run(("ip", "netns", "add", namespace))
            async with self._one_at_a_time, _locked():
                subnet = await self._free_subnet()
                host, job = (f"{address}/30" for address in subnet.hosts())
                await self._firewall.close(attempt, Rules(interface, self._resolvers, str(subnet)))
                await run(("ip", "-batch", "-"), _host_side(namespace, interface, host))
            await run(("ip", "-n", namespace, "-batch", "-"), _job_side(job, host.removesuffix("/30")))
        except (CommandFailedError, OSError) as error:
            await self.remove(attempt)
            raise JobProblem(Cause.ERRORED, f"the job's network could not be made: {error}") from error
        return _NAMESPACES / namespace

    async def remove(self, attempt: int) -> None:
        """Takes the attempt's network away, whatever there is of it; rules last, so that it is never open."""
        for command in (
            ("ip", "link", "delete", names.interface(self._agent, attempt)),
            ("ip", "netns", "delete", names.namespace(self._agent, attempt)),
        ):
            with contextlib.suppress(CommandFailedError):  # not there (any more)
                await run(command)
        await self._firewall.open(attempt)

    async def attempts(self) -> frozenset[int]:
        """The attempts of this agent of whose network anything is left."""
        found = [names.attempt_of_namespace(self._agent, name) for name in _listed(_NAMESPACES)]
        found += [names.attempt_of_interface(self._agent, name) for name in _listed(_INTERFACES)]
        return frozenset(number for number in found if number is not None) | await self._firewall.attempts()

    async def _free_subnet(self) -> ipaddress.IPv4Network:
        """Four addresses that no interface of this machine has. Raises `CommandFailedError` if none are
        left."""
        shown = json.loads(await run(("ip", "-json", "-4", "address", "show")))
        taken = [ipaddress.IPv4Address(entry["local"]) for link in shown for entry in link.get("addr_info", ())]
        for subnet in self._addresses.subnets(new_prefix=30):
            if not any(address in subnet for address in taken):
                return subnet
        raise CommandFailedError(f"all addresses of {self._addresses} are in use")


def _listed(folder: Path) -> list[str]:
    """What lies in `folder`, but for an engine's bridges: they bear such names too, and are the engine's."""
    if not folder.is_dir():
        return []
    return [file.name for file in folder.iterdir() if not (file / "bridge").exists()]


def _host_side(namespace: str, interface: str, address: str) -> str:
    return (
        f"link add {interface} type veth peer name eth0 netns {namespace}\n"
        f"link set {interface} addrgenmode none\n"
        f"address add {address} dev {interface}\n"
        f"link set {interface} up\n"
    )


def _job_side(address: str, gateway: str) -> str:
    return (
        "link set lo up\n"
        "link set eth0 addrgenmode none\n"
        f"address add {address} dev eth0\n"
        "link set eth0 up\n"
        f"route add default via {gateway}\n"
    )


@contextlib.asynccontextmanager
async def _locked() -> AsyncIterator[None]:
    """Choosing an address and taking it are one: several agents may live on one machine."""
    descriptor = os.open(_LOCK, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        await asyncio.to_thread(fcntl.flock, descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
