"""Stop the server that a dead owner left behind.

Called only by the holder of the folder's lock, so whoever else serves these data has no living owner. A process
is believed to be that server for what it is now (a `postgres` whose working directory is the data directory),
never for the number in `postmaster.pid` alone: numbers are used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from pathlib import Path

_STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
"""Fast shutdown, then immediate shutdown, then the end; seconds to wait after each."""


async def stop_orphans(data: Path) -> int:
    """Stop every process that serves the data directory, the postmaster first; return how many there were.

    Removes a `postmaster.pid` whose process is gone, which would stop the next server if its number is in use.
    """
    found = 0
    postmaster = _postmaster(data)
    if postmaster is not None:
        found += await _stop(postmaster, data)
    for pid in _servers(data):  # what a killed postmaster left: none of these may outlive it
        found += await _stop(pid, data, kill_at_once=True)
    (data / "postmaster.pid").unlink(missing_ok=True)
    return found


def _postmaster(data: Path) -> int | None:
    try:
        first = (data / "postmaster.pid").read_text().split("\n", 1)[0].strip().removeprefix("-")
    except (OSError, UnicodeDecodeError):
        return None
    pid = int(first) if first.isdigit() else 0
    return pid if pid > 1 and _serves(pid, data) else None


def _servers(data: Path) -> list[int]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if _serves(pid, data)]


def _serves(pid: int, data: Path) -> bool:
    process = Path("/proc") / str(pid)
    try:
        same = os.path.samestat((process / "cwd").stat(), data.stat())
        return same and (process / "exe").readlink().name.split(" ")[0] == "postgres"
    except OSError:
        return False  # gone meanwhile, or another user's: not a server of ours


async def _stop(pid: int, data: Path, *, kill_at_once: bool = False) -> int:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        if not _serves(pid, data):  # the number was used again before the handle was open
            return 0
        for number, seconds in _STEPS[-1:] if kill_at_once else _STEPS:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            if await asyncio.to_thread(_ended, handle, seconds):
                break
        return 1
    finally:
        os.close(handle)


def _ended(handle: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
