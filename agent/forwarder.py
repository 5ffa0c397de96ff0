"""Hands the attempts' logs in: one Append stream for all of them, on a connection of its own.

Bulk never delays a heartbeat, for it goes another way. What is on its way is bounded; what is durable at the
coordinator is acknowledged to the supervisor, which frees its room; after a cut everything that is not durable is
sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from agent.problems import JobProblem
from agent.supervisor.client import SupervisorClient, SupervisorGone
from agent.supervisor.damage import Damage, Stand
from agent.supervisor.reading import SpoolGone, SpoolReader
from agent.supervisor.records import STREAMS, Kind, Record
from agent.wire import LogDialer, LogWire, WireClosed, until_one_ends
from headrace.v1 import log_pb2 as pb

IN_FLIGHT = 8 << 20
"""Bytes on their way, of all attempts together: what a reconnect may send twice."""
MESSAGE = 1 << 20
"""Bytes of one message, about."""
SHARE = 256 << 10
"""Bytes of one attempt in a message: a chatty job does not hold up a quiet one."""
MESSAGE_RECORDS = 2_048
"""Records of one message, about: the coordinator takes 4,096."""
SHARE_RECORDS = 1_024


class _Word(Enum):
    """How it stands with the last word about a log: only the log of an outcome that nobody wants needs one."""

    NONE = auto()
    DUE = auto()
    SAID = auto()
    TAKEN = auto()


class LogSource:
    """The log of one attempt, as the forwarder sees it. `done` is set when nothing more has to be sent."""

    def __init__(
        self,
        attempt: int,
        token: bytes,
        folder: Path,
        wake: Callable[[], None],
        damaged: Callable[[int, Damage], None],
    ) -> None:
        self.attempt = attempt
        self.token = token
        self.folder = folder
        self.done = asyncio.Event()
        self.rejected = ""
        self.durable = 0
        self.sent = 0
        self.final: int | None = None
        """Number of the last record; None: the log still grows."""
        self._there = 0
        """The last record that is known to be durable here: nothing else may leave this machine."""
        self._offset: int | None = 0
        """Where the record behind `sent` begins; None: not known."""
        self._stored = Stand()
        self._end: Stand | None = None
        self._ending = ""
        self._damaged = damaged
        self._told_of: set[int] = set()
        self.client: SupervisorClient | None = None
        self.is_due = True
        """Whether there may be something to send."""
        self._wake = wake
        self._reader = SpoolReader(folder)
        self._sizes: list[tuple[int, int]] = []
        self._unanswered = 0
        """Batches on their way: each is answered, in order."""
        self._is_heard = False
        """Whether it is known how far the coordinator is: not after a restart, nor after a missed answer."""
        self._last_word = _Word.NONE
        self._word_after = 0
        """So many answers more, and the last word was taken."""
        self._telling: asyncio.Task[None] | None = None

    def grown(self, there: int) -> None:
        """There are more durable records than before, up to this one."""
        self._there = max(self._there, there)
        self.is_due = not self.done.is_set()
        self._wake()

    def finish(self, final: int, offset: int | None, ending: str = "") -> None:
        """The log is complete with this record, and this many bytes (None: not known).

        `ending`: what its last bytes say, where no record on the disk does.
        """
        self.final = final
        self._end, self._ending = (None if offset is None else Stand(final, offset)), ending
        self.grown(final)
        self._check()

    def hand_in(self) -> None:
        """Nobody wants its outcome, which would have said where the log ends: the log itself is to say so."""
        if self._last_word is _Word.NONE and not self.rejected:
            self._last_word = _Word.DUE
            self.done.clear()
            self.is_due = True
            self._wake()

    @property
    def reached(self) -> Stand:
        """How far the log was read, as far as that is known."""
        return Stand() if self._offset is None else Stand(self.sent, self._offset)

    @property
    def is_unheard(self) -> bool:
        """Whether something was sent of which nobody knows yet whether it is durable."""
        return self._unanswered > 0 and not self.done.is_set()

    @property
    def in_flight(self) -> int:
        """Bytes sent and not yet durable."""
        return sum(size for _, size in self._sizes)

    def rewind(self) -> None:
        """A new connection: all that is not durable is sent again."""
        self._is_heard = self._is_heard and not self._unanswered
        self._unanswered = 0
        self._go_back()

    def _go_back(self) -> None:
        self.sent = self.durable
        self._offset = self._stored.offset if self._stored.sequence == self.sent else None
        self._sizes.clear()
        if self._last_word in {_Word.SAID, _Word.TAKEN} and not self.done.is_set():
            self._last_word = _Word.DUE
        self.is_due = not self.done.is_set()

    def read(self) -> list[Record]:
        """The records that come next, about `SHARE` bytes, at most `SHARE_RECORDS`.

        Blocks, and changes nothing but where it reads.
        """
        first, offset = self.sent + 1, self._offset
        if self.sent == 0 and not self._is_heard and (there := self._reader.first()) > 1:
            first, offset = there, None  # what is gone was acknowledged to an earlier agent
        most = min(SHARE_RECORDS, self._there - first + 1)
        if most <= 0:
            return []
        try:
            return self._reader.read(first, SHARE, most, offset=offset, end=self._end, ending=self._ending)
        except SpoolGone:
            return []

    def take(self, records: Sequence[Record]) -> list[pb.Record]:
        """The same records as the wire has them; from now on they are on their way."""
        told = []
        self._tell_of_damages()
        for record in records:
            if record.kind is Kind.OUTCOME or (self.final is not None and record.sequence > self.final):
                self.final = record.sequence - 1 if self.final is None else self.final
                break
            if self.sent == 0:
                self.durable = record.sequence - 1
            told.append(on_wire(record))
            self.sent, self._offset = record.sequence, record.offset + record.raw_length
            self._sizes.append((record.sequence, len(record.payload)))
        self.is_due = self.is_due or len(told) > 0
        self._check()
        return told

    def batch(self, records: Sequence[Record]) -> pb.RecordBatch | None:
        """What goes into a message: these records, and the last word when its time has come. None: nothing.

        What takes the place of damaged records has to begin where the stored ones end, and a log of which nothing is
        left here may be stored whole: where it is not known how far the coordinator is, the batch is without records,
        which asks for it.
        """
        told = pb.RecordBatch(attempt_id=self.attempt, token=self.token, stream=STREAMS[0])
        is_gone = not records and self.final is not None and self.sent < self.final
        if not self._is_heard and (self._reader.damages or is_gone):
            self._reader.damages.clear()
            self._unanswered += 1
            return told
        told.records.extend(self.take(records))
        if self._last_word is _Word.DUE and self.final is not None and self.sent >= self.final:
            told.final = self.final
            self._last_word, self._word_after = _Word.SAID, self._unanswered + 1
        if not told.records and not told.HasField("final"):
            return None
        self._unanswered += 1
        return told

    def stored(self, durable: pb.Durable) -> int:
        """The coordinator's word. Returns the payload bytes that are durable now and were not before."""
        self._unanswered -= 1
        if not self._is_heard:
            self._is_heard, self.is_due = True, not self.done.is_set()
        if self._last_word is _Word.SAID:
            self._word_after -= 1
            if self._word_after == 0:
                self._last_word = _Word.TAKEN
        if durable.rejected:
            self.rejected = durable.sentence or "the coordinator wants no more of it"
            self._sizes.clear()
            self._be_done()
            return 0
        is_taken_back = durable.sequence < self.durable  # by a failover: answers come in order
        self.durable, self._stored = durable.sequence, Stand(durable.sequence, durable.offset)
        if is_taken_back:
            self._go_back()
        elif self.durable > self.sent:
            self.sent, self._offset = self.durable, self._stored.offset
        arrived = sum(size for sequence, size in self._sizes if sequence <= self.durable)
        self._sizes = [each for each in self._sizes if each[0] > self.durable]
        self._check()
        return arrived

    def acknowledge(self) -> None:
        """Tells the supervisor what is durable; waits for none, for one that is frozen would hold up all logs."""
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell(), name=f"acknowledgements of {self.attempt}")

    async def _tell(self) -> None:
        told = 0
        with contextlib.suppress(SupervisorGone, JobProblem):
            while self.client is not None and self.durable > told:
                told = self.durable
                await self.client.acknowledge(told)

    def _check(self) -> None:
        if self.final is not None and self.durable >= self.final and self._last_word in {_Word.NONE, _Word.TAKEN}:
            self._be_done()

    def _tell_of_damages(self) -> None:
        """Once of each: after a reconnect the same are read again."""
        found, self._reader.damages = self._reader.damages, []
        for each in found:
            if each.first not in self._told_of:
                self._told_of.add(each.first)
                self._damaged(self.attempt, each)

    def _be_done(self) -> None:
        self.is_due = False
        self.done.set()


