"""A log on stdout: its very bytes where a program reads them, harmless lines where a person does."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from headrace.cli import output
from headrace.cli.board import Lines, OurLine
from headrace.client.types import LogBytes, LogGap, LogRecord

_OURS, _AS_BEFORE = "\x1b[36m", "\x1b[39m"
"""A colour of its own, in which nothing that a job wrote is ever shown."""


def print_log(records: Iterator[LogRecord], *, as_json: bool) -> None:
    """Prints a tail as it comes."""
    if as_json:
        for record in records:
            output.print_event(record.to_json())
    elif sys.stdout.isatty():
        _lines(records)
    else:
        _bytes(records)


def _lines(records: Iterator[LogRecord]) -> None:
    """What a job wrote must not move the cursor of the one who reads it."""
    lines = Lines()
    for record in records:
        if isinstance(record, LogBytes):
            for line in lines.add(record.data, ours=record.ours):
                output.say(f"{_OURS}# {line}{_AS_BEFORE}" if isinstance(line, OurLine) else line)
        else:
            _gap(record)
    for line in lines.end():
        output.say(line)


def _bytes(records: Iterator[LogRecord]) -> None:
    for record in records:
        if isinstance(record, LogBytes):
            sys.stdout.buffer.write(record.data)
            sys.stdout.buffer.flush()
        else:
            _gap(record)


def _gap(record: LogRecord) -> None:
    if isinstance(record, LogGap):
        output.note(f"{record.length} bytes before byte {record.offset} are missing: the log was cut")
