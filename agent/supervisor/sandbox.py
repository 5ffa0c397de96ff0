"""The living sandbox of a supervisor: its processes, proved, and the ways to start, signal and end them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from agent.supervisor.guard import Guard
from agent.supervisor.loop import Loop
from agent.supervisor.process import Members, NotProved, proved, reap, start_of
from agent.supervisor.spawn import Start, start

_PR_SET_CHILD_SUBREAPER: Final = 36
_SAID: Final = 400


class Sandbox:
    """pid 1 and what stands around it. `died` is called once, when nothing of it is left that could run."""

    def __init__(self, loop: Loop, guard: Guard | None, log: Path, died: Callable[[], None]) -> None:
        self._loop = loop
        self._guard = guard
        self._log = log
        self._died = died
        self._pidfd = -1
        self._over = False
        self._starter = self._starterfd = self._status = -1
        self._status_rest = b""
        self._plain = False
        self._members: Members | None = None
        self._proved: Callable[[], None] = lambda: None
        self._start = 0
        self.pid = 0
        self.container = ""
        self.kill_refused = False
        """The system does not let us kill it (a container, and we are not root): the engine has to."""

    @property
    def known(self) -> bool:
        """Whether pid 1 is proved."""
        return self._pidfd >= 0

    def facts(self) -> dict[str, Any]:
        """What whoever comes after us may want to know."""
        return {"pid": self.pid, "start": self._start, "container": self.container}

    def spawn(self, what: Mapping[str, Any], found: Callable[[], None]) -> None:
        """Starts it; `found` is called when pid 1 is proved. Raises NotStarted."""
        self._proved = found
        self._plain = "{status_fd}" not in what["argv"]
        if self._plain:
            _adopt_orphans()
        begun = start(Start(what["argv"], what["env"], what["pass_files"], what["cgroups"]), str(self._log))
        self._starter, self._status = begun
        self._starterfd = os.pidfd_open(self._starter)  # not reaped yet, so it is certainly our child
        self._loop.watch(self._starterfd, self._starter_ended)
        if self._plain:
            self._found(self._starter, parent=os.getpid())
        else:
            self._loop.watch(self._status, self._status_came)

    def attach(self, pid: int, container: str, found: Callable[[], None]) -> None:
        """Takes over what the engine has started. Raises NotProved."""
        self._proved = found
        self.container = container
        self._found(pid, container=container)

    def _found(self, pid: int, *, parent: int = 0, container: str = "") -> None:
        self._pidfd = proved(pid, parent=parent, container=container)
        self.pid = pid
        self._start = start_of(pid)
        apart = {self._guard.pid} if self._guard else set()
        self._members = Members(pid, adopting=self._plain, apart=apart)
        if self._guard:
            self._guard.watch(self._pidfd, session=pid if self._plain else 0)
        self._loop.watch(self._pidfd, self._ended)
        self._proved()

    def _status_came(self, _events: int) -> None:
        try:
            data = os.read(self._status, 4096)
        except BlockingIOError:
            return
        if not data:
            self._loop.unwatch(self._status)
            return
        *lines, self._status_rest = (self._status_rest + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                pid = json.loads(line).get("child-pid")
                if isinstance(pid, int) and not self.known and not self._over:
                    with contextlib.suppress(NotProved):  # it has ended already: its starter's end will tell
                        self._found(pid, parent=self._starter)

    def _starter_ended(self, _events: int) -> None:
        self._loop.unwatch(self._starterfd)
        reap()
        if not self.known:
            self._over = True
            self._died()

    def _ended(self, _events: int) -> None:
        """pid 1 is dead; without a pid namespace its descendants may live on."""
        self._loop.unwatch(self._pidfd)
        if self._plain and self._members:
            self._members.kill()
        reap()
        self._died()

    def signal(self, name: str) -> None:
        """TERM to all but pid 1, once; KILL until none is left."""
        if self._members is None:
            return
        if name == "KILL":
            self._members.kill()
        else:
            self._members.signal(getattr(signal, f"SIG{name}"))
        if self._plain:
            reap()

    def kill(self) -> None:
        """Kills pid 1, and so all in its pid namespace."""
        fd = self._pidfd if self.known else self._starterfd
        if fd < 0:
            return
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            return
        except PermissionError:
            self.kill_refused = True

    def tidy(self) -> None:
        """To be called now and then: orphans that came to us are collected."""
        if self._starter >= 0:
            reap()

    def said(self) -> str:
        """The last line that the starter wrote: why it failed."""
        try:
            lines = self._log.read_bytes()[-_SAID:].decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""


def _adopt_orphans() -> None:
    """From now on the orphans among our descendants become our children, not those of init."""
    import ctypes  # only here: it costs 5 ms of every start

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
