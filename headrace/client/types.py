"""What the SDK answers with: frozen values, words instead of numbers.

Times are aware `datetime`s in UTC, durations milliseconds, sizes bytes. Every value has `to_json()`; the shapes
are documented in docs/reference/json.md, and a test holds them together. A state or a cause that this client is
too old to know is the word `state_9` or `cause_77`, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from headrace.client.log_records import LogBytes, LogEnd, LogGap, LogRecord, SectionClosed, SectionOpened
from headrace.client.values import Value, json_value

__all__ = [
    "JOB_ENDED", "RUN_ENDED", "Agent", "Approval", "Artifact", "ArtifactFile", "Attempt", "AttemptState", "Decision",
    "Job", "JobState", "LogBytes", "LogEnd", "LogGap", "LogRecord", "Pool", "Presence", "Run", "RunChange", "RunState",
    "Sandbox", "SectionClosed", "SectionOpened", "Shard", "Source", "Stage", "StepResult", "TestFailure", "TestReport",
    "Value", "json_value",
]  # fmt: skip


class RunState(StrEnum):
    """Where a run stands. The last three are ends, though a retry leads back to `running`."""

    PENDING = "pending"
    RUNNING = "running"
    BLOCKED = "blocked"
    PASSED = "passed"
    FAILED = "failed"
    CANCELED = "canceled"


class JobState(StrEnum):
    """Where a job stands. `queued`: claimable now, or claimed and not yet started."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    BLOCKED = "blocked"
    PASSED = "passed"
    FAILED = "failed"
    CANCELED = "canceled"
    SKIPPED = "skipped"


class AttemptState(StrEnum):
    """Where an attempt stands; `errored` and `lost`: the machinery failed, not the user's command."""

    LEASED = "leased"
    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"
    ERRORED = "errored"
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"
    LOST = "lost"
    RETURNED = "returned"


class Presence(StrEnum):
    """Whether an agent is there."""

    CONNECTED = "connected"
    DRAINING = "draining"
    GONE = "gone"
    QUARANTINED = "quarantined"


RUN_ENDED = frozenset({RunState.PASSED, RunState.FAILED, RunState.CANCELED})
JOB_ENDED = frozenset({JobState.PASSED, JobState.FAILED, JobState.CANCELED, JobState.SKIPPED})


@dataclass(frozen=True, slots=True)
class Source(Value):
    """Where the code of a run comes from. Exactly one of `path`, `url` and `bundle_sha256` is not empty.

    `repository` makes the project: the canonical path or URL. `commit` is the full hash. `description` is for
    people. `own_code`: the user's own code on the user's own machine; believed from a local caller alone.
    """

    repository: str
    commit: str
    path: str = ""
    url: str = ""
    bundle_sha256: str = ""
    branch: str = ""
    tag: str = ""
    description: str = ""
    own_code: bool = False


@dataclass(frozen=True, slots=True)
class StepResult(Value):
    """How one step ended. `cause` None: it passed (or was skipped); `signal` 9: it was killed."""

    number: int
    name: str
    cause: str | None
    skipped: bool
    exit_code: int | None
    signal: int | None
    sentence: str
    began_at: datetime | None
    ended_at: datetime | None
    allowed: bool = False
    """It failed and was allowed to: `cause` says how, and the job went on."""
    tries: int = 1


@dataclass(frozen=True, slots=True)
class TestFailure(Value):
    """One test that did not pass. `error`: it broke, else it failed; `message` is shortened."""

    __test__: ClassVar[bool] = False  # pytest would take it for a test of whoever imports it

    suite: str
    name: str
    message: str
    duration_ms: int
    error: bool


