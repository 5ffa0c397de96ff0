"""The clocks of an agent, passed in so that a simulation can stand in their place.

Waiting is asyncio's business: a simulation gives it a loop of its own, whose time jumps.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the agent asks the time of."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch: for people and records, never for a decision."""
        ...

    def boot_ms(self) -> int:
        """Milliseconds since boot, counting sleep (`CLOCK_BOOTTIME`): what a supervisor's deadline is told in."""
        ...

    def monotonic_ms(self) -> int:
        """Milliseconds of a clock that never steps: for durations."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return time.time_ns() // 1_000_000

    def boot_ms(self) -> int:
        """Milliseconds since boot."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def monotonic_ms(self) -> int:
        """Milliseconds of the monotonic clock."""
        return time.monotonic_ns() // 1_000_000
