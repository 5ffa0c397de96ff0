"""The records of a log, as a tail gives them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from headrace.client.values import Value, json_value


@dataclass(frozen=True, slots=True)
class LogBytes(Value):
    """Bytes of a log, as they were written; `offset` is that of the first, counted in the stream."""

    attempt: int
    offset: int
    section: int
    time: datetime | None
    data: bytes
    ours: bool
    """Headrace itself wrote them, not the job."""

    def to_json(self) -> dict[str, object]:
        """Bytes that are no UTF-8 become U+FFFD in `text`; `length` counts the bytes."""
        return {
            "kind": "bytes",
            "attempt": self.attempt,
            "offset": self.offset,
            "length": len(self.data),
            "section": self.section,
            "time": json_value(self.time),
            "text": self.data.decode("utf-8", "replace"),
            "ours": self.ours,
        }


@dataclass(frozen=True, slots=True)
class SectionOpened(Value):
    """A section of the log begins. `of`: setup, checkout, cache, step, artifacts or cleanup; `step` -1: none."""

    attempt: int
    offset: int
    section: int
    of: str
    title: str
    step: int

    def to_json(self) -> dict[str, object]:
        """The fields, and `"kind": "opened"`."""
        return {"kind": "opened"} | Value.to_json(self)


@dataclass(frozen=True, slots=True)
class SectionClosed(Value):
    """A section ended; `result` is empty when all went well."""

    attempt: int
    offset: int
    section: int
    result: str

    def to_json(self) -> dict[str, object]:
        """The fields, and `"kind": "closed"`."""
        return {"kind": "closed"} | Value.to_json(self)


@dataclass(frozen=True, slots=True)
class LogGap(Value):
    """`length` bytes before `offset` are missing for good: the log was cut, and says so itself."""

    attempt: int
    offset: int
    length: int

    def to_json(self) -> dict[str, object]:
        """The fields, and `"kind": "gap"`."""
        return {"kind": "gap"} | Value.to_json(self)


@dataclass(frozen=True, slots=True)
class LogEnd(Value):
    """The last of a tail. `complete`: the log is sealed, nothing will ever follow."""

    attempt: int
    offset: int
    complete: bool

    def to_json(self) -> dict[str, object]:
        """The fields, and `"kind": "end"`."""
        return {"kind": "end"} | Value.to_json(self)


LogRecord = LogBytes | SectionOpened | SectionClosed | LogGap | LogEnd
