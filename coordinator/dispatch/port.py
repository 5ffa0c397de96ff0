"""What the dispatch room wants of a store: whole transactions, each safe to repeat, none per item.

PostgreSQL is behind it in life (`coordinator/store/dispatching.py`), plain dictionaries in the simulation; both
pass the same suite. After each commit a store rings the bells for what it changed; it never calls back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from coordinator.core.matching import Ability, Offer, Requirement
from coordinator.core.states import AttemptState, Cause


@dataclass(frozen=True, slots=True)
class Held:
    """An attempt that an agent still holds, as it says in its Hello."""

    attempt_id: int
    token: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Hello:
    """What an agent says of itself. `name` is its verified identity, labels are claims that grant nothing."""

    name: str
    instance: str
    version: str
    pool: str
    labels: Mapping[str, str]
    slots: int
    abilities: tuple[Ability, ...]
    held: tuple[Held, ...] = ()
    leaving: bool = False
    refusal: str = ""
    """Why it takes no jobs until a person has seen to it; empty: it does, or it just leaves."""
    number: int = 0
    """Grows with every Hello of the instance; one that comes behind a newer one is refused. 0: not counted."""
    slot_cpu: float = 0.0
    """One slot's share; 0: not told."""
    slot_memory: int = 0

    @property
    def offer(self) -> Offer:
        """What decides which jobs fit."""
        labels = tuple(sorted(self.labels.items()))
        return Offer(self.pool, labels, self.abilities, self.slot_cpu, self.slot_memory)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of an attempt that Hello named: resumed, or aborted with a sentence."""

    attempt_id: int
    resume: bool
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that is open. `drained`: a person has drained this agent, or it is quarantined."""

    session_id: str
    agent_id: int
    drained: bool
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True)
class Beat:
    """One session's heartbeat: the highest assignment number it has seen, and every attempt it still holds."""

    session_id: str
    highest: int
    attempts: frozenset[int]


@dataclass(frozen=True, slots=True)
class Missing:
    """An attempt that a heartbeat of its session should have named and did not."""

    attempt_id: int
    run_id: int
    session_id: str


@dataclass(frozen=True, slots=True)
class Stray:
    """An attempt that a heartbeat names and of which the database knows nothing: it has lost commits."""

    attempt_id: int
    session_id: str


@dataclass(frozen=True, slots=True)
class Pulse:
    """What heartbeats came to: the sessions that are still open, what is missing in their hands, and what should not
    be there."""

    alive: frozenset[str]
    missing: tuple[Missing, ...] = ()
    strays: tuple[Stray, ...] = ()


@dataclass(frozen=True, slots=True)
class Want:
    """Free slots of a session. Its next assignments are numbered from `next_number`."""

    session_id: str
    slots: int
    next_number: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job given to a session: already committed, not yet sent."""

    session_id: str
    number: int
    attempt_id: int
    token: bytes = field(repr=False)
    job_id: int
    run_id: int
    class_id: int
    attempt_try: int
    spec: bytes
    waited_s: float
    """From queued to claimed, by the database's clock."""
    needs: bytes = b""
    """JSON: `needs` as expressions see it, or a text that says why not; empty where nothing asks for it."""


@dataclass(frozen=True, slots=True)
class StartedReport:
    """An agent begins to work on an attempt."""

    id: str
    attempt_id: int
    token: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EndedReport:
    """An agent tells an attempt's outcome. `details` is the serialised `headrace.v1.Ended`, kept as it came."""

    id: str
    attempt_id: int
    token: bytes = field(repr=False)
    outcome: AttemptState
    cause: Cause
    sentence: str
    details: bytes
    log_records: Mapping[str, int] = field(default_factory=dict)
    exit_code: int | None = None
    """Of the step that failed."""
    log_patterns: frozenset[str] = frozenset()
    """Patterns of its retry rules that its log holds."""
    outputs: str = ""
    """JSON: its outputs by name; empty for none."""


Report = StartedReport | EndedReport


@dataclass(frozen=True, slots=True)
class Answer:
    """What a report is answered with. `abort`: the token is stale; the agent drops the attempt."""

    report_id: str
    attempt_id: int
    abort: bool = False
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """An assignment of this session that was refused, or not acknowledged in time."""

    attempt_id: int
    session_id: str
    token: bytes = field(repr=False)
    sentence: str


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """A live attempt that somebody wants canceled. `kill`: without grace."""

    attempt_id: int
    session_id: str
    kill: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Permit:
    """The answer to a supervisor that asks to start. `fencing_token` grows with every permitted deployment."""

    granted: bool
    fencing_token: int = 0
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A permitted at-most-once attempt whose session has ended: its own, long lease is running."""

    attempt_id: int


@dataclass(frozen=True, slots=True)
class Observed:
    """What the reaper sees: every session's counter, and the attempts out of contact."""

    counters: Mapping[str, int]
    orphans: tuple[Orphan, ...]
    server: str = ""
    """Which life of which server told it: a counter of another one may have been taken back."""


