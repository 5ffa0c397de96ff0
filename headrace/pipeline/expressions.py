"""Expressions: CEL behind one small door, for `if:` and `${{ }}` alike.

`check` judges an expression when a file is loaded: syntax, names and types by CEL's own checker, and beyond it each
path into a mapping whose keys are known. `evaluate` computes a checked one from values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cel_expr_python import cel

from headrace.pipeline.cel_sentences import clause_of, sentence_of
from headrace.pipeline.cel_tree import Call, Const, Loop, Name, Select, Tree, children, tree_of
from headrace.pipeline.problems import nearest, shown

MAX_CHARS = 4_000
MOST_HASH_GLOBS = 8
STATUS = frozenset({"success", "failure", "always", "canceled"})
FUNCTIONS = STATUS | {"hash", "json"}


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


class ExpressionFailed(Exception):
    """An expression that could not be computed from these values. The message is one clause, without a place."""


def check(text: str, scope: Scope) -> Checked | list[Mistake]:
    """What the expression is and uses, or what is wrong with it."""
    if not text.strip():
        return [Mistake(0, "the expression is empty")]
    if len(text) > MAX_CHARS:
        return [Mistake(0, f"the expression has {len(text):,} characters; one has at most {MAX_CHARS:,}")]
    try:
        compiled = _checking(scope).compile(text)
    except (RuntimeError, UnicodeError) as error:
        at, message = sentence_of(text, str(error), (*scope.names, *sorted(scope.functions)), scope.elsewhere)
        return [Mistake(at, message)]
    tree = tree_of(compiled.serialize())
    uses = tuple(_uses(tree, frozenset()))
    mistakes = [each for use in uses if (each := _path_mistake(use, scope)) is not None]
    mistakes += _never_equal(tree, scope)
    calls = frozenset(_calls(tree))
    return mistakes or Checked(_type_of(compiled.return_type().name()), uses, calls & FUNCTIONS)


def evaluate(text: str, values: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """The value of an expression that was checked before, as plain data: None, bool, int, float, str, list, dict.

    `functions`: status functions and `hash`, where they may be called. Raises `ExpressionFailed`.
    """
    variables = dict.fromkeys(values, cel.Type.DYN)
    try:
        # Made anew each time: the functions are those of one evaluation, and all of it takes some 40 microseconds.
        env = cel.NewEnv(variables=variables, functions=_declarations(frozenset(functions or ()) | {"json"}, functions))
        found = env.compile(text).eval(data=dict(values))
        value = found.plain_value()
        failed = found.type() == cel.Type.ERROR
    except (RuntimeError, ValueError, TypeError, OverflowError, UnicodeError) as error:
        raise ExpressionFailed(clause_of(str(error))) from error
    if failed:
        raise ExpressionFailed(clause_of(str(value)))
    return _plain(value)


def uses_of(text: str) -> Checked | None:
    """What an expression uses, whatever stands where; None for one that does not compile."""
    found = check(text, Scope(dict.fromkeys(_ROOTS, Type.ANY), FUNCTIONS))
    return found if isinstance(found, Checked) else None


_ROOTS = ("run", "event", "branch", "tag", "commit", "params", "env", "matrix", "shard", "needs", "steps", "outputs")
_CEL_TYPES = {
    Type.TEXT: cel.Type.STRING,
    Type.INT: cel.Type.INT,
    Type.DOUBLE: cel.Type.DOUBLE,
    Type.BOOL: cel.Type.BOOL,
    Type.LIST: cel.Type.List(cel.Type.DYN),
    Type.ANY: cel.Type.DYN,
}
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _declarations(names: frozenset[str], impls: Mapping[str, Callable[..., Any]] | None = None) -> list[Any]:
    """The functions of an environment; without `impls` they are known and do nothing, which is all a check needs."""
    given = impls or {}
    found = []
    for name in sorted(names):
        impl = _json if name == "json" else given.get(name, _nothing)
        counts = range(1, MOST_HASH_GLOBS + 1) if name == "hash" else (1,) if name == "json" else (0,)
        kind = {"hash": cel.Type.STRING, "json": cel.Type.DYN}.get(name, cel.Type.BOOL)
        overloads = [
            cel.Overload(f"{name}_{n}", return_type=kind, parameters=[cel.Type.STRING] * n, impl=impl) for n in counts
        ]
        found.append(cel.FunctionDecl(name, overloads))
    return found


def _nothing(*_: str) -> None:
    """Stands for a function while an expression is only checked."""


def _json(text: str) -> Any:
    return json.loads(text)


def _checking(scope: Scope) -> Any:
    """An environment in which CEL knows each known path as a variable of its own, and so its type."""
    variables = {}
    for name, known in scope.names.items():
        variables[name] = cel.Type.Map(cel.Type.STRING, cel.Type.DYN) if isinstance(known, Keys) else _CEL_TYPES[known]
        variables.update(_leaves(name, known))
    return cel.NewEnv(variables=variables, functions=_declarations(scope.functions))


def _leaves(path: str, known: Known) -> Iterator[tuple[str, Any]]:
    if not isinstance(known, Keys):
        return
    for name, inner in known.names.items():
        if not _PLAIN_NAME.fullmatch(name):
            continue
        if isinstance(inner, Keys):
            yield from _leaves(f"{path}.{name}", inner)
        elif inner is not Type.ANY:
            yield f"{path}.{name}", _CEL_TYPES[inner]


def _type_of(name: str) -> Type:
    if name.startswith("LIST"):
        return Type.LIST
    known = {"STRING": Type.TEXT, "INT": Type.INT, "UINT": Type.INT, "DOUBLE": Type.DOUBLE, "BOOL": Type.BOOL}
    return known.get(name, Type.ANY)


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [_plain(each) for each in value]
        case dict():
            return {str(key): _plain(each) for key, each in value.items()}
        case _:
            raise ExpressionFailed(f"the value is a {type(value).__name__}, which has no form outside of an expression")


# What the loader looks for beyond CEL's own checks


def _uses(tree: Tree, bound: frozenset[str]) -> Iterator[Use]:
    """Each path that begins with a name from outside."""
    path = _path(tree)
    if path is not None:
        root = path.path[0]
        if root not in bound:
            yield path
        return
    match tree:
        case Loop():
            yield from _uses(tree.over, bound)
            for part in tree.inside:
                yield from _uses(part, bound | tree.bound)
        case Call(function="_[_]", args=(of, index)) if (outer := _path(of)) is not None:
            # An index that is known only later: what stands before it is looked at all the same.
            if outer.path[0] not in bound:
                yield outer
            yield from _uses(index, bound)
        case _:
            for part in children(tree):
                yield from _uses(part, bound)


def _path(tree: Tree) -> Use | None:
    match tree:
        case Name():
            parts = tuple(tree.name.split("."))
            return Use(parts, (tree.at,) * len(parts))
        case Select():
            inner = _path(tree.operand)
            return None if inner is None else Use((*inner.path, tree.field), (*inner.places, tree.at + 1))
        case Call(function="_[_]", args=(of, Const(value=str() as key) as index)):
            inner = _path(of)
            return None if inner is None else Use((*inner.path, key), (*inner.places, index.at))
        case _:
            return None


def _known(path: tuple[str, ...], scope: Scope) -> Known | None:
    """What is at the end of a path; None where it leaves what is known."""
    at: Known | None = scope.names.get(path[0])
    for step in path[1:]:
        if not isinstance(at, Keys):
            return Type.ANY if at is Type.ANY else None
        at = at.names.get(step, Type.ANY if at.open else None)
    return at


def _path_mistake(use: Use, scope: Scope) -> Mistake | None:
    at: Known | None = scope.names.get(use.path[0])
    for depth, step in enumerate(use.path[1:], 1):
        if not isinstance(at, Keys):
            return None
        inner = at.names.get(step)
        if inner is None:
            if at.open:
                return None
            above = ".".join(use.path[:depth])
            near = nearest(step, tuple(at.names))
            hint = f"; did you mean `{near}`?" if near else f"; it has {_listed(at.names)}"
            return Mistake(use.places[depth], f"`{above}` has no {shown(step)}{at.of}{hint}")
        at = inner
    return None


def _listed(names: Mapping[str, Known]) -> str:
    shown_names = [shown(each) for each in list(names)[:12]]
    return ", ".join(shown_names) + (", …" if len(names) > 12 else "") if shown_names else "nothing"


def _never_equal(tree: Tree, scope: Scope, bound: frozenset[str] = frozenset()) -> Iterator[Mistake]:
    """Comparisons of two known types that can never be equal; CEL finds those that it knows the types of."""
    if isinstance(tree, Call) and tree.function in {"_==_", "_!=_"}:
        one, other = (_static_type(each, scope, bound) for each in tree.args)
        if one and other and one != other:
            yield Mistake(tree.at, f"`{tree.function.strip('_')}` compares {one} with {other}: they are never equal")
    if isinstance(tree, Loop):
        bound |= tree.bound
    for part in children(tree):
        yield from _never_equal(part, scope, bound)


def _static_type(tree: Tree, scope: Scope, bound: frozenset[str]) -> str:
    if isinstance(tree, Const):
        return {str: "string", bool: "bool", int: "int", float: "double"}.get(type(tree.value), "")
    path = _path(tree)
    known = _known(path.path, scope) if path and path.path[0] not in bound else None
    return known.value if isinstance(known, Type) and known not in {Type.ANY, Type.LIST} else ""


def _calls(tree: Tree) -> Iterator[str]:
    if isinstance(tree, Call) and tree.target is None:
        yield tree.function
    for part in children(tree):
        yield from _calls(part)
