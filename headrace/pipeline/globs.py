"""Which paths a list of globs means. Pure: names in, verdicts out.

`*`, `?` and `[…]` stay within one name, `**` spans any number of folders, and names that begin with a dot are
names like others - but for `.git` at the root, which only a pattern that spells it out can mean. A pattern that
matches a folder means all files below it.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

LONGEST_PATTERN = 1024
MOST_PATTERNS = 200

_MAGIC = re.compile(r"[*?\[]")
_ANY_DEPTH = "**"


class BadPattern(ValueError):
    """A pattern that can mean nothing below the workspace; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One component of a pattern; `regex` None: it is `**`."""

    regex: re.Pattern[str] | None
    literal: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """How far each pattern has got in one folder: pairs of pattern and component. `all_below`: take everything."""

    places: frozenset[tuple[int, int]]
    all_below: bool = False


class Patterns:
    """A set of globs, matched together while walking down, so that no folder is entered in vain."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        if len(patterns) > MOST_PATTERNS:
            raise BadPattern(f"{len(patterns)} patterns are more than {MOST_PATTERNS}.")
        self._patterns = tuple(_parse(pattern) for pattern in patterns)

    def start(self) -> State:
        """The state at the root."""
        return self._closed({(number, 0) for number in range(len(self._patterns))}, all_below=False)

    def below(self, state: State, name: str, *, at_root: bool) -> State | None:
        """The state inside the folder `name`; None: nothing in it can match."""
        if state.all_below:
            return state
        reached, ends = self._step(state, name, hidden=at_root and name == ".git")
        if not reached and not ends:
            return None
        return self._closed(reached, all_below=ends)

    def takes(self, state: State, name: str, *, at_root: bool) -> bool:
        """Whether the file `name` in the folder of this state is meant."""
        return state.all_below or self._step(state, name, hidden=at_root and name == ".git")[1]

    def means(self, path: str) -> bool:
        """Whether a file is meant, by its path from the root with `/`."""
        state, (*folders, name) = self.start(), path.split("/")
        for depth, folder in enumerate(folders):
            inside = self.below(state, folder, at_root=not depth)
            if inside is None:
                return False
            state = inside
        return self.takes(state, name, at_root=not folders)

    def _step(self, state: State, name: str, *, hidden: bool) -> tuple[set[tuple[int, int]], bool]:
        reached: set[tuple[int, int]] = set()
        ends = False
        for number, at in state.places:
            parts = self._patterns[number]
            part = parts[at]
            if part.regex is None:
                if not hidden:
                    reached.add((number, at))
                    ends = ends or at + 1 == len(parts)
            elif part.literal == name if part.literal else not hidden and part.regex.match(name):
                if at + 1 == len(parts):
                    ends = True
                else:
                    reached.add((number, at + 1))
        return reached, ends

    def _closed(self, places: set[tuple[int, int]], *, all_below: bool) -> State:
        """Adds the places that `**` may skip to: it also stands for no folder at all."""
        pending = list(places)
        while pending:
            number, at = pending.pop()
            parts = self._patterns[number]
            if parts[at].regex is None and at + 1 < len(parts) and (number, at + 1) not in places:
                places.add((number, at + 1))
                pending.append((number, at + 1))
        return State(frozenset(places), all_below)


def _parse(pattern: str) -> tuple[_Part, ...]:
    if len(pattern) > LONGEST_PATTERN:
        raise BadPattern(f"The pattern {pattern[:40]}… is longer than {LONGEST_PATTERN} characters.")
    if "\0" in pattern:
        raise BadPattern("A pattern holds a NUL character.")
    if pattern.startswith("/"):
        raise BadPattern(f"The pattern {pattern!r} is absolute: paths are relative to the workspace.")
    names = [name for name in pattern.split("/") if name not in {"", "."}]
    if ".." in names:
        raise BadPattern(f"The pattern {pattern!r} leads out of the workspace.")
    if not names:
        names = [_ANY_DEPTH]  # `.`: all of the workspace
    parts: list[_Part] = []
    for name in names:
        if name == _ANY_DEPTH:
            if not parts or parts[-1].regex is not None:  # `**/**` is `**`
                parts.append(_Part(None))
        else:
            parts.append(_Part(re.compile(fnmatch.translate(name)), "" if _MAGIC.search(name) else name))
    return tuple(parts)
