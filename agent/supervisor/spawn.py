"""Starts a sandbox's first process, without any library: fork, join cgroups, pass descriptors, execute.

The child gets exactly the environment that is asked for, a session of its own, /dev/null as its input and output, and
a file for what the starter has to say when it fails.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from agent.holding import FIRST_TO_GO

_UMASK: Final = 0o022
_NICE: Final = 5
"""Added to the niceness of jobs: where no cgroup weighs them, the agent and the supervisor come first all the same."""


class Start(NamedTuple):
    """What to start. `{status_fd}` and `{NAME}` of `pass_files` in `argv` become numbers of descriptors."""

    argv: Sequence[str]
    env: Mapping[str, str]
    pass_files: Mapping[str, str]
    cgroups: Sequence[str]


class Started(NamedTuple):
    """A process that was started. `status`: read end of its status lines, -1 when it writes none."""

    pid: int
    status: int


class NotStarted(Exception):
    """It could not be started; the message says why."""


def start(what: Start, log: str) -> Started:
    """Starts it; `log`: the file that takes its standard error. Raises NotStarted."""
    with contextlib.ExitStack() as ours:
        numbers = {}
        try:
            for name, path in what.pass_files.items():
                numbers[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                ours.callback(os.close, numbers[name])
        except OSError as error:
            raise NotStarted(f"{error.filename} cannot be opened: {error.strerror}") from error
        status = -1
        if "{status_fd}" in what.argv:
            status, numbers["status_fd"] = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            ours.callback(os.close, numbers["status_fd"])
        failed, told = os.pipe2(os.O_CLOEXEC)
        ours.callback(os.close, failed)
        pid = os.fork()
        if pid == 0:
            _become(what, numbers, log, told)
        os.close(told)
        why = os.read(failed, 4096)
        if why:
            os.waitpid(pid, 0)
            if status >= 0:
                os.close(status)
            raise NotStarted(why.decode(errors="replace"))
        return Started(pid, status)


def _become(what: Start, numbers: Mapping[str, int], log: str, told: int) -> None:
    """In the child: never returns."""
    try:
        os.setsid()
        os.umask(_UMASK)
        _heed_signals()
        with contextlib.suppress(OSError):  # a job must be killed for memory before whatever else is here
            _write("/proc/self/oom_score_adj", b"%d" % FIRST_TO_GO)
        os.nice(_NICE)
        for folder in what.cgroups:
            _write(f"{folder}/cgroup.procs", b"0")
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), 2)
        os.close(null)
        for number in numbers.values():
            os.set_inheritable(number, True)  # noqa: FBT003 - the standard library's own form
        names = {f"{{{name}}}": str(number) for name, number in numbers.items()}
        argv = [names.get(word, word) for word in what.argv]
        os.execvpe(argv[0], argv, dict(what.env))  # noqa: S606 - no shell is wanted
    except OSError as error:
        os.write(told, f"{error.filename or what.argv[0]} cannot be used: {error.strerror}".encode())
    finally:
        os._exit(127)


_RT_SIGACTION: Final = {"x86_64": 13, "aarch64": 134}
_OF_THE_LIBRARY: Final = (32, 33)
"""Signals that the C library keeps for its own threads, and does not let anybody set."""


def _heed_signals() -> None:
    """Lets no signal be ignored because whoever started us ignored it."""
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(signum, signal.SIG_DFL)
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123 - as small as can be
        ignored = next((int(line.split()[1], 16) for line in file if line.startswith("SigIgn:")), 0)
    if any(ignored >> signum - 1 & 1 for signum in _OF_THE_LIBRARY):  # its posix_spawn leaves them ignored
        _heed_signals_of_the_library()


def _heed_signals_of_the_library() -> None:
    import ctypes  # only here: it costs 5 ms of every start

    number = _RT_SIGACTION.get(platform.machine())
    default = ctypes.create_string_buffer(32)  # a kernel sigaction of zeros: the default, no flags, no mask
    for signum in _OF_THE_LIBRARY if number is not None else ():
        ctypes.CDLL(None).syscall(number, signum, default, None, 8)


def _write(file: str, data: bytes) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
