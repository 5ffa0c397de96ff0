"""What an agent has written down of an attempt, read and changed as nobody but a test would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.keeping import HEAD


def places(folder: Path, attempt: int) -> list[Path]:
    """The files of an attempt in an agent's `attempts` folder."""
    return sorted(folder.glob(f"{attempt}.*"))


def kept(folder: Path, attempt: int) -> dict[str, Any]:
    """The newest record of an attempt; empty: there is none."""
    newest, found = -1, dict[str, Any]()
    for file in places(folder, attempt):
        data = file.read_bytes()
        if data[:1] == b"{":
            return dict(json.loads(data))
        words = data[:HEAD].split()
        if len(words) == 5 and int(words[2]) > newest:
            newest, found = int(words[2]), json.loads(data[HEAD : HEAD + int(words[4])])
    return found


def rewrite(folder: Path, attempt: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Puts another record in its place, in the form of the version before."""
    changed = change(kept(folder, attempt))
    for file in places(folder, attempt):
        file.unlink()
    (folder / f"{attempt}.json").write_text(json.dumps(changed))


async def until_kept(folder: Path, attempt: int, is_so: Callable[[dict[str, Any]], object]) -> None:
    """Waits until another process has written such a record."""
    async with asyncio.timeout(20):
        while not ((record := kept(folder, attempt)) and is_so(record)):  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.05)
