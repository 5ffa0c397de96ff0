"""The one writer of an attempt's log: masks, frames, compresses and spools, in one order.

Past `most` bytes the job's output is read and dropped, and the log says where it was cut and how much is missing.
When the spool is full the writer is `blocked`: records wait in memory, nothing more is read from the job, and the
job waits in its write. After `hold_ms` it cuts instead: what is lost is counted, and the log says so.
When the disk has failed (`broken`) all that comes is counted and dropped: the attempt ends.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import zstandard

from agent.supervisor.framer import MOST, Framer
from agent.supervisor.masker import Masker
from agent.supervisor.records import Kind, shortened
from agent.supervisor.spool import Spool, SpoolBroken, SpoolFull

HOLD_MS: Final = 15 * 60_000
LOG_MOST: Final = 2 << 30
"""Bytes of output that a log takes."""
_LEVEL: Final = 1
TAIL: Final = 1 << 20
"""Bytes of a step's log that are kept in memory: a rule may ask what a failed step said last."""


class _Waiting(NamedTuple):
    kind: Kind
    payload: bytes
    time_ms: int
    section: int
    raw_length: int
    ours: bool


class LogWriter:
    """Sections and bytes in, records in the spool out. `wall` and `boot` give milliseconds."""

    def __init__(
        self,
        spool: Spool,
        wall: Callable[[], int],
        boot: Callable[[], int],
        *,
        hold_ms: int = HOLD_MS,
        most: int = LOG_MOST,
    ) -> None:
        self._spool = spool
        self._wall = wall
        self._boot = boot
        self._hold_ms = hold_ms
        self._most = most
        self._left = most
        """How many bytes of output may still come."""
        self._dropped = 0
        self._masker = Masker()
        self._framer = Framer()
        self._compress = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False).compress
        self._waiting: deque[_Waiting] = deque()
        self._full_since: int | None = None
        self._lost = 0
        self._told: deque[tuple[int, int]] = deque()
        """Where a line ends that says how many bytes were lost before it, and how many."""
        self._unkept = 0
        self._sections = 0
        self._tail = bytearray()
        self._in_step = False
        self.open: int | None = None
        """Number of the open section."""

    @property
    def blocked(self) -> bool:
        """Whether records wait for room: then nothing more should be read."""
        return bool(self._waiting)

    @property
    def broken(self) -> str:
        """Why the spool takes nothing more; empty: it does."""
        return self._spool.broken

    @property
    def durable(self) -> bool:
        """Whether all that was written is on the disk, or never will be."""
        return not self._waiting and (bool(self.broken) or self._spool.synced.sequence >= self._spool.sequence)

    @property
    def kept(self) -> dict[str, str | int]:
        """How long the log is once its end is durable; what is kept of one that is broken, and what is not: `Ended`."""
        if not self.broken:
            return {"offset": self._spool.offset, "records": self._spool.sequence}
        stand = self._spool.synced
        told = sum(lost for end, lost in self._told if end > stand.offset)
        missing = self._spool.offset - stand.offset + told + self._lost + self._unkept
        return {"offset": stand.offset, "records": stand.sequence + 1, "disk": self.broken, "missing": missing}

    @property
    def due(self) -> int | None:
        """When `tick` has something to do, by the boot clock."""
        return self._framer.due

    @property
    def records(self) -> int:
        """All records so far, those that wait included."""
        return self._spool.sequence + len(self._waiting)

    @property
    def offset(self) -> int:
        """Raw bytes of the log so far, those that wait included."""
        return self._spool.offset + sum(record.raw_length for record in self._waiting)

    def mask(self, secrets: Iterable[bytes]) -> None:
        """From now on these are masked too."""
        self._masker.add(secrets)

    def write(self, data: bytes) -> None:
        """Bytes of the job."""
        self._take(self._masker.feed(data))

    def say(self, text: bytes) -> None:
        """Our own lines, in frames of their own that say so: a job could print the same. Masked by themselves, so that
        they cannot tear a secret of the job's that is under way.
        """
        own = Masker(self._masker.secrets)
        self._say(own.feed(text) + own.flush())

    def open_section(self, kind: str, title: str, *, step: int = -1) -> int:
        """Opens a section, and ends the open one; `step` -1: one of our own."""
        self.close_section("")
        self._sections += 1
        self.open = self._sections
        self._in_step = step >= 0
        if self._in_step:
            self._tail.clear()
        self._record(Kind.OPENED, {"kind": kind, "title": shortened(self.plain(title)), "step": step, "ours": step < 0})
        return self.open

    def close_section(self, result: str) -> None:
        """Ends the open section; `result` empty: all went well."""
        self.flush()
        if self.open is not None:
            self._record(Kind.CLOSED, {"result": shortened(self.plain(result))})
            self.open = None
        self._in_step = False

    def tail(self) -> bytes:
        """The end of the newest step's log, masked: at most 1 MiB."""
        return bytes(self._tail[-TAIL:])

    def outcome(self, cause: str, sentence: str) -> None:
        """Writes the last record. Where it stands is known when it is durable: what waits before it may yet be cut."""
        if self._dropped:
            self.say(f"\n*** headrace: {self._dropped} bytes are missing: the log had reached its limit ***\n".encode())
        self.close_section("")
        self._record(Kind.OUTCOME, {"cause": cause, "sentence": self.plain(sentence)})

    def flush(self) -> None:
        """Everything that is held back goes out: the end of a step."""
        self._take(self._masker.flush())
        self._put_frame(self._framer.flush())

    def tick(self) -> None:
        """To be called when due, and now and then while blocked."""
        now = self._boot()
        if self._framer.due is not None and now >= self._framer.due:
            self._put_frame(self._framer.flush())
        self.drain()
        if self._full_since is not None and now >= self._full_since + self._hold_ms:
            self._cut()

    def drain(self) -> None:
        """Spools what waits, as far as there is room."""
        while self._waiting:
            if not self._append(self._waiting[0]):
                return
            self._waiting.popleft()
        if not self._lost:
            self._full_since = None

    def plain(self, text: str) -> str:
        """The text as it may be shown: masked."""
        own = Masker(self._masker.secrets)
        data = text.encode("utf-8", "surrogateescape")
        return (own.feed(data) + own.flush()).decode("utf-8", "replace")

    def _record(self, kind: Kind, facts: dict[str, Any]) -> None:
        self._put(kind, json.dumps(facts).encode())

    def _take(self, data: bytes) -> None:
        """Bytes of the job, as many as the log may still have of them."""
        taken = data[: self._left]
        self._frame(taken)
        self._left -= len(taken)
        if len(taken) == len(data):
            return
        if not self._dropped:
            cut = f"\n*** headrace: the log is cut here: it has reached its limit of {self._most} bytes ***\n"
            self._say(cut.encode())
        self._dropped += len(data) - len(taken)

    def _frame(self, data: bytes) -> None:
        if self._in_step:
            self._tail += data
            if len(self._tail) > 2 * TAIL:
                del self._tail[:-TAIL]
        for frame in self._framer.feed(data, self._boot()):
            self._put_frame(frame)

    def _say(self, text: bytes) -> None:
        self._put_frame(self._framer.flush())
        for at in range(0, len(text), MOST):
            self._put_frame(text[at : at + MOST], ours=True)

    def _put_frame(self, raw: bytes, *, ours: bool = False) -> None:
        if raw:
            self._put(Kind.FRAME, self._compress(raw), len(raw), ours=ours)

    def _put(self, kind: Kind, payload: bytes, raw_length: int = 0, *, ours: bool = False) -> None:
        record = _Waiting(kind, payload, self._wall(), self._sections, raw_length, ours)
        if self._lost and not self._said_lost(payload) and kind is Kind.FRAME:
            self._lost += raw_length
            return
        if self._waiting or not self._append(record):
            self._waiting.append(record)
            self._full_since = self._boot() if self._full_since is None else self._full_since

    def _append(self, record: _Waiting, *, at_last: bool = False) -> bool:
        kind, payload, time_ms, section, raw_length, ours = record
        if kind is Kind.OUTCOME and self._lost:  # nothing comes behind which it could be said
            if not self._append(self._marker(), at_last=True):
                return False
            self._is_told()
        try:
            self._spool.append(
                kind, payload, time_ms=time_ms, section=section, raw_length=raw_length, ours=ours, at_last=at_last
            )
        except SpoolFull:
            return False
        except SpoolBroken:
            self._unkept += raw_length
        return True

    def _cut(self) -> None:
        """Throws away the bytes that wait; sections stay."""
        self._lost += sum(record.raw_length for record in self._waiting)
        self._waiting = deque(record for record in self._waiting if record.kind is not Kind.FRAME)

    def _said_lost(self, payload: bytes) -> bool:
        """The marker goes in front of what comes next; as long as there is no room for both the count goes on."""
        marker = self._marker()
        if self._waiting or not self._spool.fits(marker.payload, payload) or not self._append(marker):
            return False
        self._is_told()
        self._full_since = None
        return True

    def _is_told(self) -> None:
        """Of what was lost: in a line that has yet to be durable, or never will be."""
        while self._told and self._told[0][0] <= self._spool.synced.offset:
            self._told.popleft()
        if self.broken:
            self._unkept += self._lost
        else:
            self._told.append((self._spool.offset, self._lost))
        self._lost = 0

    def _marker(self) -> _Waiting:
        raw = f"\n*** headrace: {self._lost} bytes are missing here: the log could not be handed on ***\n".encode()
        return _Waiting(Kind.FRAME, self._compress(raw), self._wall(), self._sections, len(raw), ours=True)
