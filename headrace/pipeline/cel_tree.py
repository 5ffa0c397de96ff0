"""The tree of a compiled CEL expression, read from the runtime's serialised form (cel.expr.CheckedExpr).

The runtime checks names and types but shows no tree, and it does not look into maps; the loader has to. Only what
the loader walks is read: the wire format is protobuf's, the field numbers are those of cel/expr/syntax.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Const:
    """A literal: str, int, float, bool, bytes or None. `at`: offset in characters of the expression, from 0."""

    at: int
    value: str | int | float | bool | bytes | None


@dataclass(frozen=True, slots=True)
class Name:
    """A name; the checker writes a dotted one where `a.b` was declared as one variable."""

    at: int
    name: str


@dataclass(frozen=True, slots=True)
class Select:
    """`operand.field`; `test`: `has(operand.field)`. `at` is the place of the dot."""

    at: int
    operand: Tree
    field: str
    test: bool


@dataclass(frozen=True, slots=True)
class Call:
    """A function or an operator (`_==_`, `_[_]`); `target`: what it is called on as a method."""

    at: int
    function: str
    target: Tree | None
    args: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A list or map literal: its keys and values in order."""

    at: int
    parts: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Loop:
    """`all`, `exists`, `map`, `filter`: `over` is outside of the loop, `inside` sees the names in `bound`."""

    at: int
    over: Tree
    bound: frozenset[str]
    inside: tuple[Tree, ...]


Tree = Const | Name | Select | Call | Made | Loop

_ANY_VALUE, _EXPR, _SOURCE_INFO, _POSITIONS = 2, 4, 5, 4
_Fields = Mapping[int, list[int | bytes]]


def tree_of(serialised: bytes) -> Tree:
    """The tree in what `Expression.serialize()` of the runtime gives."""
    checked = _message(_bytes(_message(serialised), _ANY_VALUE))
    source = _message(_bytes(checked, _SOURCE_INFO))
    places: dict[int, int] = {}
    for entry in source.get(_POSITIONS, ()):
        assert isinstance(entry, bytes)
        pair = _message(entry)
        places[_int(pair, 1)] = _int(pair, 2)
    return _tree(_bytes(checked, _EXPR), places)


def _tree(data: bytes, places: Mapping[int, int]) -> Tree:
    fields = _message(data)
    at = places.get(_int(fields, 2), 0)
    if 3 in fields:
        return Const(at, _const(_bytes(fields, 3)))
    if 4 in fields:
        return Name(at, _text(_message(_bytes(fields, 4)), 1))
    if 5 in fields:
        inner = _message(_bytes(fields, 5))
        return Select(at, _tree(_bytes(inner, 1), places), _text(inner, 2), bool(_int(inner, 3)))
    if 6 in fields:
        inner = _message(_bytes(fields, 6))
        target = _tree(_bytes(inner, 1), places) if 1 in inner else None
        return Call(at, _text(inner, 2), target, tuple(_tree(each, places) for each in _each(inner, 3)))
    if 7 in fields:
        return Made(at, tuple(_tree(each, places) for each in _each(_message(_bytes(fields, 7)), 1)))
    if 8 in fields:
        entries = [_message(each) for each in _each(_message(_bytes(fields, 8)), 2)]
        return Made(at, tuple(_tree(part, places) for entry in entries for n in (3, 4) for part in _each(entry, n)))
    inner = _message(_bytes(fields, 9))
    bound = frozenset(_text(inner, n) for n in (1, 3, 8) if n in inner)
    parts = tuple(_tree(part, places) for n in (4, 5, 6, 7) for part in _each(inner, n))
    return Loop(at, _tree(_bytes(inner, 2), places), bound, parts)


def _const(data: bytes) -> str | int | float | bool | bytes | None:
    fields = _message(data)
    if 6 in fields:
        return _text(fields, 6)
    if 7 in fields:
        return _bytes(fields, 7)
    if 5 in fields:
        found: float = struct.unpack("<d", _bytes(fields, 5))[0]
        return found
    if 2 in fields:
        return bool(_int(fields, 2))
    if 3 in fields:
        number = _int(fields, 3)
        return number - (1 << 64) if number >> 63 else number
    return _int(fields, 4) if 4 in fields else None


def children(tree: Tree) -> tuple[Tree, ...]:
    """What stands directly below, loops aside: their names need a look of their own."""
    match tree:
        case Select():
            return (tree.operand,)
        case Call():
            return (*((tree.target,) if tree.target is not None else ()), *tree.args)
        case Made():
            return tree.parts
        case Loop():
            return (tree.over, *tree.inside)
        case _:
            return ()


# Protobuf's wire format: a varint, eight bytes, or a length and so many bytes.


def _message(data: bytes) -> dict[int, list[int | bytes]]:
    fields: dict[int, list[int | bytes]] = {}
    for number, value in _read(data):
        fields.setdefault(number, []).append(value)
    return fields


def _read(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        size = 8
        if key & 7 == 2:
            size, at = _varint(data, at)
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _int(fields: _Fields, number: int) -> int:
    found = fields[number][-1] if number in fields else 0
    assert isinstance(found, int)
    return found


def _bytes(fields: _Fields, number: int) -> bytes:
    found = fields[number][-1] if number in fields else b""
    assert isinstance(found, bytes)
    return found


def _text(fields: _Fields, number: int) -> str:
    return _bytes(fields, number).decode()


def _each(fields: _Fields, number: int) -> Iterator[bytes]:
    for each in fields.get(number, ()):
        assert isinstance(each, bytes)
        yield each
