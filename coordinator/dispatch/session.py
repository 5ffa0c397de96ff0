"""One agent's session as this replica holds it: its credit, its numbered assignments, what is to be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from coordinator.core.matching import Offer
from coordinator.dispatch.port import Answer, CancelOrder, Claimed, Permit, Want
from coordinator.errors import BadInput

# What may wait to be sent to one agent before its session is given up as stuck.
MOST_UNSENT = 1000
# What one message assigns, in bytes of specs, where it is more than one job.
MOST_BYTES = 1 << 20
# Attempts that an agent may hold beside its slots: their outcomes are not acknowledged yet.
MOST_UNTOLD = 1000


@dataclass(frozen=True, slots=True)
class Assign:
    """Jobs for the agent, numbered without gaps."""

    claimed: tuple[Claimed, ...]


@dataclass(frozen=True, slots=True)
class Beaten:
    """The heartbeats up to this one are committed."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Answered:
    """Reports are recorded, or refused."""

    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Permitted:
    """The answer to a start permit."""

    attempt_id: int
    nonce: str
    permit: Permit


@dataclass(frozen=True, slots=True)
class CancelThese:
    """Live attempts to cancel. `abort`: they are no longer wanted at all."""

    orders: tuple[CancelOrder, ...]
    abort: bool = False


@dataclass(frozen=True, slots=True)
class DrainIt:
    """A person drains the agent, or lets it work again."""

    undo: bool


@dataclass(frozen=True, slots=True)
class SendAway:
    """This replica cannot serve, at least not for so long."""

    sentence: str
    retry_after_s: float = 1.0


Outgoing = Assign | Beaten | Answered | Permitted | CancelThese | DrainIt | SendAway


class SessionOver(Exception):
    """The session ends: fenced by a newer one, expired, or stuck. The agent connects again."""


def _messages(claimed: Sequence[Claimed]) -> Iterator[list[Claimed]]:
    """What fits into one message: the wire refuses a larger one, and the session would end with it."""
    message: list[Claimed] = []
    size = 0
    for each in claimed:
        own = len(each.spec) + len(each.needs)
        if message and size + own > MOST_BYTES:
            yield message
            message, size = [], 0
        message.append(each)
        size += own
    if message:
        yield message


@dataclass(slots=True)
class Session:
    """The state of a session. Credit is a number of increments that dies with it."""

    id: str
    agent_id: int
    name: str
    offer: Offer
    slots: int
    credit: int
    drained: bool
    leaving: bool
    next_number: int = 1
    over: str = ""
    """Why it is over; empty: it lives."""
    _unsent: list[Outgoing] = field(default_factory=list)
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    _unacknowledged: dict[int, tuple[Claimed, float]] = field(default_factory=dict)
    _barred: dict[int, float] = field(default_factory=dict)
    _canceled: dict[int, CancelOrder] = field(default_factory=dict)

    @property
    def wants_work(self) -> bool:
        """Whether it may be given a job now."""
        return self.credit > 0 and not self.drained and not self.leaving and not self.over

    def check_beat(self, highest: int, attempts: Collection[int]) -> None:
        """Raises BadInput for a heartbeat that no agent of this session can mean: it would fail those of all others."""
        if highest >= self.next_number:
            raise BadInput(f"an assignment {highest} was never sent: the last one was {self.next_number - 1}")
        if len(attempts) > self.slots + MOST_UNTOLD:
            raise BadInput(f"an agent with {self.slots} slots does not hold {len(attempts)} attempts")

    def grant(self, slots: int) -> None:
        """Free slots again. Raises BadInput for more of them than the agent has."""
        if self.credit + slots > self.slots:
            raise BadInput(f"an agent with {self.slots} slots cannot have {self.credit + slots} of them free")
        self.credit += slots

    def want(self) -> Want:
        """Its free slots, for a claim."""
        return Want(self.id, self.credit, self.next_number)

    def assign(self, claimed: Sequence[Claimed], *, deadline: float) -> None:
        """Takes credit for claimed jobs and sends them; they have until `deadline` to be acknowledged."""
        self.credit -= len(claimed)
        for each in claimed:
            self._unacknowledged[each.number] = (each, deadline)
            self.next_number = max(self.next_number, each.number + 1)
        for some in _messages(claimed):
            self.send(Assign(tuple(some)))
        # A cancel may have been read before the claim's own answer came: the agent ignored it.
        if overtaken := tuple(self._canceled[each.attempt_id] for each in claimed if each.attempt_id in self._canceled):
            self.send(CancelThese(overtaken))

    def acknowledged(self, number: int, *, accepted: bool, barred_until: float) -> Claimed | None:
        """An assignment was taken, or refused: a refused one comes back, and its class is barred for a while."""
        found = self._unacknowledged.pop(number, None)
        if found is None or accepted:
            return None
        self._barred[found[0].class_id] = barred_until
        return found[0]

    def overdue(self, now: float) -> list[Claimed]:
        """Assignments that were not acknowledged in time; they are no longer waited for."""
        late = [each for each, deadline in self._unacknowledged.values() if deadline <= now]
        for each in late:
            del self._unacknowledged[each.number]
        return late

    def may_take(self, class_id: int, now: float) -> bool:
        """Whether it has not just refused a job of this class."""
        until = self._barred.get(class_id)
        if until is not None and until <= now:
            del self._barred[class_id]
            until = None
        return until is None

    def cancel(self, orders: Sequence[CancelOrder]) -> None:
        """Sends what it has not been told yet; an order that has become a kill is sent again."""
        fresh = [order for order in orders if self._canceled.get(order.attempt_id) != order]
        if fresh:
            self._canceled.update({order.attempt_id: order for order in fresh})
            self.send(CancelThese(tuple(fresh)))

    def send(self, message: Outgoing) -> None:
        """Queues a message; a session that does not read is over."""
        if len(self._unsent) >= MOST_UNSENT:
            self.end("the agent does not read what it is sent")
            return
        self._unsent.append(message)
        self._ready.set()

    async def next_messages(self) -> list[Outgoing]:
        """All that waits to be sent, in order; waits for the first. Raises SessionOver."""
        await self._ready.wait()
        self._ready.clear()
        if self.over:
            raise SessionOver(self.over)
        messages, self._unsent = self._unsent, []
        return messages

    def end(self, sentence: str) -> None:
        """Ends the session's stream; its attempts are untouched."""
        self.over = self.over or sentence
        self._ready.set()
