"""An agent that no longer trusts its disk takes no job, and says so, until a person has looked and starts it anew."""

from __future__ import annotations

from collections.abc import Callable


class Quarantine:
    """`begun` is told once, with the sentence."""

    def __init__(self, begun: Callable[[str], None]) -> None:
        self._begun = begun
        self.sentence = ""
        """Why no job is taken; empty: nothing speaks against it."""

    def begin(self, why: str) -> None:
        """From now on; the first reason stays."""
        if not self.sentence:
            self.sentence = f"{why}; it takes no job until its disk was looked at and the agent is started again"
            self._begun(self.sentence)
