"""The reading end of a spool, in another process. Remembers where it is, so that reading on costs no search.

A record that cannot be read any more is not passed over: records of the same number and length take its place, and say
so (`damage.py`). A record that is only half there yet is waited for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

from agent.supervisor.damage import Damage, Stand, filled, length_of, sentence
from agent.supervisor.disk import read_from
from agent.supervisor.records import Kind, Record, decode, sound_after
from agent.supervisor.segments import Segment, segments

_READ: Final = 1 << 20
_WHOLE: Final = 1 << 30


class SpoolGone(Exception):
    """A record was asked for that has been acknowledged and thrown away, or cannot be read any more."""


class SpoolReader:
    """Reads the spool in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segment: Segment | None = None
        self._at = 0
        self._stand = Stand()
        """Behind what was read last."""
        self._sure = False
        """Whether the stand's offset is known: not at the begin of a segment of the version before."""
        self._known = Stand()
        """Where whoever asked knows that a record ends: what is made up ends there as well."""
        self.damages: list[Damage] = []
        """What was found missing; whoever tells of it takes it out."""

    def read(
        self,
        sequence: int,
        limit: int = _READ,
        most: int = 1 << 30,
        *,
        offset: int | None = None,
        end: Stand | None = None,
        ending: str = "",
    ) -> list[Record]:
        """At most `most` records from `sequence` on, about `limit` bytes of them; empty when there are none yet.

        `offset`: where `sequence` begins, if that is known: should its file be gone, what is missing can be told, and
        damage on both sides of that place is not dealt as one.
        `end`: where the log is known to end: what is missing up to there is told as damage; with an `ending`, its last
        record is that text, whatever else is on the disk.

        Raises:
            SpoolGone: the record was acknowledged before and is no longer there.

        """
        if sequence != self._stand.sequence + 1 or self._segment is None:
            self._seek(sequence, offset)
        self._known = Stand() if offset is None else Stand(sequence - 1, offset)
        records: list[Record] = []
        for record in self._records(end, ending):
            if record.sequence >= sequence:
                records.append(record)
                limit -= len(record.payload)
            if limit <= 0 or len(records) >= most:
                break
        if records and records[-1].sequence != self._stand.sequence:
            self._segment = None  # in the midst of what is made up: the next one seeks
        return records

    def first(self) -> int:
        """The first record that is still there, or will be; 1 for a spool that holds nothing yet."""
        found = segments(self._folder)
        return found[0].first if found else 1

    def last(self) -> Record | None:
        """The last record that can be read."""
        last = None
        at = self.first()
        while records := self.read(at):
            last = records[-1]
            at = last.sequence + 1
        return last

    def _seek(self, sequence: int, offset: int | None) -> None:
        """To the segment that holds `sequence`."""
        found = segments(self._folder)
        before = [each for each in found if each.first <= sequence]
        self._at = 0
        if before or not found:
            self._segment = before[-1] if before else None
            first = before[-1].first if before else sequence
            known = before[-1].offset if before else offset
            self._stand, self._sure = Stand(first - 1, known or 0), known is not None
        elif offset is not None and found[0].offset is not None:
            self._segment, self._stand, self._sure = found[0], Stand(sequence - 1, offset), True
        else:
            raise SpoolGone(f"record {sequence} is no longer in the spool: it begins with {found[0].first}")

    def _records(self, end: Stand | None, ending: str) -> Iterator[Record]:
        last = 1 << 62 if end is None else end.sequence - bool(ending)
        while self._segment is not None:
            if self._segment.offset is not None and self._segment.first - 1 <= last:
                yield from self._up_to(Stand(self._segment.first - 1, self._segment.offset))
            following = self._following()  # asked first: a segment that has a successor grows no more
            if (yield from self._sound_ones(last)):
                continue
            if self._skipped():
                continue
            if following is None:
                break
            self._segment, self._at = following, 0
        if end is not None and ending:
            yield from self._up_to(Stand(last, end.offset - length_of(ending)))
        if end is not None:
            yield from self._up_to(end, ending)

    def _sound_ones(self, last: int) -> Generator[Record, None, bool]:
        """What can be read from here without a break; returns whether there was any. Behind `last` there is nothing but
        what was never synced, and does not count.
        """
        assert self._segment is not None
        data, at, any_found = self._chunk(2 * _READ), 0, False
        while (found := decode(data, at, self._segment.seed)) is not None:
            record, end = found
            if self._sure and record.sequence <= last:
                yield from self._up_to(Stand(record.sequence - 1, record.offset, _section_before(record)))
            self._at += end - at
            at, any_found = end, True
            if self._stand.sequence < record.sequence <= last:  # else a copy: it was read before
                self._stand = Stand(record.sequence, record.offset + record.raw_length, record.section)
                self._sure = True
                yield record
        return any_found

    def _up_to(self, until: Stand, text: str = "") -> Iterator[Record]:
        """Fills what is missing up to `until`, that one included."""
        if self._stand.sequence < self._known.sequence < until.sequence and self._known.offset <= until.offset:
            yield from self._up_to(self._known)
        missing = until.offset - self._stand.offset
        if not self._sure or until.sequence <= self._stand.sequence or missing < 0:
            return
        if not text:
            self.damages.append(Damage(self._stand.sequence + 1, until.sequence, missing))
        yield from filled(self._stand, until, text or sentence(missing))
        self._stand = until if until.section else until._replace(section=self._stand.section)

    def _skipped(self) -> bool:
        """Goes to the next sound record, behind what cannot be read; False: there is none in this segment."""
        assert self._segment is not None
        beyond = sound_after(self._chunk(_WHOLE), 0, self._segment.seed)  # 0: it may just have been completed
        self._at += beyond or 0
        return beyond is not None

    def _following(self) -> Segment | None:
        own = self._segment
        later = [each for each in segments(self._folder) if own is not None and each.path.name > own.path.name]
        return later[0] if later else None

    def _chunk(self, most: int) -> bytes:
        assert self._segment is not None
        try:
            return read_from(self._segment.path, self._at, most)
        except FileNotFoundError:
            return b""  # acknowledged and thrown away while we stood at its end


def _section_before(record: Record) -> int:
    """The section that was open, or had been, before this record."""
    return record.section - (record.kind is Kind.OPENED)
