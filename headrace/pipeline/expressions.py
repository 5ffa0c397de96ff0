"""Expressions: CEL behind one small door, for `if:` and `${{ }}` alike.

`check` judges an expression when a file is loaded: syntax, names and types by CEL's own checker, and beyond it each
path into a mapping whose keys are known. `evaluate` computes a checked one from values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from cel_expr_python import cel

from headrace.pipeline.cel_sentences import clause_of, sentence_of
from headrace.pipeline.cel_tree import Tree, tree_of
from headrace.pipeline.known import Checked, Keys, Known, Mistake, Near, Scope, Type, Use
from headrace.pipeline.paths import calls, never_equal, path_mistake, patterns, uses
from headrace.pipeline.problems import nearest

MAX_CHARS = 4_000
MOST_ENVIRONMENTS = 64
MOST_DIFFERENT, MOST_CHARS = 2_000, 100_000
"""Of the expressions of one file: how many different ones, and how long together."""
MOST_HASH_GLOBS = 8
STATUS = frozenset({"success", "failure", "always", "canceled"})
FUNCTIONS = STATUS | {"hash", "json"}
_ROOTS = ("run", "event", "branch", "tag", "commit", "params", "env", "matrix", "shard", "needs", "steps", "outputs")
_Variables = tuple[tuple[str, Type | None], ...]
_Key = tuple[_Variables, frozenset[str]]


class ExpressionFailed(Exception):
    """An expression that could not be computed from these values. The message is one clause, without a place."""


class Checker:
    """Checks the expressions of one file. CEL is set up once for equal names, and an equal text compiled once.

    `near` finds the name that was probably meant. A file of a stranger must not cost seconds: once there are too many
    expressions, `is_full` says so, and the others pass unchecked.
    """

    def __init__(self, near: Near = nearest) -> None:
        self._near = near
        self._environments: dict[_Key, Any] = {}
        self._compiled: dict[tuple[str, _Key], _Compiled | str] = {}
        self._uses: dict[str, Checked | None] = {}
        self._texts: set[str] = set()
        self._chars = 0
        self.is_full = False

    def check(self, text: str, scope: Scope) -> Checked | list[Mistake]:
        """What the expression is and uses, or what is wrong with it."""
        if not text.strip():
            return [Mistake(0, "the expression is empty")]
        if len(text) > MAX_CHARS:
            return [Mistake(0, f"the expression has {len(text):,} characters; one has at most {MAX_CHARS:,}")]
        key = (_variables(text, scope), scope.functions)
        if (text, key) not in self._compiled and not self._has_room(text):
            return Checked(Type.ANY, (), frozenset())
        found = self._compile(text, key)
        if isinstance(found, str):
            known = (*scope.names, *sorted(scope.functions))
            at, message = sentence_of(text, found, known, scope.elsewhere, self._near)
            return [Mistake(at, message)]
        mistakes = [each for use in found.uses if (each := path_mistake(use, scope, self._near)) is not None]
        mistakes += never_equal(found.tree, scope)
        return mistakes or Checked(found.type, found.uses, found.calls, found.patterns)

    def uses_of(self, text: str) -> Checked | None:
        """What an expression uses, whatever stands where; None for one that does not compile."""
        if text not in self._uses:
            found = self.check(text, _ANYWHERE)
            self._uses[text] = found if isinstance(found, Checked) else None
        return self._uses[text]

    def _has_room(self, text: str) -> bool:
        if text not in self._texts:
            self._texts.add(text)
            self._chars += len(text)
        self.is_full = (
            self.is_full
            or self._chars > MOST_CHARS
            or len(self._texts) > MOST_DIFFERENT
            or len(self._compiled) > 3 * MOST_DIFFERENT
        )
        return not self.is_full

    def _compile(self, text: str, key: _Key) -> _Compiled | str:
        """The compiled expression, or what CEL says of it."""
        found = self._compiled.get((text, key))
        if found is None:
            found = self._compiled[text, key] = _compiled(text, self._environment(key))
        return found

    def _environment(self, key: _Key) -> Any:
        """CEL set up for these names. Only so many are kept: each takes some 100 KiB."""
        found = self._environments.pop(key, None)
        if found is None:
            variables, functions = key
            types = {name: _CEL_TYPES[each] if each else _MAP for name, each in variables}
            found = cel.NewEnv(variables=types, functions=_declarations(functions))
            if len(self._environments) >= MOST_ENVIRONMENTS:
                del self._environments[next(iter(self._environments))]
        self._environments[key] = found
        return found


@dataclass(frozen=True, slots=True)
class _Compiled:
    tree: Tree
    type: Type
    uses: tuple[Use, ...]
    calls: frozenset[str]
    patterns: tuple[Tree, ...]


def _compiled(text: str, environment: Any) -> _Compiled | str:
    try:
        found = environment.compile(text)
    except (RuntimeError, UnicodeError) as error:
        return str(error) or "it cannot be read"
    tree = tree_of(found.serialize())
    called = frozenset(calls(tree)) & FUNCTIONS
    kind = _type_of(found.return_type().name())
    return _Compiled(tree, kind, tuple(uses(tree, frozenset())), called, tuple(patterns(tree)))


def check(text: str, scope: Scope) -> Checked | list[Mistake]:
    """What one expression is and uses, or what is wrong with it."""
    return Checker().check(text, scope)


def evaluate(text: str, values: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """The value of an expression that was checked before, as plain data: None, bool, int, float, str, list, dict.

    `functions`: status functions and `hash`, where they may be called. Raises `ExpressionFailed`.
    """
    variables = dict.fromkeys(values, cel.Type.DYN)
    try:
        # Made anew each time: the functions are those of one evaluation.
        env = cel.NewEnv(variables=variables, functions=_declarations(frozenset(functions or ()) | {"json"}, functions))
        return _computed(env.compile(text), values)
    except _CEL_ERRORS as error:
        raise ExpressionFailed(clause_of(str(error))) from error


class Evaluator:
    """Evaluates expressions that call no function of the outside: an equal one is compiled once for equal names."""

    def __init__(self) -> None:
        self._environments: dict[frozenset[str], Any] = {}
        self._compiled: dict[tuple[str, frozenset[str]], Any] = {}

    def evaluate(
        self, text: str, values: Mapping[str, Any], functions: Mapping[str, Callable[..., Any]] | None = None
    ) -> Any:
        """The value of an expression that was checked before, as plain data. Raises `ExpressionFailed`."""
        assert not functions
        names = frozenset(values)
        key = (text, names)
        try:
            if names not in self._environments:
                variables = dict.fromkeys(values, cel.Type.DYN)
                self._environments[names] = cel.NewEnv(variables=variables, functions=_declarations({"json"}))
            if key not in self._compiled:
                self._compiled[key] = self._environments[names].compile(text)
            return _computed(self._compiled[key], values)
        except _CEL_ERRORS as error:
            raise ExpressionFailed(clause_of(str(error))) from error


def _computed(compiled: Any, values: Mapping[str, Any]) -> Any:
    found = compiled.eval(data=dict(values))
    value = found.plain_value()
    if found.type() == cel.Type.ERROR:
        raise ExpressionFailed(clause_of(str(value)))
    return _plain(value)


def uses_of(text: str) -> Checked | None:
    """What an expression uses, whatever stands where; None for one that does not compile."""
    return Checker().uses_of(text)


_CEL_TYPES = {
    Type.TEXT: cel.Type.STRING,
    Type.INT: cel.Type.INT,
    Type.DOUBLE: cel.Type.DOUBLE,
    Type.BOOL: cel.Type.BOOL,
    Type.LIST: cel.Type.List(cel.Type.DYN),
    Type.ANY: cel.Type.DYN,
}
_MAP = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
_CEL_ERRORS = (RuntimeError, ValueError, TypeError, OverflowError, UnicodeError)
_PLAIN_NAME = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z_][A-Za-z0-9_]*")
_ANYWHERE = Scope(dict.fromkeys(_ROOTS, Type.ANY), FUNCTIONS)


def _declarations(names: AbstractSet[str], impls: Mapping[str, Callable[..., Any]] | None = None) -> list[Any]:
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


def _variables(text: str, scope: Scope) -> _Variables:
    """The names of a scope, and each path in it that the text can mean, with their types: CEL then knows the type of
    such a path. A mapping has none."""
    words = frozenset(_PLAIN_NAME.findall(text))
    found: list[tuple[str, Type | None]] = []
    for name, known in scope.names.items():
        found.append((name, known if isinstance(known, Type) else None))
        if name in words:
            found += _leaves(name, known, words)
    return tuple(found)


def _leaves(path: str, known: Known, words: frozenset[str]) -> Iterator[tuple[str, Type]]:
    if not isinstance(known, Keys):
        return
    for name in sorted(word for word in words if word in known.names):
        inner = known.names[name]
        if isinstance(inner, Keys):
            yield from _leaves(f"{path}.{name}", inner, words)
        elif inner is not Type.ANY:
            yield f"{path}.{name}", inner


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
