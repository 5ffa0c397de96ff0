"""What can happen to a job."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.core.rules import Verdict
from coordinator.core.states import AttemptState, Cause


@dataclass(frozen=True, slots=True)
class DependenciesEnded:
    """Some of its dependencies have ended; with the last of them it is decided."""

    count: int
    failed: int
    decider: str = ""
    upstream_failed: bool = False


@dataclass(frozen=True, slots=True)
class Decided:
    """Nothing holds it any more: its condition was judged. `held`: its group is full."""

    verdict: Verdict
    held: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """It does not run, whatever it waits for."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ApprovalAsked:
    """A person is asked whether its stage may run."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Entered:
    """Its run, or the job itself, has a place in its group."""


@dataclass(frozen=True, slots=True)
class LetIn:
    """The door of its stage has opened. What comes before the stage is told as the door saw it."""

    failed: int = 0
    decider: str = ""
    upstream_failed: bool = False
    approved: bool = False
    """A person was asked, and has approved."""


@dataclass(frozen=True, slots=True)
class DelayOver:
    """The pause before its next try is over."""


@dataclass(frozen=True, slots=True)
class AttemptReturned:
    """An attempt that never started is over."""

    canceling: bool


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """An agent works on it."""


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt that had started is over."""

    outcome: AttemptState
    cause: Cause
    sentence: str
    canceling: bool
    """Whether somebody had asked to cancel it."""
    exit_code: int | None = None
    """Of the step that failed."""
    matched: frozenset[str] = frozenset()
    """Patterns of its retry rules that its log holds."""


@dataclass(frozen=True, slots=True)
class Canceled:
    """The run is canceled, and no agent works on the job."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Unschedulable:
    """No agent can take it, and none will."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Noted:
    """Why no agent can take it at present; empty: one can."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A person asks for it again, or for something it depends on. The counters are set anew."""

    unfinished: int
    failed: int
    decider: str
    upstream_failed: bool = False
    asks: bool = False


@dataclass(frozen=True, slots=True)
class Expanded:
    """The cells that it stands for are there; or there are none, by the verdict."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Vanished:
    """Its matrix has this cell no more."""

    sentence: str


JobEvent = (
    DependenciesEnded
    | Decided
    | Skipped
    | ApprovalAsked
    | LetIn
    | DelayOver
    | Entered
    | AttemptReturned
    | AttemptStarted
    | AttemptEnded
    | Canceled
    | Unschedulable
    | Noted
    | Asked
    | Expanded
    | Vanished
)
