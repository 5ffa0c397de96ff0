"""The supervisor's clocks, in milliseconds."""

from __future__ import annotations

import time


class Clocks:
    """The machine's own."""

    @staticmethod
    def wall() -> int:
        """Since the Unix epoch: for people."""
        return time.time_ns() // 1_000_000

    @staticmethod
    def boot() -> int:
        """Since boot, the time asleep included: for decisions."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
