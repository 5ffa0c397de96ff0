"""What a job is given to live: the agent's parts, put together in `app.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from agent.blobs import Blobs
from agent.calls import Calls
from agent.clock import Clock
from agent.forwarder import Forwarder
from agent.keeping import Records
from agent.metrics import Metrics
from agent.quarantine import Quarantine
from agent.sandbox.choose import Offer
from agent.sandbox.protocol import Sandbox, ServiceHost
from agent.sandboxes import OwnSettings
from agent.source import Sources
from agent.state import DataDirectory
from agent.workspace.transfers import Courier
from agent.workspace.tree import Owner
from headrace.pipeline.plan import SandboxKind
from headrace.v1 import agent_pb2 as pb


class Journal(Protocol):
    """The daemon's own log: structlog's face, as far as it is used."""

    def info(self, event: str, **facts: Any) -> Any:
        """Something happened."""
        ...

    def warning(self, event: str, **facts: Any) -> Any:
        """Somebody should look at it some day."""
        ...

    def exception(self, event: str, **facts: Any) -> Any:
        """A defect of ours, with its traceback."""
        ...


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator decided about jobs."""

    spool_limit: int
    """Bytes of log on disk for one attempt."""
    spool_agent: int
    """The same for all together: above it no job is taken."""
    log_limit: int
    """Bytes of output that the log of one attempt takes."""
    local: bool
    """A local `headrace run`: own code runs under the user's own hand."""
    own: OwnSettings
    """What the user's own code gets of the user's environment."""


@dataclass(slots=True)
class Lease:
    """What the coordinator said about time. Updated by the session."""

    lease_ms: int = 30_000
    long_lease_ms: int = 600_000
    """Of deployments that have started."""
    sent_boot_ms: int = 0
    """When the last answered heartbeat was sent."""

    def of(self, environment: str) -> int:
        """Milliseconds of the lease of a job; `environment` empty: none."""
        return self.long_lease_ms if environment else self.lease_ms


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that outlives a job and that it uses."""

    name: str
    version: str
    directory: DataDirectory
    records: Records
    sandboxes: Mapping[SandboxKind, Sandbox]
    service_host: ServiceHost
    offer: Offer
    owner_of: Callable[[int], Owner | None]
    """Whose a slot's workspace is, if not the agent's."""
    sources: Sources
    courier: Courier
    calls: Calls
    blobs: Blobs
    forwarder: Forwarder
    clock: Clock
    new_id: Callable[[], str]
    hand_in: Callable[[pb.Report], None]
    permit: Callable[[pb.PermitRequest], Awaitable[pb.PermitAnswer]]
    lease: Lease
    policy: Policy
    quarantine: Quarantine
    metrics: Metrics
    journal: Journal

    def owner_in(self, kind: SandboxKind, slot: int) -> Owner | None:
        """Whose the files of a workspace are, if not the agent's. In a container the job is root, on the host it is
        the agent: git distrusts what belongs to anybody else, and root without capabilities cannot write it."""
        return self.owner_of(slot) if kind is SandboxKind.BUBBLEWRAP else None
