"""Three replicas on one PostgreSQL and eight agents, with a proxy between any two of them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headrace.client.sync_client import SyncClient
from tests.chaos.campaign.ledger import Ledger
from tests.chaos.campaign.postgres import Postgres
from tests.chaos.disk import small
from tests.chaos.engine import Engine
from tests.chaos.network import Machine as Place
from tests.chaos.network import network
from tests.chaos.proxy import Proxy
from tests.e2e.scene import supervisors
from tests.harness.images import busybox
from tests.harness.postgres import dsn_at, socket_of
from tests.integration.coordinator.processes import (
    Daemon,
    agent,
    coordinator,
    forget_mounts,
    metric,
    share_secrets,
    token,
)


@dataclass(frozen=True)
class Scale:
    """How large and how long. Seconds throughout."""

    jobs: int
    seconds: float
    """How long faults come."""
    lease_s: float = 30.0
    heartbeat_s: float = 5.0
    long_lease_s: float = 90.0
    agents: int = 8
    slots: int = 2
    replicas: int = 3
    stepped: bool = True
    """Whether the database's clock can be set, which costs time at each look at it."""


SHORT = Scale(jobs=200, seconds=200.0, lease_s=15.0, heartbeat_s=2.5, long_lease_s=60.0)
"""A silent link is noticed after 10 s: with a shorter lease it would cost its jobs, and rightly so."""
LONG = Scale(jobs=2000, seconds=1800.0)
SMALL_DISKS = (0, 1)
OWN_NETWORKS = (2, 3)
"""Which of the agents have these."""


@dataclass
class Replica:
    """A coordinator with its own way to the database."""

    daemon: Daemon
    database: Proxy
    up: bool = True


@dataclass
class Machine:
    """An agent with its own way to each replica. Some have a disk or a network of their own."""

    daemon: Daemon
    links: list[Proxy]
    disk: Path | None = None
    """A small one that its data is on."""
    place: Place | None = None
    """Its network namespace. It runs no containers: they would be elsewhere."""
    up: bool = True
    away: list[tuple[float, float]] = field(default_factory=list)
    """Spans of time in which it could not be heard, or lost something: what was lost then has its reason."""

    def excused(self, begin: float, end: float) -> bool:
        """Whether a fault touched it between these two moments (seconds since the epoch)."""
        return any(begin <= until and since <= end for since, until in self.away)

    def supervisors(self) -> list[int]:
        """Pids of the supervisors of its attempts."""
        return supervisors(self.daemon.folder)

    def kill(self) -> None:
        """SIGKILL of the agent alone: its supervisors go on."""
        self.daemon.process.send_signal(signal.SIGKILL)
        self.daemon.process.wait()
        self.up = False

    def start(self) -> None:
        """Starts it on its data."""
        self.daemon.start()
        self.up = True


@dataclass
class Fleet:
    """All of it. `token` is that of clients."""

    folder: Path
    scale: Scale
    postgres: Postgres
    ledger: Ledger
    engine: Engine
    blobs: Path
    """The small disk of the blob store."""
    image: str
    """What jobs in containers run on: it has a shell and `nc`."""
    replicas: list[Replica]
    machines: list[Machine]

    @property
    def addresses(self) -> str:
        """All replicas, as `HEADRACE_URL` takes them."""
        return ",".join(each.daemon.facts["address"] for each in self.replicas)

    @property
    def token(self) -> str:
        return token(self.replicas[0].daemon, "client")

    def client(self) -> SyncClient:
        """Somebody who knows all addresses."""
        return SyncClient(self.addresses, self.token)

    def sessions(self) -> int:
        """Agents connected, over all replicas that answer."""
        found = 0.0
        for each in self.replicas:
            with contextlib.suppress(OSError, StopIteration):
                found += metric(each.daemon, "headrace_sessions") if each.up else 0
        return int(found)

    def all_back(self, seconds: float = 60.0) -> float:
        """Waits until every agent is connected; returns how long that took."""
        begun = time.monotonic()
        wanted = sum(each.up for each in self.machines)
        while self.sessions() < wanted:
            assert time.monotonic() < begun + seconds, f"{self.sessions()} of {wanted} agents are connected"
            time.sleep(0.05)  # a page tells nobody that it has changed
        return time.monotonic() - begun

    def standing(self, series: str) -> float:
        """What must be 0, as the first replica that answers tells it."""
        return metric(next(each for each in self.replicas if each.up).daemon, series)

    def kill(self, replica: Replica) -> None:
        """SIGKILL."""
        replica.daemon.process.send_signal(signal.SIGKILL)
        replica.daemon.process.wait()
        replica.up = False

    def start(self, replica: Replica) -> None:
        """Starts it where it was."""
        replica.daemon.start()
        replica.up = True


