"""What is done for a log whose supervisor died: the marker that something may be missing, and its end."""

from __future__ import annotations

import json
from pathlib import Path

import zstandard

from agent.clock import Clock
from agent.supervisor.records import Kind, Record
from agent.supervisor.spool import Spool, SpoolReader, segments

MARKER = "*** headrace: the job's supervisor died here; up to 64 KiB of the log may be missing ***\n"


def close_orphaned_log(folder: Path, sentence: str, clock: Clock) -> tuple[int, int]:
    """Appends the marker and the end to the spool in `folder`. Blocks. Returns the log's records and bytes.

    A log that has its end already (the agent was killed after it) is left as it is.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    spool = Spool(folder)
    try:
        last = _last(folder)
        if last is not None and last.kind is Kind.OUTCOME:
            return last.sequence - 1, last.offset
        section, now = (0 if last is None else last.section), clock.wall_ms()
        if last is not None and last.kind is not Kind.CLOSED:
            spool.append(Kind.CLOSED, _json(result=sentence), time_ms=now, section=section)
        opened = _json(kind="cleanup", title="Clean up", step=-1, ours=True)
        spool.append(Kind.OPENED, opened, time_ms=now, section=section + 1)
        raw = f"{MARKER}headrace: {sentence}\n".encode()
        frame = zstandard.ZstdCompressor(level=1).compress(raw)
        spool.append(Kind.FRAME, frame, time_ms=now, section=section + 1, raw_length=len(raw))
        spool.append(Kind.CLOSED, _json(result=""), time_ms=now, section=section + 1)
        records, offset = spool.sequence, spool.offset
        facts = _json(offset=offset, records=records + 1, cause="errored", sentence=sentence)
        spool.append(Kind.OUTCOME, facts, time_ms=now, section=section + 1)
        return records, offset
    finally:
        spool.close()


def _last(folder: Path) -> Record | None:
    found = segments(folder)
    last = None
    if found:
        reader, at = SpoolReader(folder), found[0][0]
        while records := reader.read(at):
            last = records[-1]
            at = last.sequence + 1
    return last


def _json(**facts: object) -> bytes:
    return json.dumps(facts).encode()
