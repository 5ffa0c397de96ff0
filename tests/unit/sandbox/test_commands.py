"""The machine's own programs, run for a sandbox."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agent.sandbox.commands import run


async def test_a_canceled_program_has_ended_before_its_work_is_taken_back(tmp_path: Path) -> None:
    """A network that appears after its attempt was removed would stay for ever."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    os.mkfifo(begun)
    os.mkfifo(go)
    script = 'echo > "$1"; read -r word < "$2"; echo > "$3"'
    running = asyncio.create_task(run(["sh", "-c", script, "sh", str(begun), str(go), str(tmp_path / "made")]))
    await asyncio.to_thread(begun.read_bytes)
    running.cancel()
    await asyncio.to_thread(go.write_bytes, b"go\n")
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (tmp_path / "made").exists()
