"""What an agent tells a supervisor, and what it is told: plain values. Times are wall clock ms, for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agent.problems import Cause


@dataclass(frozen=True)
class SupervisorSettings:
    """How one supervisor is started."""

    lease_ms: int = 30_000
    at_most_once: bool = False
    """Then the sandbox ends when the lease can no longer be counted on; else when its agent is gone for long."""
    grace_ms: int = 10_000
    """Of the job: taken off the end of an at-most-once lease."""
    deadline_boot_ms: int = 0
    """The job's own end, by CLOCK_BOOTTIME; 0: none."""
    heartbeat_sent_boot_ms: int = 0
    """When the last answered heartbeat was sent; at most once: needed."""
    spool: Path | None = None
    """A folder on disk for the spool, where the attempt's own folder is in memory; None: A/priv."""
    spool_limit: int = 256 << 20
    log_limit: int = 2 << 30
    """Bytes of output that the log takes; the job goes on past them."""
    hold_ms: int = 15 * 60_000
    """How long a full spool holds the job before the log is cut."""
    guard: bool = True
    """A process that kills the sandbox when the supervisor dies. bubblewrap needs none: False saves its memory."""

    def asked(self) -> dict[str, Any]:
        """As the supervisor reads it."""
        terms = {
            "lease_ms": self.lease_ms,
            "at_most_once": self.at_most_once,
            "grace_ms": self.grace_ms,
            "deadline": self.deadline_boot_ms,
            "heartbeat_sent": self.heartbeat_sent_boot_ms,
        }
        return {
            "terms": terms,
            "limit": self.spool_limit,
            "log_limit": self.log_limit,
            "hold_ms": self.hold_ms,
            "guard": self.guard,
        }


@dataclass(frozen=True)
class Step:
    """One step, complete."""

    number: int
    section_title: str
    script: str
    shell: str
    """`default`, `bash`, `sh` or `python`."""
    cwd: str
    """As seen from inside."""
    env: Mapping[str, str]
    """All that the step finds: base < job < step, merged."""
    timeout_ms: int = 0
    """0: none of its own."""
    grace_ms: int = 10_000
    step: int | None = None
    """The step's own number, where `number` is that of a later try."""
    say: str = ""
    """A line of ours at the head of its section."""

    def asked(self) -> dict[str, Any]:
        """As the supervisor reads it."""
        fields = asdict(self)
        fields["step"] = self.number if self.step is None else self.step
        return {**fields, "title": fields.pop("section_title"), "env": dict(self.env)}


@dataclass(frozen=True)
class StepResult:
    """How a step ended."""

    number: int
    exit_code: int | None
    signal: int | None
    """Where it is certain that a signal ended it; else a shell's 128 + n stays an exit code."""
    cause: Cause | None
    """None: passed."""
    sentence: str
    began_ms: int
    ended_ms: int

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> StepResult:
        """From what the supervisor told."""
        return cls(**{**told, "cause": Cause(told["cause"]) if told["cause"] else None})


@dataclass(frozen=True)
class Ended:
    """The end of an attempt's sandbox and log."""

    offset: int
    """Bytes of the log in all."""
    records: int
    """Records of the spool in all, the outcome included."""
    cause: Cause | None
    """Why the sandbox ended, when not because it was asked to."""
    sentence: str
    disk: str = ""
    """How the disk failed under the log; empty: it did not. Else `offset` and `records` are those that it kept."""
    missing: int = 0
    """Bytes of the log that were lost by that."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Ended:
        """From what the supervisor told."""
        return cls(**{**told, "cause": Cause(told["cause"]) if told["cause"] else None})


@dataclass(frozen=True)
class SupervisorState:
    """All that a supervisor knows, for an agent that was started again."""

    phase: str
    """`idle`, `launched`, `ended`."""
    running: int | None
    """The step that runs now."""
    begun: tuple[int, ...]
    results: Mapping[int, StepResult]
    section: int | None
    """The open section."""
    records: int
    offset: int
    spooled: int
    """The last record that is durable in the spool; `records` counts those that are not, too."""
    sandbox: tuple[Cause | None, str] | None
    """Why the sandbox is gone (None: it was asked to end); None: it is not."""
    ended: Ended | None
    cancels: int
    kill_refused: bool
    """The supervisor may not kill the sandbox: the engine has to."""
    pid: int
    """pid 1 of the sandbox, as the machine knows it."""
    notes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> SupervisorState:
        """From what the supervisor told."""
        over, outcome = told["over"], told["outcome"]
        results = [StepResult.of(result) for result in told["results"]]
        return cls(
            phase=told["phase"],
            running=told["running"],
            begun=tuple(told["begun"]),
            results={result.number: result for result in results},
            section=told["section"],
            records=told["records"],
            offset=told["offset"],
            spooled=told["spooled"],
            sandbox=None if over is None else (Cause(over["cause"]) if over["cause"] else None, over["sentence"]),
            ended=None if outcome is None else Ended.of(outcome),
            cancels=told["cancels"],
            kill_refused=told["kill_refused"],
            pid=told["pid"],
            notes=told["notes"],
        )
