"""The dispatch of one replica: sessions of its agents, claims for their free slots, their heartbeats and reports.

It holds nothing that matters: whatever it knows can be lost at any moment, and the database and the agents
together know it again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from coordinator.batching import GroupCommit
from coordinator.core.matching import Offer, fits
from coordinator.core.states import Cause
from coordinator.dispatch.bells import AGENTS, CANCELS, QUEUE, LocalBells, heard_within
from coordinator.dispatch.port import (
    Answer,
    Beat,
    CancelOrder,
    Claimed,
    DispatchStore,
    EndedReport,
    GivenUp,
    Hello,
    Missing,
    Opened,
    Pulse,
    Report,
    Stray,
)
from coordinator.dispatch.recording import recorded
from coordinator.dispatch.session import (
    Answered,
    Beaten,
    CancelThese,
    DrainIt,
    Permitted,
    SendAway,
    Session,
)
from coordinator.errors import StoreDown


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things may take, in seconds."""

    heartbeat: float = 5.0
    lease: float = 30.0
    acknowledge: float = 3.0
    long_lease: float = 600.0
    """Of permitted at-most-once attempts."""
    poll: float = 2.0
    """The slow poll behind every bell."""
    refusal: float = 10.0
    """For how long a session gets no job of a class that it has refused."""
    least_silence: float = 10.0

    @property
    def silence(self) -> float:
        """A replica whose heartbeats have not been committed for so long sends its agents away."""
        return max(self.least_silence, 2 * self.heartbeat)

    @property
    def look(self) -> float:
        """From one look of the reaper to the next."""
        return self.lease / 10

    @property
    def term(self) -> float:
        """After so long without a look another replica takes over: an agent that dies with the replica that watched it
        is given up within two leases.
        """
        return 4 * self.look


class Measures(Protocol):
    """What is counted of dispatch."""

    def claimed(self, seconds: float) -> None:
        """A job was claimed so long after it was queued."""
        ...

    def returned(self) -> None:
        """An assignment came back."""
        ...

    def ended(self, outcome: str, cause: Cause) -> None:
        """An attempt ended."""
        ...


