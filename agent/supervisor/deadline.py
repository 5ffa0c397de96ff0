"""When a supervisor ends its sandbox by itself. Pure; milliseconds of the boot clock."""

from __future__ import annotations

from typing import Final, NamedTuple

from agent.problems import Cause

GONE_MS: Final = 60_000
"""At least once: beyond the lease, how long a sandbox goes on without its agent."""
MARGIN_MS: Final = 15_000
"""At most once: the sandbox is dead for so long when anybody may start its job again."""


class Terms(NamedTuple):
    """What the agent said about this attempt's time."""

    lease_ms: int
    at_most_once: bool
    grace_ms: int
    deadline: int = 0
    """The job's own end; 0: none."""
    heartbeat_sent: int = 0
    """When the last answered heartbeat was sent."""
    heard: int = 0
    """When the agent last said anything."""


def overdue(terms: Terms, now: int) -> tuple[Cause, str] | None:
    """Why the sandbox has to end now, or None."""
    if terms.deadline and now >= terms.deadline:
        return Cause.JOB_TIMED_OUT, "the job ran out of time"
    if terms.at_most_once:
        end = terms.heartbeat_sent + terms.lease_ms - terms.grace_ms - MARGIN_MS
        return (
            (Cause.SANDBOX_KILLED, "the lease ran out while the coordinator was out of reach") if now >= end else None
        )
    if now >= terms.heard + terms.lease_ms + GONE_MS:
        return Cause.SANDBOX_KILLED, "the sandbox was ended because its agent was gone"
    return None
