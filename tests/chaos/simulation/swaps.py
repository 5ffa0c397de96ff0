"""How a defect is put in for a while, and taken out again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Swaps:
    """Attributes that are replaced for a while."""

    def __init__(self) -> None:
        self._back: list[Callable[[], None]] = []

    def swap(self, owner: Any, name: str, value: Any) -> Any:
        """Replaces an attribute; returns what it was."""
        before = getattr(owner, name)
        setattr(owner, name, value)
        self._back.append(lambda: setattr(owner, name, before))
        return before

    def undo(self) -> None:
        for back in reversed(self._back):
            back()
