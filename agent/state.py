"""The agent's data directory: who this agent is, and where each thing of an attempt lies.

    lock             held under flock by the one process that uses the directory
    version          format of the directory; a newer one is refused
    instance         the agent's random id
    starts           how often the agent was started here
    attempts/        two files per attempt whose outcome or log is not yet handed in (`agent/keeping.py`)
    workspaces/      0700; one folder per attempt, on a nosuid,nodev mount if root
    mirrors/ git/    what checkouts are made from
    sandboxes/       what sandboxes make once
    logs/            the attempts' spools
    run/             attempts' folders when there is no tmpfs for them

Scripts and environments of steps hold secrets, so attempts' folders lie on `/run` for root. A unix socket's path
has at most 107 bytes: a data directory with a long path gets its sockets in a short folder of the same user.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from agent.durable import replace_file

VERSION = 1
_LONGEST_SOCKET = 107
_BELOW_ATTEMPT = len("/attempts/") + 19 + len("/priv/sock.tmp")


class Unusable(Exception):
    """The directory cannot be used; the message is one sentence with its mend."""


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """An open data directory. `runtime`: where attempts' folders lie; short enough for sockets."""

    root: Path
    instance: str
    runtime: Path
    lock: int

    def next_start(self) -> int:
        """The number of this start of the agent, from 1; durable, so that no later start gets it again."""
        file = self.root / "starts"
        number = int(file.read_text(encoding="utf-8")) + 1 if file.exists() else 1
        replace_file(file, f"{number}\n")
        return number

    def free(self) -> int:
        """Bytes of its disk that can still be written. Raises OSError."""
        facts = os.statvfs(self.root)
        return facts.f_bavail * facts.f_frsize

    @property
    def records(self) -> Path:
        """Two files per attempt."""
        return self.root / "attempts"

    @property
    def workspaces(self) -> Path:
        """One folder per attempt."""
        return self.root / "workspaces"

    @property
    def logs(self) -> Path:
        """The attempts' spools, on disk."""
        return self.root / "logs"

    def spooled(self) -> int:
        """Bytes of log on disk."""
        size = 0
        for folder in _entries(self.logs):
            for file in _entries(folder):
                if file.name.startswith("spool."):
                    with contextlib.suppress(FileNotFoundError):  # handed in meanwhile
                        size += file.stat().st_size
        return size

    @property
    def attempts(self) -> Path:
        """The attempts' folders: sockets, FIFOs, spools, scripts."""
        return self.runtime / "attempts"

    def folder(self, attempt: int) -> Path:
        """The folder `A` of one attempt."""
        return self.attempts / str(attempt)

    def close(self) -> None:
        """Lets the next process have it. What is empty outside it is taken away."""
        for folder in (self.attempts, self.runtime, self.runtime.parent):
            with contextlib.suppress(OSError):  # an attempt still lives there, or another agent
                folder.rmdir()
        with contextlib.suppress(OSError):
            os.close(self.lock)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it was taken away meanwhile."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def open_directory(root: Path, *, run: Path = Path("/run/headrace"), new_id: str) -> DataDirectory:
    """Opens or makes the data directory. `new_id`: the random id, if it has none yet. Raises `Unusable`."""
    root = root.resolve()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _locked(root)
    except (NotADirectoryError, FileExistsError) as error:
        raise Unusable(f"{root} is no directory; name another data directory.") from error
    except OSError as error:
        raise Unusable(f"{root} cannot be used as data directory: {error.strerror}; name another.") from error
    try:
        _check_version(root)
        instance = _instance(root, new_id)
        for name in ("attempts", "logs", "mirrors", "git", "sandboxes"):
            (root / name).mkdir(mode=0o700, exist_ok=True)
        runtime = _made_runtime(root, instance, run)
    except BaseException:
        os.close(lock)
        raise
    return DataDirectory(root, instance, runtime, lock)


def _locked(root: Path) -> int:
    lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise Unusable(
            f"{root} is in use by another agent process; give this one another --data-dir, or stop that one."
        ) from error
    return lock


def _check_version(root: Path) -> None:
    file = root / "version"
    if not file.exists():
        replace_file(file, f"{VERSION}\n")
        return
    text = file.read_text(encoding="utf-8").strip()
    if not text.isdigit():
        raise Unusable(f"{file} holds {text[:20]!r}, no version number; name another data directory.")
    if int(text) > VERSION:
        raise Unusable(
            f"{root} was made by a newer agent (format {text}, this one knows {VERSION}); upgrade this agent, or "
            "name another data directory."
        )


def _instance(root: Path, new_id: str) -> str:
    file = root / "instance"
    if not file.exists():
        replace_file(file, f"{new_id}\n")
    return file.read_text(encoding="utf-8").strip()


def _made_runtime(root: Path, instance: str, run: Path) -> Path:
    """The folder for attempts. An agent that closes at this moment may take the one around it away: try again."""
    for _ in range(10):
        with contextlib.suppress(FileNotFoundError):
            runtime = _runtime(root, instance, run)
            (runtime / "attempts").mkdir(mode=0o711, exist_ok=True)
            return runtime
    raise Unusable(f"no folder for the attempts of {root} can be made; name another data directory.")


def _runtime(root: Path, instance: str, run: Path) -> Path:
    """`/run/headrace/<instance>` for root, else a folder of the directory, if sockets fit there."""
    if os.geteuid() == 0 and run.parent.is_dir():
        for folder in (run, run / instance):
            _own_folder(folder, 0o711)
        return run / instance
    inside = root / "run"
    if len(os.fsencode(inside)) + _BELOW_ATTEMPT <= _LONGEST_SOCKET:
        _own_folder(inside, 0o711)
        return inside
    short = Path(f"/tmp/headrace-{os.geteuid()}")  # noqa: S108 - its owner and mode are checked
    for folder in (short, short / instance[:12]):
        _own_folder(folder, 0o711)
    return short / instance[:12]


def _own_folder(folder: Path, mode: int) -> None:
    """Makes a folder of ours that nobody else can write to; one that somebody else made is refused."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=mode)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        raise Unusable(f"{folder} belongs to somebody else; remove it, or name a data directory with a shorter path.")
    folder.chmod(mode)