@dataclass(frozen=True, slots=True)
class TestReport(Value):
    """What the JUnit reports of an attempt say together. `failed`: the first hundred; `problems`: unreadable reports,
    a sentence each."""

    __test__: ClassVar[bool] = False

    tests: int
    failures: int
    errors: int
    skipped: int
    duration_ms: int
    failed: tuple[TestFailure, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt(Value):
    """One claim of a job by an agent. `number` counts those that started, from 1; durations are None until it ends."""

    id: int
    number: int
    state: AttemptState | str
    agent: str
    cause: str | None
    sentence: str
    leased_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    steps: tuple[StepResult, ...]
    sandbox_ms: int | None
    checkout_ms: int | None
    steps_ms: int | None
    artifacts_ms: int | None
    log_bytes: int
    tests: TestReport | None = None
    """None: it has no reports."""


@dataclass(frozen=True, slots=True)
class Shard(Value):
    """One copy of a `parallel` job. `index` counts from 1."""

    index: int
    total: int


@dataclass(frozen=True, slots=True)
class Job(Value):
    """A job of a run. `key` is unique in the run; `stage` is an index into `Run.stages`.

    `needs` None: it names none, and waits for all earlier stages.
    `name` is its name in the file, which all cells of a matrix share; `matrix` and `shard` say which copy it is.
    `due_at`: when its next try may begin, while it pauses between two.
    """

    shown = ("queued_for_ms",)

    id: int
    key: str
    stage: int
    needs: tuple[str, ...] | None
    state: JobState | str
    cause: str | None
    sentence: str
    pool: str
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    attempts: tuple[Attempt, ...]
    name: str = ""
    matrix: Mapping[str, object] = field(default_factory=dict)
    shard: Shard | None = None
    may_fail: bool = False
    outputs: Mapping[str, object] = field(default_factory=dict)
    due_at: datetime | None = None
    expanded: bool = False
    """Among changes: its cells stand for it from now on, and it is no job of the run any more."""

    @property
    def ended(self) -> bool:
        """True once nothing more will happen to it, unless somebody retries it."""
        return self.state in JOB_ENDED

    @property
    def warned(self) -> bool:
        """It failed under `allow_failure`: its run may pass all the same, with a warning."""
        return self.may_fail and self.state == JobState.FAILED

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt, if there was any."""
        return self.attempts[-1] if self.attempts else None

    @property
    def queued_for_ms(self) -> int | None:
        """From queued to the newest attempt's lease, None while it was not leased."""
        newest = self.attempt
        if self.queued_at is None or newest is None or newest.leased_at is None:
            return None
        return max(0, round((newest.leased_at - self.queued_at).total_seconds() * 1000))


@dataclass(frozen=True, slots=True)
class Decision(Value):
    """What one person decided about an approval."""

    person: str
    approved: bool
    comment: str


@dataclass(frozen=True, slots=True)
class Approval(Value):
    """How the approval of a stage stands.

    `state`: `closed` (not its turn), `asked`, `approved`, `rejected`, `expired`, `open` (its jobs were let in).
    `sentence`: what is asked, or how it was decided; `count`: how many people have to approve; `expires_at` None: it
    was not asked.
    """

    state: str
    sentence: str
    count: int
    decisions: tuple[Decision, ...]
    expires_at: datetime | None

    @property
    def asked(self) -> bool:
        """True while a person has to decide."""
        return self.state == "asked"


@dataclass(frozen=True, slots=True)
class Stage(Value):
    """A stage of a run; `environment` is empty where nothing is deployed, `approval` None where none is needed.

    `url`: where the environment can be seen, or empty.
    """

    index: int
    name: str
    environment: str
    url: str = ""
    approval: Approval | None = None


@dataclass(frozen=True, slots=True)
class Run(Value):
    """One execution of a pipeline for one commit. Lists of runs leave `stages` and `jobs` empty."""

    shown = ("took_ms",)

    id: int
    project: str
    pipeline: str
    state: RunState | str
    event: str
    source: Source
    parameters: Mapping[str, str]
    sentence: str
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    sequence: int
    stages: tuple[Stage, ...] = ()
    jobs: tuple[Job, ...] = ()
    warnings: int = 0
    """Jobs that failed and were allowed to."""

    @property
    def ended(self) -> bool:
        """True in `passed`, `failed` and `canceled`."""
        return self.state in RUN_ENDED

    @property
    def took_ms(self) -> int | None:
        """From its newest start (a retry is one) to its end, None until it has ended."""
        if self.started_at is None or self.ended_at is None:
            return None
        return max(0, round((self.ended_at - self.started_at).total_seconds() * 1000))

    def job(self, key: str) -> Job | None:
        """The job with this key, or None."""
        return next((job for job in self.jobs if job.key == key), None)


@dataclass(frozen=True, slots=True)
class RunChange(Value):
    """One change of a watched run. Exactly one of the three is set; `run` comes without jobs."""

    sequence: int
    snapshot: Run | None = None
    job: Job | None = None
    run: Run | None = None


@dataclass(frozen=True, slots=True)
class ArtifactFile(Value):
    """One file of an artifact. `path` is relative, with `/`; `sha256` is hex."""

    path: str
    sha256: str
    size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class Artifact(Value):
    """Files that a job kept under a name; `expires_at` None: kept for ever. An expired one has no files any more."""

    shown = ("size",)

    name: str
    job: str
    attempt: int
    files: tuple[ArtifactFile, ...]
    published_at: datetime | None
    expires_at: datetime | None
    expired: bool = False

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(each.size for each in self.files)


@dataclass(frozen=True, slots=True)
class Sandbox(Value):
    """A sandbox that an agent can (or, with `why_not`, cannot) start jobs in."""

    kind: str
    networks: tuple[str, ...]
    hard_limits: bool
    why_not: str


@dataclass(frozen=True, slots=True)
class Agent(Value):
    """A build machine's daemon. `busy` of its `slots` run the `jobs` named.

    `sentence`: why it is quarantined, and how to let it work again.
    """

    name: str
    pool: str
    presence: Presence | str
    labels: Mapping[str, str]
    slots: int
    busy: int
    version: str
    seen_at: datetime | None
    sandboxes: tuple[Sandbox, ...] = ()
    jobs: tuple[str, ...] = field(default=())
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class Pool(Value):
    """A named set of agents. A paused one starts nothing."""

    name: str
    paused: bool
    agents: int
    slots: int
    busy: int
    queued: int
