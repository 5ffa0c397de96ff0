"""What the cgroup says of a sandbox: kills for want of memory, and the limit of processes. Versions 1 and 2.

The kernel writes these files, the job cannot: they are believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from agent.problems import Cause
from agent.supervisor import kmsg
from agent.supervisor.kmsg import Kill


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
    """Reads the counters of the folders of one sandbox; those of no memory or pids controller are passed over.

    Where the sandbox has none (a plain user's agent): those of the group that it shares with the agent, `around`.
    """

    def __init__(
        self, folders: Iterable[Path], *, around: Iterable[Path] = (), kills: Callable[[], list[Kill]] = kmsg.kills
    ) -> None:
        listed = tuple(folders)
        self._around = not (_with(listed, "memory.oom_control") or _with(listed, "memory.events"))
        if self._around:
            listed = (*listed, *around)
        self._v1 = _with(listed, "memory.oom_control")
        self._v2 = _with(listed, "memory.events")
        self._pids = _with(listed, "pids.events")
        self._kills = kills
        self._seen = -1
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

    def since(self, before: Counts, *, killed: bool = True) -> Cause | None:
        """Whose want of memory it was that a process was killed since `before`; None: none was. `killed`: whether what
        ended looks killed; what was killed around the sandbox may have been another's.
        """
        now = self.read()
        if now.oom_kill <= before.oom_kill:
            return None
        if self._around:
            return Cause.HOST_OOM if killed else None
        own = now.oom > before.oom if self._v2 else self._own_by_log(now)
        return Cause.OOM if own else Cause.HOST_OOM

    def _own_by_log(self, now: Counts) -> bool:
        """Version 1 does not count whose limit it was, and what it has used at most counts files as well, which every
        build reads up to its limit. The kernel's log is exact, where it can be read.
        """
        folder = self._v1
        if folder is None:
            return False
        new = [kill for kill in self._kills() if kill.number > self._seen and kmsg.is_within(kill.where, folder)]
        if not new:
            return now.at_limit
        self._seen = new[-1].number
        return any(kmsg.is_within(kill.whose, folder) for kill in new)


def own_groups(trees: Path = Path("/sys/fs/cgroup"), listed: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """The groups that this process is in itself."""
    try:
        lines = [line.split(":", 2) for line in listed.read_text().splitlines()]
    except OSError:
        return []
    return [trees / name / inside.strip("/") for _, names, inside in lines for name in names.split(",")]


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
