"""The guard: a child of the supervisor that kills the sandbox when the supervisor dies.

bubblewrap dies with its parent; a container, or a plain process, does not. The guard is forked before anything large
is imported, and does nothing but wait at its end of a socket pair whose other end only the supervisor holds: it is
handed a pidfd there, and kills its process when the other end is gone without a word.
"""

from __future__ import annotations

import array
import contextlib
import gc
import os
import signal
import socket
from typing import Final, NamedTuple

_FILES: Final = 65_536
_WATCH: Final = b"w"
_LEAVE: Final = b"l"
_LEADING: Final = b"s"
"""Watch, and kill the whole session that the process leads: a plain process has no pid namespace that dies with it."""


class Guard(NamedTuple):
    """The supervisor's end."""

    end: socket.socket
    pid: int

    def watch(self, pidfd: int, *, session: int = 0) -> None:
        """From now on the process of `pidfd` dies with this one; `session`: with all in that session."""
        rights = array.array("i", [pidfd])
        data = (_LEADING if session else _WATCH) + b"%d" % session
        self.end.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def leave(self) -> None:
        """The sandbox is gone: the guard ends without killing."""
        with contextlib.suppress(OSError):
            self.end.send(_LEAVE)
        self.end.close()


def begin() -> Guard:
    """Forks the guard."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gc.freeze()  # else the supervisor's first collection writes to each page that it shares with the guard
    pid = os.fork()
    if pid:
        its.close()
        return Guard(mine, pid)
    os.setsid()
    os.closerange(3, its.fileno())
    os.closerange(its.fileno() + 1, min(_FILES, os.sysconf("SC_OPEN_MAX")))
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    try:
        _guard(its)
    finally:
        os._exit(0)


def _guard(end: socket.socket) -> None:
    pidfd, session = -1, 0
    while True:
        data, ancillary, _, _ = end.recvmsg(64, socket.CMSG_SPACE(4))
        for _, _, rights in ancillary:
            pidfd = array.array("i", rights[:4])[0]
        if data == _LEAVE:
            return
        if data[:1] == _LEADING:
            session = int(data[1:])
        if not data:
            break
    if pidfd >= 0:
        # The session first: its leader's number cannot be another's as long as a process of it is there.
        _kill_session(session)
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _kill_session(session)


def _kill_session(session: int) -> None:
    """KILL to every process of a session, in a few rounds."""
    if not session:
        return
    for _ in range(10):
        found = [pid for pid in _numbers() if _session(pid) == session]
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return


def _numbers() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - names alone


def _session(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib would double the guard's memory
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in b"ZX" else int(fields[3])
