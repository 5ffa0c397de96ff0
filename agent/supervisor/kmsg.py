"""What the kernel logs of kills for want of memory: exactly whose limit it was. Often only root may read it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

_LOG: Final = "/dev/kmsg"
_MOST: Final = 100_000
"""Records, far more than the kernel keeps: reading must end."""
_KILL: Final = re.compile(
    # What the killed process calls itself comes last.
    rb"\d+,(?P<number>\d+),[^;]*;oom-kill:constraint=\w+,.*?"
    rb"(?:oom_memcg=(?P<whose>[^,]*)|global_oom),task_memcg=(?P<where>[^,]*),task="
)


class Kill(NamedTuple):
    """One kill. The paths are of cgroups, as the kernel names them."""

    number: int
    """Of the record: it grows."""
    whose: str
    """The group whose limit was reached; empty: it was the machine's memory."""
    where: str
    """The group of the killed process."""


def kills(log: str = _LOG) -> list[Kill]:
    """Those that the log still has; it leaves some out when there are many at once. Empty where it cannot be read."""
    found = []
    try:
        file = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        for _ in range(_MOST):
            try:
                record = os.read(file, 8192)
            except BrokenPipeError:  # overwritten while we read: the next is there
                continue
            except OSError:
                break
            if not record:
                break
            if kill := kill_of(record):
                found.append(kill)
    finally:
        os.close(file)
    return found


def kill_of(record: bytes) -> Kill | None:
    """What a record says of a kill, if it does."""
    seen = _KILL.match(record)
    if seen is None:
        return None
    whose, where = ((seen[name] or b"").decode(errors="replace") for name in ("whose", "where"))
    return Kill(int(seen["number"]), whose, where)


def is_within(group: str, folder: Path) -> bool:
    """Whether a group, as the kernel names it, is the one of this folder, or below it. The last two names are enough:
    an agent's id and an attempt's number, or what an engine calls a container.
    """
    return f"/{folder.parent.name}/{folder.name}/" in f"{group}/"
