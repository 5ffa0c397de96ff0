"""Processes of a sandbox: which they are, proved so that no reused number can fool it, and signals to them.

All of it reads /proc of the machine, which no job can write.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_ROUNDS: Final = 20


class NotProved(Exception):
    """The process is not the one that it was said to be, or is gone."""


def proved(pid: int, *, parent: int = 0, container: str = "") -> int:
    """A pidfd of the process `pid` that is a child of `parent`, or in the cgroup of `container`.

    The order is what proves it: the descriptor first, then the fact, then that the descriptor's process still lives.
    """
    try:
        fd = os.pidfd_open(pid)
    except OSError as error:
        raise NotProved(f"process {pid} cannot be opened: {error.strerror}") from error
    try:
        if parent and parent_of(pid) != parent:
            raise NotProved(f"process {pid} is no child of {parent}")
        if container and container not in Path(f"/proc/{pid}/cgroup").read_text():
            raise NotProved(f"process {pid} does not belong to container {container[:12]}")
        if ended(fd):
            raise NotProved(f"process {pid} has ended")
    except OSError as error:
        os.close(fd)
        raise NotProved(f"process {pid} has ended") from error
    except NotProved:
        os.close(fd)
        raise
    return fd


def ended(fd: int) -> bool:
    """Whether the process of a pidfd has ended."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold anything. [0]: state, [1]: parent, [3]: session."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def parent_of(pid: int) -> int:
    """Its parent, 0 when it is gone."""
    try:
        return int(_stat(pid)[1])
    except OSError:
        return 0


def start_of(pid: int) -> int:
    """Its start time in clock ticks since boot, 0 when it is gone: tells a process from a later one of its number."""
    try:
        return int(_stat(pid)[19])
    except OSError:
        return 0


def _all() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - names alone


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - it is no path
    except OSError:
        return None


def descendants(root: int) -> set[int]:
    """All children of `root`, and theirs; zombies are left out."""
    children: dict[int, list[int]] = {}
    dead = set()
    for pid in _all():
        with contextlib.suppress(OSError):
            fields = _stat(pid)
            children.setdefault(int(fields[1]), []).append(pid)
            if fields[0] in "ZX":
                dead.add(pid)
    found: set[int] = set()
    todo = [root]
    while todo:
        fresh = [child for child in children.get(todo.pop(), ()) if child not in found]
        found.update(fresh)
        todo += fresh
    return found - dead


class Members:
    """The processes of one sandbox but its pid 1 (`pid`).

    A sandbox with a pid namespace of its own: those of that namespace, or, where it cannot be read, the descendants
    of pid 1, which inherits every orphan there. Without one: the descendants of this process, which has made itself
    the one that inherits orphans (`adopting`), but for `apart`.
    """

    def __init__(self, pid: int, *, adopting: bool, apart: Iterable[int] = ()) -> None:
        self._pid = pid
        self._adopting = adopting
        self._apart = {pid, *apart}
        own = _namespace(os.getpid())
        found = _namespace(pid)
        self._space = None if adopting or found == own else found

    def find(self) -> set[int]:
        """Their numbers, now."""
        if self._space is not None:
            return {pid for pid in _all() if pid != self._pid and _namespace(pid) == self._space}
        return descendants(os.getpid() if self._adopting else self._pid) - self._apart

    def signal(self, signum: int) -> int:
        """Sends `signum` to each, once, the oldest first. Returns to how many.

        A shell must know of the signal before the command that it waits for dies of it: under `set -e` it would
        take that for a failure and leave without its trap.
        """
        return sum(self._send(pid, signum) for pid in sorted(self.find()))

    def kill(self) -> int:
        """KILL until none is left, in a bounded number of rounds. Returns how many the last round found."""
        left = 0
        for _ in range(_ROUNDS):
            if not (left := self.signal(signal.SIGKILL)):
                break
        return left

    def _send(self, pid: int, signum: int) -> bool:
        """By pidfd, and only when the process is still a member once the descriptor is open."""
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if self._space is not None and _namespace(pid) != self._space:
                return False
            if self._space is None and not self._below(pid):
                return False
            signal.pidfd_send_signal(fd, signum)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def _below(self, pid: int) -> bool:
        root = os.getpid() if self._adopting else self._pid
        while pid not in {0, 1}:
            if (pid := parent_of(pid)) == root:
                return True
        return False


def reap() -> None:
    """Collects every child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