class Dispatch:
    """The sessions of one replica and the loops that serve them. `clock` is monotonic seconds."""

    def __init__(
        self,
        store: DispatchStore,
        bells: LocalBells,
        *,
        timing: Timing,
        clock: Callable[[], float],
        make_session_id: Callable[[], str],
        replica: str,
        measures: Measures,
    ) -> None:
        self._store = store
        self._bells = bells
        self._timing = timing
        self._clock = clock
        self._make_session_id = make_session_id
        self._replica = replica
        self._measures = measures
        self._sessions: dict[str, Session] = {}
        self._beats: GroupCommit[Beat, bool] = GroupCommit(self._flush_beats, most=5_000)
        self._reports: GroupCommit[Report, Answer] = GroupCommit(self._flush_reports, most=500)
        self._credit = asyncio.Event()
        self._cancels = asyncio.Event()
        self._missing: dict[int, dict[int, Missing]] = {}
        self._found_missing = asyncio.Event()
        self._committed_at = clock()
        self._refused = ""

    @property
    def timing(self) -> Timing:
        """The times that Welcome tells an agent."""
        return self._timing

    @property
    def sessions(self) -> int:
        """Open sessions at this replica."""
        return len(self._sessions)

    @property
    def healthy(self) -> bool:
        """Whether heartbeats are being committed."""
        return self._clock() - self._committed_at < self._timing.silence

    @property
    def trouble(self) -> str:
        """What the database last said when it did not commit heartbeats, or why it said nothing; empty: nothing."""
        return self._refused

    async def run(self) -> None:
        """Runs the loops until it is cancelled."""
        async with asyncio.TaskGroup() as loops:
            for loop in (
                self._beats.run,
                self._reports.run,
                self._settle_missing,
                self._assign,
                self._take_back,
                self._cancel,
                self._drain,
                self._watch_database,
            ):
                loops.create_task(loop(), name=f"dispatch {loop.__name__}")

    async def open(self, hello: Hello, credit: int) -> tuple[Session, Opened]:
        """Opens a session. Raises IdentityTaken, StoreDown."""
        opened = await self._store.open_session(hello, self._make_session_id(), self._replica)
        session = Session(
            opened.session_id,
            opened.agent_id,
            hello.name,
            hello.offer,
            slots=hello.slots,
            credit=min(credit, hello.slots),
            drained=opened.drained,
            leaving=hello.leaving,
        )
        # Before it is among the others: one that fails here has no stream, and would be given jobs for ever.
        session.cancel(await self._store.cancels([session.id]))
        self._sessions[session.id] = session
        self._cancels.set()  # one that was asked for since then, and rang before the session could hear it
        self._credit.set()
        return session, opened

    async def close(self, session: Session) -> None:
        """The session's stream has ended. Its attempts live on until the lease ends, or it comes back."""
        self._sessions.pop(session.id, None)
        if session.leaving:
            await self._store.close_session(session.id)

    async def heartbeat(self, session: Session, sequence: int, highest: int, attempts: Iterable[int]) -> None:
        """Commits a heartbeat, then answers it; a session that is no longer there is over. Raises BadInput."""
        beat = Beat(session.id, highest, frozenset(attempts))
        session.check_beat(highest, beat.attempts)
        if await self._beats.submit(beat):
            session.send(Beaten(sequence))
        else:
            session.end("the session has ended: another one of this agent replaced it, or its lease ran out")

    async def report(self, session: Session, reports: Sequence[Report]) -> None:
        """Records reports, in order, and answers them."""
        answers = await asyncio.gather(*(self._reports.submit(each) for each in reports))
        session.send(Answered(tuple(answers)))

    async def ask_permit(self, session: Session, attempt_id: int, token: bytes, nonce: str) -> None:
        """Answers a supervisor that asks to start a deployment."""
        permit = await self._store.permit(attempt_id, token, nonce)
        session.send(Permitted(attempt_id, nonce, permit))

    def grant(self, session: Session, slots: int) -> None:
        """The agent has free slots again. Raises BadInput for more than it has."""
        session.grant(slots)
        self._credit.set()

    async def leave(self, session: Session, refusal: str) -> None:
        """The agent drains by its own decision; `refusal`: why, where a person has to see to it."""
        session.leaving = True
        await self._store.leaving(session.agent_id, refusal)

    async def acknowledge(self, session: Session, number: int, *, accepted: bool, sentence: str) -> None:
        """An assignment was taken, or refused: then its job is queued again for others."""
        until = self._clock() + self._timing.refusal
        refused = session.acknowledged(number, accepted=accepted, barred_until=until)
        if refused is not None:
            self._measures.returned()
            await self._store.give_up([GivenUp(refused.attempt_id, session.id, refused.token, sentence)])

    def send_away(self, sentence: str) -> None:
        """Tells all agents to connect elsewhere, and takes no part in their attempts any more."""
        for session in self._sessions.values():
            session.send(SendAway(sentence))

    async def _flush_beats(self, beats: Sequence[Beat]) -> Sequence[bool]:
        pulse = await self._committed(beats)
        for each in pulse.missing:
            self._missing.setdefault(each.run_id, {})[each.attempt_id] = each
        if pulse.missing:
            self._found_missing.set()
        self._send_back(pulse.strays)
        return [beat.session_id in pulse.alive for beat in beats]

    async def _committed(self, beats: Sequence[Beat]) -> Pulse:
        try:
            pulse = await self._store.heartbeat(beats)
        except StoreDown as error:
            self._refused = str(error)
            raise
        self._committed_at, self._refused = self._clock(), ""
        return pulse

    def _send_back(self, strays: Iterable[Stray]) -> None:
        """Has agents drop what the database has forgotten: its job is queued, or never was."""
        by_session: dict[str, list[CancelOrder]] = defaultdict(list)
        for each in strays:
            by_session[each.session_id].append(
                CancelOrder(each.attempt_id, each.session_id, kill=True, sentence="the coordinator does not know it")
            )
        for session_id, orders in by_session.items():
            if (session := self._sessions.get(session_id)) is not None:
                session.send(CancelThese(tuple(orders), abort=True))

    async def _settle_missing(self) -> None:
        """Settles what heartbeats did not name, run by run; one that cannot be now is found again by the next beat."""
        while True:
            await self._found_missing.wait()
            self._found_missing.clear()
            while self._missing:
                _, missing = self._missing.popitem()
                with contextlib.suppress(StoreDown):
                    await self._store.settle_missing(list(missing.values()))

    async def _flush_reports(self, reports: Sequence[Report]) -> Sequence[Answer | Exception]:
        answers = await recorded(self._store, reports)
        for each, answer in zip(reports, answers, strict=True):
            if isinstance(each, EndedReport) and isinstance(answer, Answer) and not answer.abort:
                self._measures.ended(each.outcome, each.cause)
        return answers

    async def _assign(self) -> None:
        """Gives queued jobs to free slots whenever either appears."""
        with self._bells.listening(QUEUE) as queued:
            while True:
                await _either(queued, self._credit, self._timing.poll)
                with contextlib.suppress(StoreDown):  # an outage: the next round, after its bell or its poll
                    while await self._assign_once():
                        pass

    async def _assign_once(self) -> int:
        """One round of claims, one statement for each kind of agent; returns how many jobs were given."""
        willing = [session for session in self._sessions.values() if session.wants_work]
        if not willing:
            return 0
        classes = await self._store.classes()
        if not classes:
            return 0
        now = self._clock()
        alike: dict[tuple[Offer, tuple[int, ...]], list[Session]] = defaultdict(list)
        for session in willing:
            matching = tuple(
                key for key, need in classes.items() if fits(need, session.offer) and session.may_take(key, now)
            )
            if matching:
                alike[session.offer, matching].append(session)
        given = 0
        for (_, matching), sessions in alike.items():
            given += await self._claim(matching, sessions)
        return given

    async def _claim(self, classes: Sequence[int], sessions: Sequence[Session]) -> int:
        wants = [session.want() for session in sessions if session.wants_work]
        if not wants:
            return 0
        try:
            claimed = await self._store.claim(classes, wants)
        except StoreDown:
            # It may have been committed, and nobody would ever send these assignments: a new Hello settles them.
            for session in sessions:
                session.end("the coordinator does not know what it has assigned: its database did not answer")
            raise
        by_session: dict[str, list[Claimed]] = defaultdict(list)
        for each in claimed:
            by_session[each.session_id].append(each)
            self._measures.claimed(each.waited_s)
        deadline = self._clock() + self._timing.acknowledge
        for session in sessions:
            if mine := by_session.get(session.id):
                session.assign(mine, deadline=deadline)
        return len(claimed)

    async def _take_back(self) -> None:
        """Assignments that nobody acknowledges go to others; an agent that took one after all is told to drop it."""
        while True:
            await asyncio.sleep(self._timing.acknowledge / 3)
            for session in list(self._sessions.values()):
                if late := session.overdue(self._clock()):
                    with contextlib.suppress(StoreDown):
                        await self._take_back_from(session, late)

    async def _take_back_from(self, session: Session, late: Sequence[Claimed]) -> None:
        sentence = f"not acknowledged within {self._timing.acknowledge:g} s"
        given_up = [GivenUp(each.attempt_id, session.id, each.token, sentence) for each in late]
        # What has started meanwhile was acknowledged after all, and goes on.
        returned = await self._store.give_up(given_up)
        for _ in returned:
            self._measures.returned()
        if returned:
            orders = [CancelOrder(key, session.id, kill=True, sentence=sentence) for key in sorted(returned)]
            session.send(CancelThese(tuple(orders), abort=True))

    async def _cancel(self) -> None:
        """Hands on what people want canceled."""
        with self._bells.listening(CANCELS) as asked:
            while True:
                await _either(asked, self._cancels, self._timing.poll * 5)
                with contextlib.suppress(StoreDown):
                    by_session: dict[str, list[CancelOrder]] = defaultdict(list)
                    for order in await self._store.cancels(list(self._sessions)):
                        by_session[order.session_id].append(order)
                    for session_id, orders in by_session.items():
                        if (session := self._sessions.get(session_id)) is not None:
                            session.cancel(orders)

    async def _drain(self) -> None:
        """Hands on what people decide about agents."""
        with self._bells.listening(AGENTS) as changed:
            while True:
                await heard_within(changed, self._timing.poll * 5)
                with contextlib.suppress(StoreDown):
                    sessions = list(self._sessions.values())
                    drained = await self._store.drained([session.agent_id for session in sessions])
                    for session in sessions:
                        if session.drained is not (session.agent_id in drained):
                            session.drained = session.agent_id in drained
                            session.send(DrainIt(undo=not session.drained))
                            self._credit.set()

    async def _watch_database(self) -> None:
        """Sends the agents away when their heartbeats are not committed: another replica may do better."""
        while True:
            await asyncio.sleep(self._timing.silence / 4)
            if self._clock() - self._committed_at >= self._timing.silence / 4:
                # Nobody spoke up for a while: that the agents are silent does not mean that the database is.
                with contextlib.suppress(StoreDown):
                    await self._committed([])
            if not self.healthy:
                self.send_away("this coordinator cannot reach its database")


async def _either(first: asyncio.Event, second: asyncio.Event, seconds: float) -> None:
    """Waits for one of two events, but no longer than the poll behind them. Clears both."""
    if not first.is_set() and not second.is_set():
        waits = [asyncio.ensure_future(event.wait()) for event in (first, second)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
    first.clear()
    second.clear()
