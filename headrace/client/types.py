"""What the SDK answers with: frozen values, words instead of numbers.

Times are aware `datetime`s in UTC, durations milliseconds, sizes bytes. Every value has `to_json()`; the shapes
are documented in docs/reference/json.md, and a test holds them together. A state or a cause that this client is
too old to know is the word `state_9` or `cause_77`, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import ClassVar


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


RUN_ENDED = frozenset({RunState.PASSED, RunState.FAILED, RunState.CANCELED})
JOB_ENDED = frozenset({JobState.PASSED, JobState.FAILED, JobState.CANCELED, JobState.SKIPPED})


def json_value(value: object) -> object:
    """Any value of this module as what `json.dumps` takes: `datetime` as ISO 8601 with `Z`, tuples as lists."""
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case Value():
            return value.to_json()
        case StrEnum():
            return value.value
        case Mapping():
            return {str(key): json_value(each) for key, each in value.items()}
        case list() | tuple():
            return [json_value(each) for each in value]
        case _:
            return value


class Value:
    """A frozen dataclass that knows its JSON shape: its fields, in order, and the `shown` properties."""

    __slots__ = ()
    shown: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, object]:
        """The documented shape (docs/reference/json.md): plain values, lists and objects."""
        assert is_dataclass(self)
        names = (*(each.name for each in fields(self)), *self.shown)
        return {name: json_value(getattr(self, name)) for name in names}


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


@dataclass(frozen=True, slots=True)
class Job(Value):
    """A job of a run. `key` is unique in the run; `stage` is an index into `Run.stages`.

    `needs` None: it names none, and waits for all earlier stages.
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

    @property
    def ended(self) -> bool:
        """True once nothing more will happen to it, unless somebody retries it."""
        return self.state in JOB_ENDED

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
class Stage(Value):
    """A stage of a run; `environment` is empty where nothing is deployed."""

    index: int
    name: str
    environment: str


@dataclass(frozen=True, slots=True)
class Run(Value):
    """One execution of a pipeline for one commit. Lists of runs leave `stages` and `jobs` empty."""

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

    @property
    def ended(self) -> bool:
        """True in `passed`, `failed` and `canceled`."""
        return self.state in RUN_ENDED

    def job(self, key: str) -> Job | None:
        """The job with this key, or None."""
        return next((job for job in self.jobs if job.key == key), None)


@dataclass(frozen=True, slots=True)
class RunChange(Value):
    """One change of a watched run. Exactly one of the three is set; `run` comes without stages and jobs."""

    sequence: int
    snapshot: Run | None = None
    job: Job | None = None
    run: Run | None = None


@dataclass(frozen=True, slots=True)
class LogBytes(Value):
    """Bytes of a log, as they were written; `offset` is that of the first, counted in the stream."""

    attempt: int
    offset: int
    section: int
    time: datetime | None
    data: bytes
    ours: bool
    """Headrace itself wrote them, not the job."""

    def to_json(self) -> dict[str, object]:
        """Bytes that are no UTF-8 become U+FFFD in `text`; `length` counts the bytes."""
        return {
            "kind": "bytes",
            "attempt": self.attempt,
            "offset": self.offset,
            "length": len(self.data),
            "section": self.section,
            "time": json_value(self.time),
            "text": self.data.decode("utf-8", "replace"),
            "ours": self.ours,
        }


@dataclass(frozen=True, slots=True)
class SectionOpened(Value):
    """A section of the log begins. `of`: setup, checkout, cache, step, artifacts or cleanup; `step` -1: none."""

    attempt: int
    offset: int
    section: int
    of: str
    title: str
    step: int

    def to_json(self) -> dict[str, object]:
        """The fields, and `"kind": "opened"`."""
        return {"kind": "opened"} | Value.to_json(self)


@dataclass(frozen=True, slots=True)
class SectionClosed(Value):
    """A section ended; `result` is empty when all went well."""

    attempt: int
    offset: int
    section: int
    result: str

    def to_json(self) -> dict[str, object]:
        """The fields, and `"kind": "closed"`."""
        return {"kind": "closed"} | Value.to_json(self)


@dataclass(frozen=True, slots=True)
class LogGap(Value):
    """`length` bytes before `offset` are missing for good: the log was cut, and says so itself."""

    attempt: int
    offset: int
    length: int

    def to_json(self) -> dict[str, object]:
        """The fields, and `"kind": "gap"`."""
        return {"kind": "gap"} | Value.to_json(self)


@dataclass(frozen=True, slots=True)
class LogEnd(Value):
    """The last of a tail. `complete`: the log is sealed, nothing will ever follow."""

    attempt: int
    offset: int
    complete: bool

    def to_json(self) -> dict[str, object]:
        """The fields, and `"kind": "end"`."""
        return {"kind": "end"} | Value.to_json(self)


LogRecord = LogBytes | SectionOpened | SectionClosed | LogGap | LogEnd


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
    """A build machine's daemon. `busy` of its `slots` run the `jobs` named."""

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


@dataclass(frozen=True, slots=True)
class Pool(Value):
    """A named set of agents. A paused one starts nothing."""

    name: str
    paused: bool
    agents: int
    slots: int
    busy: int
    queued: int
