"""The judge of logs: every byte that is stored was printed, in its place, once; what is missing is said and counted.

It knows what was printed, what a supervisor called durable, what the disk did to it, and what the coordinator
acknowledged; it looks at each record when it is stored, and at all logs in the end.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import zstandard

from agent.orphan import MARKER, LogEnd
from coordinator.store.logs import NewRecord
from headrace.v1 import log_pb2
from tests.chaos.simulation.printed import SURE, place_of
from tests.harness.memory_logs import LogRow
from tests.harness.memory_rows import Rows

_DAMAGED = re.compile(rb"\*\*\* headrace: (\d+) bytes of this log were damaged on the agent's disk \*\*\*\n\0*")
_BRIEF = re.compile(rb"(?:" + b"|".join(re.escape(b"*** damaged ***\n"[n:]) for n in range(16)) + rb"|\0){0,100}")
"""Damage of so few bytes that there is no room to tell their number."""
_CUT = re.compile(rb"\n\*\*\* headrace: (\d+) bytes are missing here: the log could not be handed on \*\*\*\n")
_FAILED = re.compile(
    rb"\*\*\* headrace: (?:(\d+) bytes|the end) of this log (?:are|is) missing(?: here)?: .*\n", re.DOTALL
)


@dataclass
class Truth:
    """What is known of an attempt's log outside of the coordinator."""

    lives: list[tuple[int, int]] = field(default_factory=list)
    """Where in the log the commands began to print, and how much they have printed since."""
    kept: tuple[int, int] = (0, 0)
    """The last record and byte that the supervisor called durable."""
    rotten: bool = False
    """The disk has changed a byte, or lost what it should have kept."""
    orphaned: bool = False
    """The supervisor died."""

    @property
    def lost_its_end(self) -> bool:
        """Whether the last record may be rotten, and taken for torn by who came after the supervisor."""
        return self.rotten and (self.orphaned or len(self.lives) > 1)

    end: LogEnd | None = None
    """Where the agent ended it."""
    handed_in: bool = False
    taken_back: bool = False
    """A failover has lost acknowledged records."""


@dataclass
class Reading:
    """How far a stored log was looked at."""

    record: int = 0
    offset: int = 0
    life: int = 0
    said: int = 0
    """Of what this life printed."""
    missing: int = 0
    """Bytes that marks say are missing before what comes next."""
    damaged: bool = False
    """Whether some mark for damage was read: one of what is missing may have been damaged itself."""
    filling: bytes = b""
    """A mark for damage that may go on in the next record."""


