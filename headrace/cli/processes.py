"""The daemons that an owner starts: readiness by a descriptor, an orderly stop with a bound, no orphan left."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import HeadraceError, ServerFailed

READY_WITHIN = 90.0
"""Seconds: a first start makes a database cluster, on a slow disk."""
STOP_WITHIN = 15.0
"""Seconds between a signal and the next, harder one."""
HURRIED_WITHIN = 5.0
"""The same for a person who does not want to wait: enough to take away what the daemon made on this machine."""
_HARDER = (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)
"""An agent finishes its jobs, then cancels them, then kills them. Two of one kind at one moment would arrive as one."""
_LOG_LIMIT = 8 << 20


class StartFailed(ServerFailed):
    """A daemon ended before it was ready. `exit_code` is its own: bad input stays bad input."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.exit_code = code if code in {2, 3} else 3  # type: ignore[misc]  # the class's default, set for one


@dataclass(frozen=True, slots=True)
class Daemon:
    """What is started: a name for people, the command, its whole environment (it may hold a credential)."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)


def command() -> tuple[str, ...]:
    """This very program, as it can be started again."""
    return (sys.executable, "-m", "headrace")


class Interrupts:
    """What INT and TERM do to an owner: the first unwinds it like Ctrl-C, once; whatever comes later is hurry.

    Raised at most once, so that nothing cuts the end short to which it leads.
    """

    def __init__(self) -> None:
        self.hurry = 0
        self._raised = False
        self._held: bool | None = None

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Signals come here as long as this lasts."""
        before = {each: signal.signal(each, self._told) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What comes in here is heeded at its end: a process that was just made must be written down."""
        self._held = False
        try:
            yield
        finally:
            came, self._held = self._held, None
        if came:
            self._told()

    def _told(self, *_: object) -> None:
        if self._held is not None and not self._raised:
            self._held = True
        elif self._raised:
            self.hurry += 1
        else:
            self._raised = True
            raise KeyboardInterrupt

    def no_more(self) -> None:
        """From here on they are hurry."""
        self._raised = True


class Processes:
    """The children of one owner, in the order of their start; they stop in the reverse order."""

    def __init__(self, record: Path, logs: Path, interrupts: Interrupts | None = None) -> None:
        self.logs = logs
        self._record = record
        self._interrupts = interrupts or Interrupts()
        self._running: list[tuple[Daemon, subprocess.Popen[bytes]]] = []

    def start(self, daemon: Daemon) -> dict[str, object]:
        """Starts a daemon and waits until it is ready; returns what it said then.

        It dies with this process: it asks the kernel for that itself (`--die-with`).
        """
        receive, send = os.pipe()
        log = self.logs / f"{daemon.name}.log"
        try:
            with self._interrupts.held(), log.open("ab") as file:
                if file.tell() > _LOG_LIMIT:
                    file.truncate(0)
                began = file.tell()
                process = subprocess.Popen(
                    [*daemon.command, "--ready-fd", str(send), "--die-with", str(os.getpid())],
                    env=dict(daemon.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    pass_fds=(send,),
                    start_new_session=True,  # Ctrl-C in the terminal is for us: we stop them in order
                    cwd="/",
                )
                self._running.append((daemon, process))
                self._write_record()
        finally:
            os.close(send)
        try:
            line = _read_line(receive, READY_WITHIN)
        finally:
            os.close(receive)
        if line is None:
            raise _start_failed(daemon, process, log, began)
        ready: dict[str, object] = json.loads(line)
        return ready

    def pids(self) -> list[int]:
        """Their process ids."""
        return [process.pid for _, process in self._running]

    def dead(self) -> str | None:
        """The name of a daemon that has ended though nobody asked it to, or None."""
        return next((daemon.name for daemon, process in self._running if process.poll() is not None), None)

    def stop(self) -> list[str]:
        """Stops them, the last first, by ever harder signals, each after a bound; KILL is the last.

        A signal to this process in the meantime brings the next, harder one at once and makes the bounds short, but
        there is no way around the last bound. Returns the names of those killed: what they made is still there.
        """
        self._interrupts.no_more()
        killed = []
        for daemon, process in reversed(self._running):
            for which, number in enumerate(_HARDER):
                if process.poll() is None:
                    process.send_signal(number)
                    self._wait(process, first=which == 0, last=which == len(_HARDER) - 1)
            if process.poll() is None:
                process.kill()
                process.wait()
                killed.append(daemon.name)
        self._running.clear()
        self._record.unlink(missing_ok=True)
        return killed

    def _wait(self, process: subprocess.Popen[bytes], *, first: bool, last: bool) -> None:
        """Until it has ended, its time is over, or a person has become more impatient: before a KILL that is no use."""
        began, hurry = time.monotonic(), self._interrupts.hurry
        bound = STOP_WITHIN if not hurry else 0.0 if first else HURRIED_WITHIN
        while process.poll() is None and time.monotonic() < began + bound:
            if self._interrupts.hurry != hurry and not last:
                break
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)

    def _write_record(self) -> None:
        found = [{"pid": each.pid, "started": _start_time(each.pid)} for _, each in self._running]
        self._record.write_text(json.dumps(found))


def _read_line(descriptor: int, seconds: float) -> bytes | None:
    """One line, or None when the other end was closed or the time is over."""
    deadline, data = time.monotonic() + seconds, b""
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return None
        piece = os.read(descriptor, 4096)
        if not piece:
            return None
        data += piece
    return data


def _start_failed(daemon: Daemon, process: subprocess.Popen[bytes], log: Path, began: int) -> HeadraceError:
    """Its own last line is the best sentence there is."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(2)
    lines = log.read_bytes()[began:].decode("utf-8", "replace").strip().splitlines()
    if process.poll() is None:
        why = f": {why}" if (why := last_reason(lines)) else ""
        return ServerFailed(f"the {daemon.name} was not ready within {READY_WITHIN:.0f} s{why} (see {log.parent})")
    spoken = [number for number, line in enumerate(lines) if line.startswith("headrace")]
    said = lines[spoken[-1] :] if spoken else lines[-1:]
    sentence = "\n".join(said).removeprefix("headrace: ").removeprefix(f"headrace {daemon.name}: ")
    return StartFailed(
        f"the {daemon.name} did not start: {sentence or f'it said nothing; see {log}'}", process.returncode
    )


def last_reason(lines: Sequence[str]) -> str:
    """The newest reason that a daemon logged for what it could not do, or nothing."""
    for line in reversed(lines):
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(why := entry.get("why"), str):
                return why
    return ""


def _start_time(pid: int) -> str:
    """When a process began, in ticks since boot: with it a process id means one process only. Empty: it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in {"Z", "X"} else fields[19]
    except (OSError, IndexError):
        return ""


def stop_orphans(record: Path) -> None:
    """Ends daemons that a dead owner left (it was killed before they had asked to die with it)."""
    try:
        found = [(int(each["pid"]), str(each["started"])) for each in json.loads(record.read_text())]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for number, seconds in ((signal.SIGTERM, STOP_WITHIN), (signal.SIGKILL, 5.0)):
        alive = [pid for pid, started in found if started and _start_time(pid) == started]
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(started and _start_time(pid) == started for pid, started in found):
            time.sleep(0.02)  # not our children: there is nothing to wait on
    record.unlink(missing_ok=True)
