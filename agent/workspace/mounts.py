"""The file system below which all workspaces lie: nosuid and nodev.

A job that is root in its container can leave a setuid file in its workspace; on this mount it is a plain file, and
the folder above is closed to everybody but the agent.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

_UNWANTED = ("nosuid", "nodev")


class MountFailed(Exception):
    """The mount could not be made; the message says what the kernel said."""


async def guard_workspaces(root: Path) -> bool:
    """Makes `root` (0700) and, as root, binds it onto itself with `nosuid,nodev`; repeatable.

    Returns whether the mount is there: an agent that is not root has none, and its jobs can make no setuid file
    that is worth more than the agent itself. An earlier agent's mount is taken over: jobs may live on it.
    """
    await asyncio.to_thread(_closed_folder, root)
    if os.geteuid() != 0:
        return False
    if mount_options(root) is None:
        await _command("mount", "--bind", "--", str(root), str(root))
    if not is_guarded(root):
        await _command("mount", "-o", "remount,bind,nosuid,nodev", "--", str(root))
    if not is_guarded(root):
        raise MountFailed(f"{root} is mounted, but not nosuid,nodev.")
    return True


async def release_workspaces(root: Path) -> None:
    """Takes the mount away again, if there is one. Only when no attempt of this agent lives."""
    if os.geteuid() == 0 and mount_options(root) is not None:
        await _command("umount", "--", str(root))


def is_guarded(root: Path) -> bool:
    """Whether `root` is a mount of its own with `nosuid` and `nodev`."""
    options = mount_options(root)
    return options is not None and all(option in options for option in _UNWANTED)


def mount_options(point: Path) -> frozenset[str] | None:
    """The options of the topmost mount at exactly this path; None: it is no mount point."""
    wanted = os.path.realpath(point)
    found = None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        path = os.fsdecode(fields[4]).replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        if path == wanted:
            found = frozenset(fields[5].decode().split(","))
    return found


def _closed_folder(root: Path) -> None:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)


async def _command(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
    )
    _, message = await process.communicate()
    if process.returncode != 0:
        raise MountFailed(message.decode(errors="replace").strip() or f"{arguments[0]} failed.")