class Heard(Protocol):
    """Who is told of what becomes of logs."""

    def arrived(self, size: int) -> None:
        """So many compressed bytes became durable at the coordinator."""
        ...

    def damaged(self, attempt: int, damage: Damage) -> None:
        """Some of an attempt's log could not be read any more."""
        ...


class Forwarder:
    """Sends the logs of all sources. `run` goes on until it is cancelled."""

    def __init__(self, dialer: LogDialer, addresses: Sequence[str], *, rng: random.Random, heard: Heard) -> None:
        self._dialer = dialer
        self._addresses = list(addresses)
        self._rng = rng
        self._heard = heard
        self._sources: dict[int, LogSource] = {}
        self._changed = asyncio.Event()

    def follow(self, attempt: int, token: bytes, folder: Path) -> LogSource:
        """Forwards the log of an attempt from now on; asked again: the same source."""
        if attempt not in self._sources:
            self._sources[attempt] = LogSource(attempt, token, folder, self._changed.set, self._heard.damaged)
            self._changed.set()
        return self._sources[attempt]

    def forget(self, attempt: int) -> None:
        """Nothing more of this attempt is sent."""
        self._sources.pop(attempt, None)

    async def run(self) -> None:
        """Connects when there is something to send, again and again."""
        failures = 0
        while True:
            await self._until(lambda: any(source.is_due or source.is_unheard for source in self._sources.values()))
            address = self._addresses[failures % len(self._addresses)]
            with contextlib.suppress(WireClosed):
                wire = await self._dialer.dial(address)
                try:
                    for source in self._sources.values():
                        source.rewind()
                    failures = 0
                    await until_one_ends(send=self._send(wire), receive=self._receive(wire))
                finally:
                    await wire.close()
            failures += 1
            await asyncio.sleep(min(8.0, 0.2 * 2 ** min(failures, 8)) * self._rng.uniform(0.5, 1.0))

    async def _send(self, wire: LogWire) -> None:
        while True:
            await self._until(self._may_send)
            request = pb.AppendRequest()
            room, records_left = MESSAGE, MESSAGE_RECORDS
            for source in [each for each in self._sources.values() if each.is_due]:
                if self._sources.pop(source.attempt, None) is None:
                    continue
                self._sources[source.attempt] = source  # last in the next message, whose room may be used up by then
                source.is_due = False  # what grows while the disk is read makes it due again
                if batch := source.batch(await asyncio.to_thread(source.read)):
                    request.batches.append(batch)
                    room -= sum(len(record.frame.zstd) for record in batch.records)
                    records_left -= len(batch.records)
                if room <= 0 or records_left <= 0:
                    break
            if request.batches:
                await wire.send(request)

    async def _receive(self, wire: LogWire) -> None:
        while True:
            for durable in (await wire.receive()).durable:
                self._stored(durable)
            self._changed.set()

    def _stored(self, durable: pb.Durable) -> None:
        source = self._sources.get(durable.attempt_id)
        if source is None:
            return
        self._heard.arrived(source.stored(durable))
        source.acknowledge()

    def _may_send(self) -> bool:
        flying = sum(source.in_flight for source in self._sources.values())
        return flying < IN_FLIGHT and any(source.is_due for source in self._sources.values())

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


def on_wire(record: Record) -> pb.Record:
    """A record of the spool as the wire has it. Not for outcomes: those go by the session."""
    told = pb.Record(sequence=record.sequence, offset=record.offset, time_ms=record.time_ms)
    match record.kind:
        case Kind.FRAME:
            told.frame.raw_length, told.frame.zstd = record.raw_length, record.payload
            told.frame.section, told.frame.ours = record.section, record.ours
        case Kind.OPENED:
            facts = record.facts()
            told.opened.CopyFrom(
                pb.SectionOpened(section=record.section, kind=facts["kind"], title=facts["title"], step=facts["step"])
            )
        case Kind.CLOSED:
            told.closed.CopyFrom(pb.SectionClosed(section=record.section, result=record.facts()["result"]))
        case Kind.OUTCOME:
            raise ValueError("an outcome is no record of the log")
    return told