class LogJudge:
    """`check` is the judge's own."""

    def __init__(self, check: Callable[[str, bool], None]) -> None:
        self._check = check
        self._truths: dict[int, Truth] = defaultdict(Truth)
        self._readings: dict[int, Reading] = defaultdict(Reading)
        self._inflate = zstandard.ZstdDecompressor().decompress

    # Told by the outside

    def begins(self, attempt: int, offset: int) -> int:
        """A supervisor goes on with the log there; returns which life of the attempt this is."""
        truth = self._truths[attempt]
        self._check(
            f"the log of attempt {attempt} goes on at byte {offset}, and {truth.kept[1]} were durable",
            offset >= truth.kept[1] or truth.rotten,
        )
        truth.lives.append((offset, 0))
        return len(truth.lives) - 1

    def prints(self, attempt: int, said: int) -> None:
        lives = self._truths[attempt].lives
        lives[-1] = lives[-1][0], said

    def keeps(self, attempt: int, sequence: int, offset: int) -> None:
        """A supervisor says that this much survives a power cut."""
        truth = self._truths[attempt]
        truth.kept = max(truth.kept, (sequence, offset))

    def rots(self, attempt: int) -> None:
        self._truths[attempt].rotten = True

    def orphaned(self, attempt: int) -> None:
        self._truths[attempt].orphaned = True

    def ends(self, attempt: int, end: LogEnd) -> None:
        """The agent has ended the log."""
        self._truths[attempt].end = end

    def handed_in(self, attempt: int, rejected: str, rows: Rows) -> None:
        """The agent sends nothing more of it, and forgets it."""
        truth, known = self._truths[attempt], rows.attempts.get(attempt)
        wanted = known is not None and str(known.attempt.state) != "returned"
        if not wanted or truth.taken_back or truth.lost_its_end:
            return
        self._check(f"the log of attempt {attempt} was refused: {rejected}", not rejected)
        truth.handed_in = True
        self._is_whole(attempt, truth, rows.logs.get((attempt, "main"), LogRow()))

    def acknowledged(self, attempt: int, sequence: int, rows: Rows) -> None:
        """The coordinator tells the agent that this much is durable."""
        stored = len(rows.logs.get((attempt, "main"), LogRow()).records)
        self._check(
            f"record {sequence} of attempt {attempt} is acknowledged, and {stored} are stored",
            sequence <= stored or self._truths[attempt].taken_back,
        )

    def taken_back(self, now: Rows, to: Rows) -> None:
        """A failover."""
        for (attempt, _), log in now.logs.items():
            kept = to.logs.get((attempt, "main"), LogRow())
            if len(kept.records) < len(log.records) or kept.final_records != log.final_records:
                self._truths[attempt].taken_back = True
                self._readings.pop(attempt, None)
        for attempt, known in now.attempts.items():
            if str(known.attempt.state) == "returned" and attempt in to.attempts:
                self._truths[attempt].taken_back = True  # its log was refused while nobody wanted it

    # Looks at the database

    def look(self, attempt: int, rows: Rows) -> None:
        """After every append: at what is new."""
        log, reading = rows.logs.get((attempt, "main")), self._readings[attempt]
        if log is not None:
            for record in log.records[reading.record :]:
                self._read(attempt, self._truths[attempt], reading, record)

    def _read(self, attempt: int, truth: Truth, reading: Reading, stored: NewRecord) -> None:
        record = log_pb2.Record.FromString(stored.record)
        place = f"record {record.sequence} of attempt {attempt}"
        self._check(f"{place} stands behind {reading.record}", record.sequence == reading.record + 1)
        self._check(f"{place} is at {record.offset}, not {reading.offset}", record.offset == reading.offset)
        reading.record += 1
        while reading.life + 1 < len(truth.lives) and truth.lives[reading.life + 1][0] <= record.offset:
            reading.life, reading.said, reading.missing = reading.life + 1, 0, 0
        data = self._inflate(record.frame.zstd, max_output_size=1 << 17) if record.HasField("frame") else b""
        reading.offset += len(data)
        if data and record.frame.ours:
            self._read_ours(place, truth, reading, data)
            return
        self._check_filling(place, reading)
        if data:
            self._read_printed(place, attempt, reading, data)

    def _read_printed(self, place: str, attempt: int, reading: Reading, data: bytes) -> None:
        at = place_of(attempt, reading.life, data, reading.said, reading.missing)
        if at is None and self._truths[attempt].lost_its_end:
            return  # printed by the life before, which had sent it before it rotted
        self._check(f"{place} is not what was printed {reading.missing} bytes on, or before", at is not None)
        at = reading.said if at is None else at
        # A few bytes stand in many places: what was missing before them may still come.
        reading.missing = reading.missing - (at - reading.said) if len(data) < SURE else 0
        reading.said = at + len(data)

    def _read_ours(self, place: str, truth: Truth, reading: Reading, data: bytes) -> None:
        """Headrace's own lines: of what is missing, and why."""
        if (cut := _CUT.fullmatch(data)) is not None:
            reading.missing += int(cut[1])
        elif data.startswith(MARKER.encode()):
            self._check(f"{place} speaks of a supervisor that lives", truth.orphaned)
        elif (failed := _FAILED.fullmatch(data)) is not None:
            self._check(f"{place} speaks of a disk that has not failed", bool(truth.end and truth.end.disk))
            reading.missing += int(failed[1] or 1 << 30)
        else:
            # What a failed disk never kept may be read until the power is cut, and is missing then.
            unkept = bool(truth.end and truth.end.disk)
            self._check(
                f"{place} says {data[:80]!r}, and nothing was wrong", truth.rotten or truth.taken_back or unkept
            )
            reading.damaged = True
            reading.filling += data
            reading.missing += len(data)
            return
        self._check_filling(place, reading)

    def _check_filling(self, place: str, reading: Reading) -> None:
        """A mark for damage says how many bytes it stands for. When some of them are stored and the rest is made up
        anew, it is said again of these; and one damage may follow another, also one too short to say so much.
        """
        filling, reading.filling = reading.filling, b""
        marks = [*_DAMAGED.finditer(filling)]
        begins = [*(each.start() for each in marks), len(filling)]
        spans = zip(marks, begins, begins[1:], strict=False)
        over = [(int(mark[1]) - (until - at), filling[at + int(mark[1]) : until]) for mark, at, until in spans]
        self._check(
            f"before {place} {len(filling)} bytes are filled with {filling[:80]!r}",
            all(_BRIEF.fullmatch(rest) for rest in (filling[: begins[0]], *(r for _, r in over)))
            and (not over or over[-1][0] <= 0),
        )

    def _is_whole(self, attempt: int, truth: Truth, log: LogRow) -> None:
        """All that was printed is there, or its absence is said."""
        end, reading = truth.end, self._readings[attempt]
        if end is None:
            return
        self._check(
            f"the log of attempt {attempt} ends with record {end.records} and byte {end.offset}, and"
            f" {len(log.records)} and {log.bytes} are stored",
            # A supervisor that came second knows of no sync but its own: what was stored before may be more.
            (len(log.records), log.bytes) == (end.records, end.offset)
            or (bool(end.disk) and len(truth.lives) > 1 and len(log.records) >= end.records),
        )
        said = truth.lives[-1][1] if truth.lives else 0
        if end.disk and len(truth.lives) > 1:
            return
        if truth.orphaned:
            kept = truth.kept[1]
            self._check(f"attempt {attempt} kept {kept} bytes, and {log.bytes} are stored", log.bytes >= kept)
        else:
            self._check(
                f"attempt {attempt} printed {said} bytes, {reading.said} are stored, {reading.missing} said to miss",
                reading.said <= said and (reading.damaged or said <= reading.said + reading.missing),
            )

    def at_rest(self, rows: Rows) -> None:
        """What was handed in is still whole, and sealed if an outcome named it."""
        for attempt, truth in self._truths.items():
            log, known = rows.logs.get((attempt, "main")), rows.attempts.get(attempt)
            if not truth.handed_in or truth.taken_back or known is None:
                continue
            self._is_whole(attempt, truth, log or LogRow())
            if str(known.attempt.state) not in ("lost", "returned"):
                self._check(f"the log of attempt {attempt} is not sealed", log is not None and log.is_sealed)
