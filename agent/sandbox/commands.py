"""Runs the machine's own programs (ip, iptables-restore) and waits for them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence


class CommandFailedError(Exception):
    """A program ended with a code other than 0. The message has its name, the code and what it said."""


async def run(command: Sequence[str], text: str = "") -> str:
    """Runs `command` with `text` as its input and returns its output. Raises `CommandFailedError`.

    Canceled, it lets the program end first: what that was about to make would else appear after its removal.
    """
    talking = asyncio.ensure_future(_talk(command, text))
    try:
        return await asyncio.shield(talking)
    except asyncio.CancelledError:
        await asyncio.wait([talking])
        raise


async def _talk(command: Sequence[str], text: str) -> str:
    # A file, not a pipe: uvloop raises when a program ends before it has read its pipe.
    given = os.memfd_create("command-stdin", os.MFD_CLOEXEC)
    try:
        os.write(given, text.encode())
        os.lseek(given, 0, os.SEEK_SET)
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=given,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise CommandFailedError(f"{command[0]} cannot be started: {error.strerror}") from error
    finally:
        os.close(given)
    out, err = await child.communicate()
    if child.returncode != 0:
        said = err.decode(errors="replace").strip() or "it said nothing"
        raise CommandFailedError(f"{' '.join(command)} failed with code {child.returncode}: {said}")
    return out.decode(errors="replace")
