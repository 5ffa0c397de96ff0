"""The rows of a coordinator's database as plain values, one class a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.core.attempt import Attempt
from coordinator.core.job import Job
from coordinator.core.plan import Graph
from coordinator.core.run import Run
from coordinator.core.stages import Door, Gate, Group
from coordinator.dispatch.port import Hello
from coordinator.store.extending import Kept
from coordinator.store.new_rows import NewRun
from headrace.pipeline.plan import Concurrency


@dataclass
class RunRow:
    run: Run
    new: NewRun
    """What it was made from."""
    repository: str
    priority: int
    jobs: tuple[int, ...]
    gates: dict[int, Gate]
    graph: Graph
    doors: dict[int, Door] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    expires: dict[int, float] = field(default_factory=dict)
    fragments: list[Kept] = field(default_factory=list)
    lists: dict[int, tuple[int, str]] = field(default_factory=dict)
    """By job, how often its matrix was expanded, and with what."""


@dataclass
class MemberRow:
    key: tuple[str, bool, bool, str]
    """Repository, whether it is trusted, whether it is a group of jobs, its name."""
    run_id: int
    job_id: int | None
    group: Concurrency
    entered: bool = False
    leaving: bool = False


@dataclass
class JobRow:
    job: Job
    run_id: int
    class_id: int
    pool: str
    environment: str
    spec: bytes
    vt: float | None = None
    name: str = ""
    cell: str = ""
    context: str = ""
    wants_needs: bool = False
    given: bytes = b""
    outputs: str = ""
    due_at: float | None = None
    depth: int = 0


@dataclass
class QueueRow:
    class_id: int
    priority: int
    vt: float
    queued_at: float


@dataclass
class PoolRow:
    paused: bool = False
    vt: float = 0.0


@dataclass
class AgentRow:
    id: int
    hello: Hello
    drained: bool = False
    leaving: bool = False
    refusal: str = ""
    errored: int = 0
    quarantine: str = ""


@dataclass
class SessionRow:
    agent_id: int
    instance: str
    counter: int = 0


@dataclass
class AttemptRow:
    attempt: Attempt
    run_id: int
    agent_id: int
    attempt_try: int
    out_of_contact_since: float | None = None


@dataclass
class LeaseRow:
    attempt_id: int
    job_id: int
    run_id: int
    agent_id: int
    session_id: str | None
    token: bytes
    number: int
    at_most_once: bool
    orphaned_at: float | None = None
    permit: str | None = None
    fencing: int = 0
    cancel: str = ""
    sentence: str = ""
