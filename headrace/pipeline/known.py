"""What is known of values before they are there: their types, what may stand where, and what an expression uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from headrace.pipeline.cel_tree import Tree


class Type(StrEnum):
    """What is known of a value before it is there."""

    TEXT = "string"
    INT = "int"
    DOUBLE = "double"
    BOOL = "bool"
    LIST = "list"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Keys:
    """A mapping whose keys are known. `open`: others may be there. `of`: what it is called where one is missing."""

    names: Mapping[str, Known]
    open: bool = False
    of: str = ""


Known = Type | Keys
Near = Callable[[str, tuple[str, ...]], str]
"""The known name that was probably meant, or an empty text."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What an expression may see where it stands. `elsewhere`: names and functions known in other places, and the
    sentence that says where."""

    names: Mapping[str, Known]
    functions: frozenset[str] = frozenset({"json"})
    elsewhere: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with an expression. `at`: offset in its text."""

    at: int
    message: str


@dataclass(frozen=True, slots=True)
class Use:
    """A name and the constant path behind it: `needs.wheel.outputs` is ("needs", "wheel", "outputs").

    `places`: the offset of each part.
    """

    path: tuple[str, ...]
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """A checked expression: its type, and what it uses."""

    type: Type
    uses: tuple[Use, ...]
    calls: frozenset[str]
    patterns: tuple[Tree, ...] = ()
    """Its regular expressions."""
