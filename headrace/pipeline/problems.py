"""What is wrong with a pipeline file: every mistake at its place, all of them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

MAX_MESSAGE = 2_000
MAX_SUGGESTED = 64
"""Characters of a name that a suggestion is looked for."""
_FARTHEST = 3
"""Edits at which a name is no longer near."""


class Place(NamedTuple):
    """Where something stands: line and column, both from 1; columns count characters. `file` empty: the main file."""

    line: int
    column: int
    file: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `line` and `column` count from 1, columns in characters; `message` is one sentence."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class PipelineError(Exception):
    """A pipeline file with mistakes. `problems` holds every one, sorted by position, never empty."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        first = problems[0].file if problems else ""
        order = {each.file: (each.file != first, each.file) for each in problems}
        self.problems = tuple(
            sorted(set(problems), key=lambda each: (order[each.file], each.line, each.column, each.message))
        )
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(slots=True)
class Report:
    """Collects the mistakes of one file while it is read."""

    file: str
    problems: list[Problem] = field(default_factory=list)
    hidden: bool = False
    """Part of the file could not be read, so that a name that is not found may stand there."""
    partial: set[Place] = field(default_factory=set)
    """Mappings that lack what could not be found for them: a key that is missing there is no mistake of its own."""
    expressions: int = 0
    """How many stand in the file so far."""
    patterns: int = 0
    """What the patterns of the file weigh so far."""
    comparisons: int = 1_000_000
    """How many more pairs of letters may be compared for suggestions: keeps a hostile file from costing seconds."""

    def add(self, place: Place, message: str) -> None:
        """Note one mistake."""
        if len(message) > MAX_MESSAGE:
            message = f"{message[: MAX_MESSAGE - 1]}…"
        self.problems.append(Problem(place.file or self.file, place.line, place.column, message))

    def where(self, place: Place) -> str:
        """A place as `file:line:column`."""
        return f"{place.file or self.file}:{place.line}:{place.column}"

    def nearest(self, name: str, known: list[str] | tuple[str, ...]) -> str:
        """The known name within two edits (one for short names), or an empty text."""
        if self.comparisons <= 0 or len(name) > MAX_SUGGESTED:
            return ""
        self.comparisons -= len(known)
        letters = len(name) * sum(len(each) for each in known if abs(len(each) - len(name)) < _FARTHEST)
        if letters > self.comparisons:
            return ""
        self.comparisons -= letters
        return nearest(name, known)

    def suggestion(self, name: str, known: list[str] | tuple[str, ...]) -> str:
        """`; did you mean `x`?` where a known name is near, else nothing."""
        near = self.nearest(name, known)
        return f"; did you mean `{near}`?" if near else ""

    def raise_if_any(self) -> None:
        """Raise `PipelineError` when anything was noted."""
        if self.problems:
            raise PipelineError(tuple(self.problems))


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """The known name within two edits (one for short names), or an empty text."""
    best, best_distance = "", _FARTHEST if len(name) > 4 else _FARTHEST - 1
    if len(name) > MAX_SUGGESTED:
        return ""
    for each in known:
        if abs(len(each) - len(name)) < best_distance:
            distance = _edits(name.lower(), each.lower())
            if distance < best_distance:
                best, best_distance = each, distance
    return best


def _edits(one: str, other: str) -> int:
    """Edit distance in which swapping two neighbours is one edit: that is how people mistype."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        older, before, row = before, row, [i]
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def shown(text: str, limit: int = 60) -> str:
    """A value as it may stand in a sentence: in backticks, on one line, shortened."""
    flat = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text[: limit + 1])
    return f"`{flat[:limit]}…`" if len(text) > limit else f"`{flat}`"
