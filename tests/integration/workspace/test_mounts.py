"""The mount below which workspaces lie."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from pathlib import Path

import pytest

from agent.workspace.mounts import guard_workspaces, is_guarded, mount_options, release_workspaces
from agent.workspace.removal import remove_tree


@pytest.mark.root
async def test_a_setuid_file_or_device_in_a_workspace_is_worth_nothing(tmp_path: Path) -> None:
    """A job that is root in its container can make both, on the host's own disk."""
    root = tmp_path / "work spaces"
    assert await guard_workspaces(root)
    try:
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        assert is_guarded(root)
        assert await guard_workspaces(root)  # an agent that starts again finds it
        os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        with pytest.raises(PermissionError):
            os.open(root / "null", os.O_RDONLY)
        program = root / "id"
        shutil.copyfile("/usr/bin/id", program)
        program.chmod(0o4755)
        root.chmod(0o711)
        for folder in [tmp_path, *tmp_path.parents[:2]]:
            folder.chmod(folder.stat().st_mode | 0o711)
        shown = await asyncio.create_subprocess_exec(
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(program), "-u"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert (await shown.communicate())[0] == b"65534\n"
        (root / "attempt").mkdir()
        remove_tree(root / "attempt")
    finally:
        await release_workspaces(root)
    assert mount_options(root) is None
    await release_workspaces(root)
