"""What one caller may ask of a replica: changes by rate, so many streams at once, and so much under way in a project.

Beyond it: RESOURCE_EXHAUSTED.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

from coordinator.core.bucket import Buckets, Rate
from coordinator.errors import TooMuch
from coordinator.store.runs import Unfinished

_MOST_KEYS = 10_000
_STREAM_RETRY_S = 5.0
_ROOM_RETRY_S = 10.0


class Limits:
    """`caller` and `subject` (a project, or a run): how often each may change something. `streams`: how many watches
    and tails one caller may have open. `unfinished`: how much of one project may be under way; what is refused is the
    next run, so that the last one may go beyond it. `clock` is monotonic seconds; `turned_away` is told what was:
    `call`, `room` or `stream`.
    """

    def __init__(
        self,
        *,
        caller: Rate,
        subject: Rate,
        streams: int,
        unfinished: Unfinished,
        clock: Callable[[], float],
        turned_away: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._caller_rate = caller
        self._subject_rate = subject
        self._callers = Buckets(caller, most=_MOST_KEYS)
        self._subjects = Buckets(subject, most=_MOST_KEYS)
        self._most_streams = streams
        self.unfinished_most = unfinished
        self._streams: Counter[str] = Counter()
        self._clock = clock
        self._turned_away = turned_away

    def change(self, caller: str, subject: str, what: str) -> None:
        """A change of the subject, which `what` names to a person. Raises TooMuch."""
        now = self._clock()
        its_own, callers = self._subjects.of(subject, now), self._callers.of(caller, now)
        # The subject's first: who is held there must not use up what the caller has for all others.
        for wait, rate, whose, setting in (
            (its_own.wait(now), self._subject_rate, f"changes of {what} a second", "PROJECT_CHANGES_PER_S"),
            (callers.wait(now), self._caller_rate, "changes a second under this token", "CHANGES_PER_S"),
        ):
            if wait:
                self._turned_away("call")
                raise TooMuch(
                    f"there were more than {rate.per_s:g} {whose} for a while: come again in {max(wait, 0.1):.1f} s, or"
                    f" have the operator raise HEADRACE_{setting}",
                    wait,
                )
        its_own.take()
        callers.take()

    def room(self, found: Unfinished) -> None:
        """For one run more in a project that has so much under way. Raises TooMuch."""
        most = self.unfinished_most
        for has, bound, what, setting in (
            (found.runs, most.runs, "runs", "PROJECT_RUNS_MOST"),
            (found.jobs, most.jobs, "jobs", "PROJECT_JOBS_MOST"),
        ):
            if has >= bound:
                self._turned_away("room")
                raise TooMuch(
                    f"{bound:,} {what} of this project have not ended: come again when some have, cancel some, or have"
                    f" the operator raise HEADRACE_{setting}",
                    _ROOM_RETRY_S,
                )

    @contextlib.contextmanager
    def stream(self, caller: str) -> Iterator[None]:
        """Around a stream that may stay open for long. Raises TooMuch."""
        if self._streams[caller] >= self._most_streams:
            self._turned_away("stream")
            raise TooMuch(
                f"{self._most_streams:,} logs and runs are being watched under this token: close some, or have the"
                " operator raise HEADRACE_STREAMS_MOST",
                _STREAM_RETRY_S,
            )
        self._streams[caller] += 1
        try:
            yield
        finally:
            self._streams[caller] -= 1
