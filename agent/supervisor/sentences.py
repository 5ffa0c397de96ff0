"""What a person is told of a step or sandbox that did not pass."""

from __future__ import annotations

from typing import Final

from agent.problems import Cause

TAKEN: Final = "the step could not be begun: the job has taken the control channel, or no process could be started"
FULL: Final = "the step could not be begun: the job has reached its limit of processes"
OOM: Final = {
    Cause.OOM: "the memory limit of the job was reached, and the kernel killed a process of it",
    Cause.HOST_OOM: "the machine, or what all its jobs may use together, ran out of memory, and the kernel killed a "
    "process of the job",
}
_SIGNALS: Final = {1: "HUP", 2: "INT", 3: "QUIT", 4: "ILL", 5: "TRAP", 6: "ABRT", 7: "BUS", 8: "FPE", 9: "KILL"} | {
    11: "SEGV",
    13: "PIPE",
    14: "ALRM",
    15: "TERM",
    24: "XCPU",
    25: "XFSZ",
    31: "SYS",
}


def told(code: int) -> str:
    """A step's exit code, as a sentence. A shell says 128 + n of a process that signal n has ended."""
    name = _SIGNALS.get(code - 128)
    return f"exit code {code}" + (f" (what a shell says of a process that SIG{name} has ended)" if name else "")
