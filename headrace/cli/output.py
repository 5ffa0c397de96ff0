"""How values are shown: JSON for scripts, tables for people. What a job wrote is made harmless first."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from headrace.client.types import Value

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC: titles, clipboard, links
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # DCS, SOS, PM, APC
    r"|\x1b[ -/]*[0-~]?"  # all others
)
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Text of a job without anything that a terminal would obey: no escape sequence, no control but the tab.

    Of a line that was rewritten with carriage returns (a progress bar) the last version stays.
    """
    text = text.replace("\r\n", " ").replace("\n", " ").rstrip("\r").rpartition("\r")[2]
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


class _Droppable:
    """A stream that nobody has to read: what cannot be written is dropped from then on."""

    def __init__(self, stream: TextIO, dropped: Callable[[OSError], None]) -> None:
        self._stream = stream
        self._dropped = dropped

    def write(self, text: str) -> int:
        """Writes, or drops."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flushes, or drops."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        self._dropped(error)


@contextmanager
def droppable() -> Iterator[None]:
    """As long as this lasts a reader that has had enough costs the rest of the output, and not the work in hand."""

    def lost(error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            note(f"the output cannot be written ({error.strerror}): the run goes on without it")

    before = sys.stdout, sys.stderr
    sys.stdout = cast("TextIO", _Droppable(before[0], lost))
    sys.stderr = cast("TextIO", _Droppable(before[1], lambda _: None))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def write(text: str) -> None:
    """On stdout, at once. Raises ServerFailed where that cannot be."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        from headrace.errors import ServerFailed

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter says it again at its end
        raise ServerFailed(f"the output cannot be written: {error.strerror}") from error


def print_json(value: Value | Sequence[Value] | dict[str, object]) -> None:
    """One JSON document on stdout."""
    write(json.dumps(_json(value), indent=2, ensure_ascii=False) + "\n")


def print_event(event: dict[str, object]) -> None:
    """One JSON event on a line of its own, at once."""
    write(json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n")


def _json(value: Value | Sequence[Value] | dict[str, object]) -> object:
    from headrace.client.types import json_value

    return json_value(value)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns, two blanks apart, as wide as they need; the same in a terminal and in a pipe."""
    lines = [list(header), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def say(text: str) -> None:
    """A line for a person, on stdout."""
    write(text + "\n")


def note(text: str) -> None:
    """A line beside the output, on stderr."""
    sys.stderr.write(f"headrace: {text}\n")
    sys.stderr.flush()


def span(milliseconds: float | None) -> str:
    """A duration for people: `0.4 s`, `12.3 s`, `2 min 05 s`, `1 h 02 min`; a dash for none."""
    if milliseconds is None:
        return "-"
    seconds = max(0.0, milliseconds / 1000)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def between(start: datetime | None, end: datetime | None) -> float | None:
    """Milliseconds from one time to another, None where one of them is not known."""
    return None if start is None or end is None else (end - start).total_seconds() * 1000


def size(count: int) -> str:
    """Bytes for people: `512 B`, `1.5 MiB`."""
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def clock(time: datetime | None) -> str:
    """A time for people, in their own zone; a dash for none."""
    return "-" if time is None else time.replace(tzinfo=time.tzinfo or UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
