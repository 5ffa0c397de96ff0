"""How the agent holds out beside jobs that take all that the machine has: docs/reliability/holding-out.md.

Standard library alone: the supervisor uses it too.
"""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import Final, NamedTuple

FIRST_TO_GO: Final = 500
"""Of jobs and of git: as if they had half of the machine's memory more than they have, when the kernel looks for a
process to kill. Raising it takes no privilege."""
LAST_TO_GO: Final = -800
"""Of the agent: lowering it takes CAP_SYS_RESOURCE. Supervisors are at -900."""
_OPEN_FILES: Final = 65_536
"""As many as the unit allows: what is left to a plain user's agent begins at 1,024."""
_SCORE: Final = Path("/proc/self/oom_score_adj")
_STEP_DOWN: Final = f'echo {FIRST_TO_GO} 2>/dev/null >/proc/self/oom_score_adj; exec "$@"'


class Held(NamedTuple):
    """What this process has for itself."""

    oom_score: int
    """Its oom_score_adj; from 0 upwards it is not protected."""
    open_files: int
    """How many it may have."""


def hold_out() -> Held:
    """Has the kernel kill others before this process for want of memory, if it may, and lets it open as many files as
    it can.
    """
    if _score() > LAST_TO_GO:
        with contextlib.suppress(OSError):  # few may; what it has then is told
            _SCORE.write_text(str(LAST_TO_GO))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return Held(_score(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def before_a_child(held: Held) -> tuple[str, ...]:
    """What to put before a command that may take much memory: it must not be protected as this process is."""
    return ("/bin/sh", "-c", _STEP_DOWN, "sh") if held.oom_score < 0 else ()


def _score() -> int:
    try:
        return int(_SCORE.read_text())
    except OSError:
        return 0


def most_processes() -> int:
    """How many processes and threads this machine can have at all."""
    found = [Path("/proc/sys/kernel", name) for name in ("pid_max", "threads-max")]
    return min((int(file.read_text()) for file in found if file.exists()), default=32_768)


def told(held: Held, *, memory: int | None, processes: int | None, weighs: bool) -> dict[str, list[str]]:
    """What the agent has to hold out, and what it lacks, in words. `memory` in bytes, `processes`: the bounds of all
    jobs together, None: there is none. `weighs`: whether jobs weigh less than the agent.
    """
    words = [
        (
            held.oom_score < 0,
            f"the kernel kills jobs first (oom score {held.oom_score})",
            "a low oom score (it takes CAP_SYS_RESOURCE)",
        ),
        (weighs, "all jobs together weigh half", "a cpu weight for jobs: they are niced, but for containers"),
        (memory is not None, f"jobs have {(memory or 0) >> 20} MiB together", "a bound on the memory of all jobs"),
        (processes is not None, f"jobs have {processes} processes together", "a bound on the processes of all jobs"),
    ]
    has = [yes for there, yes, _ in words if there]
    return {"has": [*has, f"{held.open_files} open files"], "lacks": [no for there, _, no in words if not there]}
