"""The control shell: what runs the supervisor's control script as pid 1 of a sandbox.

With a static busybox, copied here with mode 0111 - executable, readable by nobody - the kernel makes pid 1
non-dumpable, and the job cannot reach the control shell's descriptors through /proc/1. Without one it is the
sandbox's own sh: a job can then take the control channel, but fails only itself.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

CONTROL: Final = "/hr"
"""Where the attempt's `io` folder is mounted, read-only."""
BUSYBOX: Final = "/.headrace/busybox"
"""Where the copy is mounted; the file's name decides that it answers to `busybox`."""
WORKSPACE: Final = "/workspace"
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the control shell is looked for, and what steps get where nobody says otherwise."""


def copy_busybox(original: Path, folder: Path) -> Path:
    """Makes the unreadable copy in `folder`, once, and returns it. `original` must be a static binary."""
    copy = folder / "busybox"
    size = original.stat().st_size
    if copy.exists() and copy.stat().st_size == size:
        return copy
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    part = folder / f"busybox.{os.getpid()}"
    shutil.copyfile(original, part)
    part.chmod(0o111)
    part.rename(copy)
    return copy


def argv(busybox: Path | None, shell: str = "sh") -> tuple[str, ...]:
    """The command line of pid 1, as seen from inside."""
    interpreter = (shell,) if busybox is None else (BUSYBOX, "ash")
    return (*interpreter, f"{CONTROL}/control", CONTROL)
