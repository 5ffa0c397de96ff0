"""What is done for an attempt whose supervisor is lost: proof of its death, and the end of its log with a marker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import struct
from pathlib import Path
from typing import NamedTuple

import zstandard

from agent.clock import Clock
from agent.problems import JobProblem
from agent.supervisor.client import SupervisorClient, SupervisorGone
from agent.supervisor.damage import Stand, length_of
from agent.supervisor.disk import Disk
from agent.supervisor.reading import SpoolReader
from agent.supervisor.records import Kind, Record, shortened
from agent.supervisor.results import Ended, SupervisorState
from agent.supervisor.spool import LIMIT, Spool, SpoolBroken, SpoolFull

MARKER = "*** headrace: the job's supervisor died here; up to 64 KiB of the log may be missing ***\n"

ENDING_S = 60.0
"""What a sandbox may take to end, once it is killed and all that was made for it removed."""
_DEATH_S = 10.0
_ASK_S = 0.005
_ASK_AT_LAST_S = 0.05


async def ended_within(client: SupervisorClient, seconds: float) -> bool:
    """Waits for the end of a sandbox that was killed. False when it still lives after so long, or nobody says so."""
    pause = _ASK_S
    try:
        async with asyncio.timeout(seconds):
            while lives(await client.state()):
                await asyncio.sleep(pause)
                pause = min(_ASK_AT_LAST_S, 2 * pause)
    except TimeoutError:
        return False
    except (SupervisorGone, JobProblem):
        pass
    return True


def lives(state: SupervisorState) -> bool:
    """Whether there is a sandbox, as far as its supervisor knows."""
    return state.phase == "launched" and state.sandbox is None


def end_supervisor(folder: Path) -> None:
    """Kills the supervisor of the attempt's `folder`, if it lives (frozen, say), and waits for its end. Blocks.

    The sandbox dies with it. Who listens at its socket is known to the kernel; asked again once there is a
    descriptor of the process, so that a number which is another's by now is never signaled.
    """
    pid = _listener(folder)
    if pid is None:
        return
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            if _listener(folder) == pid:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                poll = select.poll()
                poll.register(process, select.POLLIN)
                poll.poll(_DEATH_S * 1000)
        finally:
            os.close(process)


def _listener(folder: Path) -> int | None:
    """The process that listens at the supervisor's socket; None: nobody does."""
    try:
        place = os.open(folder / "priv", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(_DEATH_S)
            asking.connect(f"/proc/self/fd/{place}/sock")
            told = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return int(struct.unpack("3i", told)[0])
    except (OSError, TimeoutError):
        return None
    finally:
        os.close(place)


class LogEnd(NamedTuple):
    """Where a log ends."""

    records: int
    offset: int
    ending: str = ""
    """What its last record says, where that one is not on the disk."""
    disk: str = ""
    """How the disk failed that should have kept it; empty: it did not."""


def end_of(last: Ended) -> LogEnd:
    """The end of a log that its supervisor has closed."""
    stand = Stand(last.records - 1, last.offset)  # the spool's own last record is the outcome
    if not last.disk:
        return LogEnd(*stand[:2])
    return _cut_off(stand, f"{last.missing} bytes of this log are missing here: {last.disk}", last.disk)


def close_orphaned_log(
    folder: Path,
    sentence: str,
    clock: Clock,
    *,
    limit: int = LIMIT,
    known: Stand | None = None,
    disk: Disk | None = None,
) -> LogEnd:
    """Appends the marker and the end to the spool in `folder`. Blocks. Never raises.

    A log that has its end already (the agent was killed after it) is left as it is. Where there is no room, by the
    spool's limit or on the disk, the marker is left out, and the end if need be: the attempt is settled anyway, also
    when the disk fails. `known`: how far it was read before, should it not be readable so far any more.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        seed = int.from_bytes(os.urandom(4), "little")
        spool = Spool(folder, limit, disk=disk, seed=seed)
        return _closed(folder, spool, sentence, clock.wall_ms(), known or Stand())
    except (OSError, SpoolBroken) as error:
        why = f"the log on the agent's disk could not be ended: {getattr(error, 'strerror', None) or error}"
        return _cut_off(_readable(folder, known or Stand()), f"the end of this log is missing: {why}", why)


def _closed(folder: Path, spool: Spool, sentence: str, now: int, known: Stand) -> LogEnd:
    try:
        spool.skip_to(known)
        last = SpoolReader(folder).last()
        if last is not None and last.kind is Kind.OUTCOME:
            spool.sync()
            return LogEnd(last.sequence - 1, last.offset)
        with contextlib.suppress(SpoolFull):
            _append_end(spool, last, sentence, now)
            spool.sync()
            return LogEnd(spool.sequence - 1, spool.offset)
        spool.sync()
        return LogEnd(spool.sequence, spool.offset)
    finally:
        spool.close()


def _cut_off(stand: Stand, text: str, disk: str) -> LogEnd:
    ending = f"*** headrace: {text} ***"
    return LogEnd(stand.sequence + 1, stand.offset + length_of(ending), ending, disk)


def _readable(folder: Path, known: Stand) -> Stand:
    """How far a log can be read, or was."""
    last = None
    with contextlib.suppress(OSError):
        last = SpoolReader(folder).last()
    if last is None:
        return known
    # An outcome is no part of the log: the end that is told instead takes its place.
    found = Stand(last.sequence - (last.kind is Kind.OUTCOME), last.offset + last.raw_length)
    return max(found, known)


def _append_end(spool: Spool, last: Record | None, sentence: str, now: int) -> None:
    section = 0 if last is None else last.section
    if last is not None and last.kind is not Kind.CLOSED:
        spool.append(Kind.CLOSED, _json(result=shortened(sentence)), time_ms=now, section=section)
    opened = _json(kind="cleanup", title="Clean up", step=-1, ours=True)
    spool.append(Kind.OPENED, opened, time_ms=now, section=section + 1)
    raw = f"{MARKER}headrace: {sentence}\n".encode()
    frame = zstandard.ZstdCompressor(level=1).compress(raw)
    with contextlib.suppress(SpoolFull):
        spool.append(Kind.FRAME, frame, time_ms=now, section=section + 1, raw_length=len(raw), ours=True)
    spool.append(Kind.CLOSED, _json(result=""), time_ms=now, section=section + 1)
    outcome = _json(cause="errored", sentence=sentence)
    spool.append(Kind.OUTCOME, outcome, time_ms=now, section=section + 1)


def _json(**facts: object) -> bytes:
    return json.dumps(facts).encode()
