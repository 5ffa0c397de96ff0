"""`${{ }}` in a text: where expressions begin and end, and texts put together from their values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

OPENING, CLOSING = "${{", "}}"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text. `is_expression`: what stands between `${{` and `}}`; `at`: its offset in the text."""

    text: str
    at: int
    is_expression: bool


class Unclosed(ValueError):
    """A `${{` without its `}}`. `at`: where it opens."""

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self.at = at


def pieces(text: str) -> Iterator[Piece]:
    """The parts of a text in order, empty literal ones left out. Raises `Unclosed`."""
    at = 0
    while (begin := text.find(OPENING, at)) >= 0:
        if begin > at:
            yield Piece(text[at:begin], at, is_expression=False)
        inner = begin + len(OPENING)
        end = _end(text, inner)
        if end < 0:
            raise Unclosed(begin)
        yield Piece(text[inner:end], inner, is_expression=True)
        at = end + len(CLOSING)
    if at < len(text):
        yield Piece(text[at:], at, is_expression=False)


def _end(text: str, at: int) -> int:
    """Where the `}}` stands that closes an expression: not one in a string, nor those of map literals."""
    depth = 0
    quote = ""
    while at < len(text):
        if quote:
            if text[at] == "\\":
                at += 2
                continue
            if text.startswith(quote, at):
                at += len(quote)
                quote = ""
                continue
        elif text[at] in "'\"":
            quote = text[at] * 3 if text.startswith(text[at] * 3, at) else text[at]
            at += len(quote)
            continue
        elif depth == 0 and text.startswith(CLOSING, at):
            return at
        else:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    return -1
