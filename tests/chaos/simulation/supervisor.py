"""A supervisor of the simulation: it outlives the agent, and ends its commands when the agent's own code says so."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from dataclasses import dataclass, field

from agent.supervisor.deadline import Terms, overdue
from tests.chaos.simulation.freezing import Process, within
from tests.chaos.simulation.judge import Judge
from tests.chaos.simulation.spooling import SimulatedLog, now_ms

_NEVER = 10_000_000
"""Milliseconds."""


@dataclass
class Supervisor:
    """A process of its own: the commands of one attempt. When they have to end is decided by the agent's own code."""

    job_id: int
    attempt_id: int
    terms: Terms
    nonce: str
    lasts: float
    outcome_by_itself: str
    judge: Judge
    log: SimulatedLog
    begun: bool = False
    outcome: str = ""
    process: Process = field(default_factory=Process)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        self.log.failed = self.changed.set
        loop, context = asyncio.get_running_loop(), within(self.process)
        self.tasks = [loop.create_task(each, context=context) for each in (self._watch(), self.log.run())]

    def begin(self) -> None:
        """The first command; asked again: nothing more."""
        if not self.begun and not self.outcome:
            self.begun = True
            self._ends_at = now_ms() + round(self.lasts * 1000)
            self.log.begin(self.lasts)
            self.judge.command_begins(self.job_id, self.attempt_id, at_most_once=self.terms.at_most_once)
            self.changed.set()

    def stop(self, outcome: str) -> None:
        """The commands are over, however that came."""
        if not self.outcome:
            self.outcome = outcome
            if self.begun:
                self.judge.command_ends(self.attempt_id, outcome)
            self.log.end_step()
            self.over.set()
            self.changed.set()

    def kill(self, outcome: str) -> None:
        """kill -9: what was not written yet is gone."""
        self.process.thaw()
        self.log.close()
        self.stop(outcome)

    def hear(self, *, heartbeat_sent: int = 0) -> None:
        """The agent has said something. A frozen supervisor reads it later: its deadline is judged then."""
        sent = max(self.terms.heartbeat_sent, heartbeat_sent)
        self.terms = self.terms._replace(heartbeat_sent=sent, heard=now_ms())
        self.changed.set()

    async def _watch(self) -> None:
        """Waits for the end by itself, or for the deadline."""
        while not self.outcome:
            now = now_ms()
            if (late := overdue(self.terms, now)) is not None:
                self.judge.say(f"the supervisor of attempt {self.attempt_id} ends it: {late[1]}")
                self.stop("errored")
            elif self.log.broken:
                self.stop("errored")
            elif self.begun and now >= self._ends_at:
                self.stop(self.outcome_by_itself)
            else:
                self.changed.clear()
                at = min(self._ends_at if self.begun else _NEVER, self._late_at(now))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout((at - now) / 1000):
                        await self.changed.wait()

    def _late_at(self, now: int) -> int:
        """The first moment at which it would be overdue, if nobody says anything more."""
        return now + bisect.bisect_left(
            range(_NEVER), 1, key=lambda later: overdue(self.terms, now + later) is not None
        )

    _ends_at: int = 0
