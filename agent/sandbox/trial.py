"""Starts a `Spawn` for a moment, to learn whether its kind works on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import Final

from agent.sandbox.protocol import Spawn

TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Tried:
    """How a trial ended. `said` is what it wrote, shortened to its last line."""

    code: int
    said: str


async def run(spawn: Spawn, seconds: float = TIMEOUT_S) -> Tried:
    """Runs it to its end, or kills it after `seconds`; a program that cannot be started is code 127."""
    with contextlib.ExitStack() as files:
        numbers = {"status_fd": os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)}
        files.callback(os.close, numbers["status_fd"])
        for name, path in spawn.pass_files.items():
            numbers[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            files.callback(os.close, numbers[name])
        placeholders = {f"{{{name}}}": str(number) for name, number in numbers.items()}
        argv = [placeholders.get(word, word) for word in spawn.argv]
        try:
            child = await asyncio.create_subprocess_exec(
                *argv,
                env=dict(spawn.env),
                pass_fds=tuple(numbers.values()),
                start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            return Tried(127, str(error))
        return await _ended(child, seconds)


async def _ended(child: asyncio.subprocess.Process, seconds: float) -> Tried:
    try:
        async with asyncio.timeout(seconds):
            said, _ = await child.communicate()
    except TimeoutError:
        return Tried(124, f"did not end within {seconds:.0f} s")
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    lines = said.decode(errors="replace").strip().splitlines()
    return Tried(child.returncode or 0, lines[-1] if lines else "")