@contextlib.contextmanager
def made_fleet(folder: Path, scale: Scale, engine: Engine) -> Iterator[Fleet]:
    """A fleet that is ready, in a folder that it makes. At its end all daemons leave in order."""
    folder.mkdir(mode=0o755)
    with contextlib.ExitStack() as end:
        postgres = end.enter_context(Postgres(folder / "pg", stepped=scale.stepped))
        ledger = end.enter_context(Ledger(folder / "seen"))
        made = Fleet(folder, scale, postgres, ledger, engine, folder / "blobs", busybox(engine.url), [], [])
        end.enter_context(small(made.blobs, "256m"))
        daemons: list[Daemon] = []
        disks = end.enter_context(contextlib.ExitStack())
        end.callback(_end, daemons)
        for number in range(scale.replicas):
            made.replicas.append(_replica(made, number, end, daemons))
        net = end.enter_context(network())
        for number in range(scale.agents):
            disk = disks.enter_context(small(folder / f"a{number}", "192m")) if number in SMALL_DISKS else None
            place = net.machine() if number in OWN_NETWORKS else None
            links = [
                end.enter_context(Proxy(each.daemon.facts["address"], net.hub if place else "127.0.0.1"))
                for each in made.replicas
            ]
            made.machines.append(_machine(made, number, links, daemons, disk=disk, place=place))
        yield made


def _replica(fleet: Fleet, number: int, end: contextlib.ExitStack, daemons: list[Daemon]) -> Replica:
    """A replica that is ready, and keeps its addresses."""
    scale, name = fleet.scale, f"replica{number}"
    way = end.enter_context(Proxy(socket_of(fleet.postgres.dsn)))
    made = coordinator(
        fleet.folder / name,
        HEADRACE_DATABASE_URL=dsn_at(fleet.postgres.dsn, way.address),
        HEADRACE_BLOB_URL=(fleet.blobs / "store").as_uri(),
        HEADRACE_LEASE_S=str(scale.lease_s),
        HEADRACE_HEARTBEAT_S=str(scale.heartbeat_s),
        HEADRACE_LONG_LEASE_S=str(scale.long_lease_s),
        HEADRACE_QUARANTINE_AFTER="0",  # supervisors are killed often here
    )
    if fleet.replicas:
        share_secrets(fleet.replicas[0].daemon.folder, made.folder)
    daemons.append(made)
    made.start()
    for flag, fact in (("listen", "address"), ("http-listen", "http"), ("blob-listen", "blob")):
        made.arguments[flag] = made.facts.get(fact, made.arguments[flag])
    return Replica(made, way)


def _machine(
    fleet: Fleet, number: int, links: list[Proxy], daemons: list[Daemon], *, disk: Path | None, place: Place | None
) -> Machine:
    """An agent that is ready."""
    name = f"a{number}"
    where = (
        {"HEADRACE_INSECURE": "true", "DOCKER_HOST": "unix:///nowhere"} if place else {"DOCKER_HOST": fleet.engine.url}
    )
    side = agent(
        fleet.folder / name,
        fleet.replicas[0].daemon,
        name,
        HEADRACE_READ_ONLY_PATHS=str(fleet.ledger.folder),
        HEADRACE_ALLOW_HOST="true",
        HEADRACE_JOB_ADDRESSES=f"10.222.{number}.0/24",
        **where,
    )
    side.prefix = place.prefix if place else ()
    side.arguments |= {"url": ",".join(each.address for each in links), "slots": str(fleet.scale.slots)}
    daemons.append(side)
    side.start()
    return Machine(side, links, disk, place)


def _end(daemons: list[Daemon]) -> None:
    """Agents first; a daemon that was frozen is let go."""
    for each in reversed(daemons):
        with contextlib.suppress(ProcessLookupError, AssertionError):
            os.kill(each.process.pid, signal.SIGCONT)
        each.end()
    for each in daemons:
        forget_mounts(each.folder)