class DispatchStore(Protocol):
    """The transactions of dispatch. All raise `coordinator.errors.StoreDown` when the database fails."""

    async def open_session(self, hello: Hello, session_id: str, replica: str) -> Opened:
        """Opens a session and fences the same instance's older one. Raises IdentityTaken, LateHello."""
        ...

    async def close_session(self, session_id: str) -> None:
        """Ends a session whose agent left with nothing in its hands; otherwise the lease decides."""
        ...

    async def heartbeat(self, beats: Sequence[Beat]) -> Pulse:
        """Raises the counters, and settles nothing: no run may hold up the heartbeats of all."""
        ...

    async def settle_missing(self, missing: Sequence[Missing]) -> None:
        """Gives up what is still in the hands of the session that did not name it."""
        ...

    async def classes(self) -> Mapping[int, Requirement]:
        """Every class of jobs that has something queued in a pool that is not paused."""
        ...

    async def claim(self, classes: Sequence[int], wants: Sequence[Want]) -> Sequence[Claimed]:
        """Gives queued jobs of these classes, in order, to the sessions that want them."""
        ...

    async def give_up(self, returned: Sequence[GivenUp]) -> frozenset[int]:
        """Returns assignments that never began: their jobs are queued again; returns their attempts.

        One that has started meanwhile, or that another session has resumed, stays as it is.
        """
        ...

    async def report(self, reports: Sequence[Report]) -> Sequence[Answer]:
        """Records what agents report, and what follows from it. Idempotent by report id."""
        ...

    async def runs_of(self, attempts: Sequence[int]) -> Mapping[int, int]:
        """The run of each of these attempts, where there is one."""
        ...

    async def permit(self, attempt_id: int, token: bytes, nonce: str) -> Permit:
        """Grants the start permit of an at-most-once attempt to one nonce for ever."""
        ...

    async def cancels(self, sessions: Sequence[str]) -> Sequence[CancelOrder]:
        """What is to be canceled among the live attempts of these sessions."""
        ...

    async def drained(self, agents: Sequence[int]) -> frozenset[int]:
        """Which of these agents a person has drained, or are quarantined."""
        ...

    async def leaving(self, agent_id: int, refusal: str) -> None:
        """The agent drains by its own decision; `refusal`: for a reason that a person has to see to."""
        ...

    async def observe(self) -> Observed:
        """What the reaper looks at, again and again."""
        ...

    async def expire(self, counters: Mapping[str, int], term: str) -> Sequence[str]:
        """Ends sessions whose counter is still this one and settles their attempts; returns those ended."""
        ...

    async def expire_orphans(self, attempts: Sequence[int], term: str) -> Sequence[int]:
        """Settles permitted attempts that stayed out of contact for the whole long lease."""
        ...

    async def judge_schedulable(self, *, fail: bool) -> int:
        """Writes on queued jobs why no connected agent can take them, or fails them; returns how many changed."""
        ...

    async def release_due(self) -> None:
        """What time and groups do: queues jobs whose pause before the next try is over, ends approvals that nobody
        gave in time, and lets in whoever waits for a place in a group that has one."""
        ...

    async def mend(self, queue_timeout_s: float) -> int:
        """Queues what waits for nothing (it must never find any) and ends what no agent could take for too long."""
        ...


@dataclass(frozen=True, slots=True)
class Wake:
    """What a commit changed, for whoever waits for it, here and at other replicas."""

    queue: bool = False
    cancels: bool = False
    agents: bool = False
    runs: frozenset[int] = frozenset()
    groups: bool = False
    expansions: bool = False

    def __or__(self, other: Wake) -> Wake:
        return Wake(
            self.queue or other.queue,
            self.cancels or other.cancels,
            self.agents or other.agents,
            self.runs | other.runs,
            self.groups or other.groups,
            self.expansions or other.expansions,
        )

    def __bool__(self) -> bool:
        return self != Wake()


class Bells(Protocol):
    """Where a store says what it has changed, after the commit."""

    def ring(self, wake: Wake) -> None:
        """Wakes whoever waits for it. Never blocks, never fails: a slow poll is the backstop."""
        ...
