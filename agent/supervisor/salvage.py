"""What an agent does with the spool of a supervisor that died: the log is ended, and says where it may have holes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Final

import zstandard

from agent.problems import Cause
from agent.supervisor.records import Kind
from agent.supervisor.results import Ended
from agent.supervisor.spool import Spool, SpoolFull, SpoolReader

SENTENCE: Final = "the process that held the sandbox died, and the sandbox with it"
_MARKER: Final = b"\n*** headrace: the supervisor died; up to 64 KiB may be missing here ***\n"


def salvage(folder: Path, now_ms: int) -> Ended:
    """Cuts a torn end off the spool in `folder`, closes its open section, and writes the outcome that is missing.

    Repeatable: a spool that has its outcome stays as it is. Only when no supervisor lives. Raises SpoolFull.
    """
    section, is_open = 0, False
    reader = SpoolReader(folder)
    sequence = reader.first()
    while records := reader.read(sequence):
        sequence = records[-1].sequence + 1
        for record in records:
            section = record.section
            match record.kind:
                case Kind.OPENED:
                    is_open = True
                case Kind.CLOSED:
                    is_open = False
                case Kind.OUTCOME:
                    return Ended.of(record.facts())
                case Kind.FRAME:
                    pass
    spool = Spool(folder)
    try:
        with contextlib.suppress(SpoolFull):
            raw = zstandard.ZstdCompressor(level=1).compress(_MARKER)
            spool.append(Kind.FRAME, raw, time_ms=now_ms, section=section, raw_length=len(_MARKER))
        if is_open:
            closed = json.dumps({"result": SENTENCE}).encode()
            spool.append(Kind.CLOSED, closed, time_ms=now_ms, section=section)
        facts = {"offset": spool.offset, "records": spool.sequence + 1, "cause": Cause.ERRORED, "sentence": SENTENCE}
        spool.append(Kind.OUTCOME, json.dumps(facts).encode(), time_ms=now_ms, section=section)
    finally:
        spool.close()
    return Ended.of(facts)
