"""What the loader looks for in an expression beyond CEL's own checks: paths into mappings, and vain comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

from headrace.pipeline.cel_tree import Call, Const, Loop, Name, Select, Tree, children
from headrace.pipeline.known import Keys, Known, Mistake, Near, Scope, Type, Use
from headrace.pipeline.problems import shown


def uses(tree: Tree, bound: frozenset[str]) -> Iterator[Use]:
    """Each path that begins with a name from outside."""
    path = _path(tree)
    if path is not None:
        root = path.path[0]
        if root not in bound:
            yield path
        return
    match tree:
        case Loop():
            yield from uses(tree.over, bound)
            for part in tree.inside:
                yield from uses(part, bound | tree.bound)
        case Call(function="_[_]", args=(of, index)) if (outer := _path(of)) is not None:
            # An index that is known only later: what stands before it is looked at all the same.
            if outer.path[0] not in bound:
                yield outer
            yield from uses(index, bound)
        case _:
            for part in children(tree):
                yield from uses(part, bound)


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


def path_mistake(use: Use, scope: Scope, near_of: Near) -> Mistake | None:
    """What is wrong with a path into mappings whose keys are known."""
    at: Known | None = scope.names.get(use.path[0])
    for depth, step in enumerate(use.path[1:], 1):
        if not isinstance(at, Keys):
            return None
        inner = at.names.get(step)
        if inner is None:
            if at.open:
                return None
            above = ".".join(use.path[:depth])
            near = near_of(step, tuple(at.names))
            hint = f"; did you mean `{near}`?" if near else f"; it has {_listed(at.names)}" if at.names else ""
            return Mistake(use.places[depth], f"`{above}` has no {shown(step)}{at.of}{hint}")
        at = inner
    return None


def _listed(names: Mapping[str, Known]) -> str:
    shown_names = [shown(each) for each in islice(names, 12)]
    return ", ".join(shown_names) + (", …" if len(names) > 12 else "")


def never_equal(tree: Tree, scope: Scope, bound: frozenset[str] = frozenset()) -> Iterator[Mistake]:
    """Comparisons of two known types that can never be equal; CEL finds those that it knows the types of."""
    if isinstance(tree, Call) and tree.function in {"_==_", "_!=_"}:
        one, other = (_static_type(each, scope, bound) for each in tree.args)
        if one and other and one != other:
            yield Mistake(tree.at, f"`{tree.function.strip('_')}` compares {one} with {other}: they are never equal")
    if isinstance(tree, Loop):
        bound |= tree.bound
    for part in children(tree):
        yield from never_equal(part, scope, bound)


def _static_type(tree: Tree, scope: Scope, bound: frozenset[str]) -> str:
    if isinstance(tree, Const):
        return {str: "string", bool: "bool", int: "int", float: "double"}.get(type(tree.value), "")
    path = _path(tree)
    known = _known(path.path, scope) if path and path.path[0] not in bound else None
    return known.value if isinstance(known, Type) and known not in {Type.ANY, Type.LIST} else ""


def calls(tree: Tree) -> Iterator[str]:
    """The functions and operators that are called."""
    if isinstance(tree, Call) and tree.target is None:
        yield tree.function
    for part in children(tree):
        yield from calls(part)


def patterns(tree: Tree) -> Iterator[Tree]:
    """What stands where a regular expression is wanted."""
    if isinstance(tree, Call) and tree.function == "matches":
        yield tree.args[-1]
    for part in children(tree):
        yield from patterns(part)
