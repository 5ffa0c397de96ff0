"""Machines with a network of their own, and what networks do to them: cut, deaf, mute, lossy, silent.

Each machine is a network namespace with one interface on a bridge; the test's own namespace has an address there. What
goes wrong is done by the machine's own firewall (iptables), so it is gone with the machine. A kernel without netem has
nothing that delays: for that there is `tests/chaos/proxy.py`.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

UPLINK = "up0"
"""The machine's interface, as it sees it itself."""
_IN, _OUT = "chaos-in", "chaos-out"
_ESTABLISHED = "01"


class Machine:
    """One network namespace. `prefix` goes before a command that is to run there; `address` is the machine's own."""

    def __init__(self, space: str, address: str) -> None:
        self.space = space
        self.address = address

    @property
    def prefix(self) -> tuple[str, ...]:
        """`ip netns exec` would mount a /sys of its own there, and hide the cgroups."""
        return ("nsenter", f"--net=/run/netns/{self.space}", "--")

    def cut(self) -> None:
        """Nothing gets in or out: a partition. Whoever is connected learns nothing of it."""
        self.deaf()
        self.mute()

    def deaf(self) -> None:
        """What others send does not arrive here; what is sent from here arrives."""
        self._rule(_IN, "-j", "DROP")

    def mute(self) -> None:
        """What is sent from here does not arrive; what others send does."""
        self._rule(_OUT, "-j", "DROP")

    def lose(self, share: float) -> None:
        """This share of the packets is lost at random, in each direction."""
        for chain in (_IN, _OUT):
            self._rule(chain, "-m", "statistic", "--mode", "random", "--probability", str(share), "-j", "DROP")

    def forget_connections(self) -> int:
        """The connections that there are fall silent for ever, without a reset, and new ones work: half-open, as
        behind a router that was started again. Returns how many there were.
        """
        ports = self._connected()
        for port in ports:
            self._rule(_IN, "-p", "tcp", "--dport", str(port), "-j", "DROP")
            self._rule(_OUT, "-p", "tcp", "--sport", str(port), "-j", "DROP")
        return len(ports)

    def heal(self) -> None:
        """All is well again."""
        for chain in (_IN, _OUT):
            self._iptables("-F", chain)

    def set_up(self) -> None:
        """Its own chains, beside those of whoever lives there."""
        for chain, base, way in ((_IN, "INPUT", "-i"), (_OUT, "OUTPUT", "-o")):
            self._iptables("-N", chain)
            self._iptables("-I", base, way, UPLINK, "-j", chain)

    def _rule(self, chain: str, *words: str) -> None:
        self._iptables("-A", chain, *words)

    def _iptables(self, *words: str) -> None:
        _run(*self.prefix, "iptables", "--wait", *words)

    def _connected(self) -> list[int]:
        """Local ports of the connections that do not stay within the machine."""
        found = []
        for table in ("tcp", "tcp6"):
            for line in _run(*self.prefix, "cat", f"/proc/net/{table}").splitlines()[1:]:
                _, local, remote, state = line.split()[:4]
                if state == _ESTABLISHED and local.rpartition(":")[0] != remote.rpartition(":")[0]:
                    found.append(int(local.rpartition(":")[2], 16))
        return found


class Network:
    """A bridge, the address that the test's own namespace has there, and the machines made so far."""

    def __init__(self, number: int, up: contextlib.ExitStack) -> None:
        self._number = number
        self._bridge = f"chaos{number}"
        self._up = up
        self._machines: list[Machine] = []
        self.hub = f"10.213.{number}.1"

    def machine(self) -> Machine:
        """Another one."""
        count = len(self._machines) + 2
        made = Machine(f"{self._bridge}-{count}", f"10.213.{self._number}.{count}")
        near = f"ch{self._number}-{count}"
        _run("ip", "netns", "add", made.space)
        self._up.callback(_run, "ip", "netns", "delete", made.space)
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", UPLINK, "netns", made.space)
        _run("ip", "link", "set", near, "master", self._bridge, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{made.address}/24", "dev", UPLINK),
            ("link", "set", UPLINK, "up"),
        ):
            _run("ip", "-n", made.space, *words)
        made.set_up()
        self._machines.append(made)
        return made


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network of the test's own, beside those of others; gone afterwards with all machines."""
    with contextlib.ExitStack() as up:
        number = _free_number()
        bridge = f"chaos{number}"
        up.callback(_run, "ip", "link", "delete", bridge)
        made = Network(number, up)
        _run("ip", "address", "add", f"{made.hub}/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        yield made


def _free_number() -> int:
    """Makes the bridge; its name says whether somebody else has the number."""
    for _ in range(100):
        number = secrets.randbelow(256)
        if not Path(f"/sys/class/net/chaos{number}").exists():
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "link", "add", f"chaos{number}", "type", "bridge")
                return number
    raise AssertionError("no free number for a network")


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
