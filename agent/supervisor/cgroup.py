"""What the cgroup says of a sandbox: kills for want of memory, and the limit of processes. Versions 1 and 2.

The kernel writes these files, the job cannot: they are believed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from agent.problems import Cause


class Counts(NamedTuple):
    """The counters, as far as they can be read."""

    oom_kill: int = 0
    """Processes killed for want of memory."""
    oom: int = 0
    """Version 2: how often the limit of the group itself was to blame."""
    at_limit: bool = False
    """Version 1: whether the usage has ever reached the limit."""
    pids_max: int = 0
    """How often a fork was refused."""


class Meter:
    """Reads the counters of the folders of one sandbox; those of no memory or pids controller are passed over."""

    def __init__(self, folders: Iterable[Path]) -> None:
        listed = tuple(folders)
        self._v1 = _with(listed, "memory.oom_control")
        self._v2 = _with(listed, "memory.events")
        self._pids = _with(listed, "pids.events")
        self.last = self.read()

    def read(self) -> Counts:
        """The counters now; what can no longer be read keeps its last value."""
        last: Counts = getattr(self, "last", Counts())
        pids = last.pids_max
        if self._pids:
            pids = _fields(self._pids / "pids.events").get("max", pids)
        if self._v2:
            found = _fields(self._v2 / "memory.events")
            last = last._replace(oom_kill=found.get("oom_kill", last.oom_kill), oom=found.get("oom", last.oom))
        elif self._v1:
            found = _fields(self._v1 / "memory.oom_control")
            usage, limit = _number(self._v1 / "memory.max_usage_in_bytes"), _number(self._v1 / "memory.limit_in_bytes")
            at_limit = usage >= limit if usage is not None and limit is not None else last.at_limit
            last = last._replace(oom_kill=found.get("oom_kill", last.oom_kill), at_limit=at_limit)
        self.last = last._replace(pids_max=pids)
        return self.last

    def since(self, before: Counts) -> Cause | None:
        """Whose want of memory it was that a process was killed since `before`; None: none was."""
        now = self.read()
        if now.oom_kill <= before.oom_kill:
            return None
        own = now.oom > before.oom if self._v2 else now.at_limit
        return Cause.OOM if own else Cause.HOST_OOM


def _with(folders: Iterable[Path], name: str) -> Path | None:
    return next((folder for folder in folders if (folder / name).exists()), None)


def _fields(file: Path) -> dict[str, int]:
    """`name number` lines; empty when the file is gone."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines]
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdecimal()}


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
