"""What CEL says of an expression that it does not take, in our own sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from headrace.pipeline.problems import nearest, shown

_PLACE = re.compile(r"<input>:(-?\d+):(-?\d+): (.*?)(?:\n|$)", re.DOTALL)
_UNDECLARED = re.compile(r"undeclared reference to '([^']*)'")
_OVERLOAD = re.compile(r"found no matching overload for '([^']*)' applied to '([^']*)'")
_TAKES = {
    "hash": "1 to 8 globs, each a string",
    "json": "one string",
    **dict.fromkeys(("success", "failure", "always", "canceled"), "nothing: write `()` behind it"),
}
_HYPHENED = re.compile(r"(?<![\w.-])[A-Za-z_][\w.]*(?:-\w+)+")
_OPERATORS = {"_==_": "==", "_!=_": "!=", "_<_": "<", "_<=_": "<=", "_>_": ">", "_>=_": ">=", "_+_": "+", "_-_": "-",
              "_*_": "*", "_/_": "/", "_%_": "%", "_&&_": "&&", "_||_": "||", "!_": "!", "-_": "-", "@in": "in",
              "_?_:_": "? :", "_[_]": "[ ]"}  # fmt: skip


def sentence_of(
    text: str,
    said: str,
    known: tuple[str, ...],
    elsewhere: Mapping[str, str],
    near: Callable[[str, tuple[str, ...]], str] = nearest,
) -> tuple[int, str]:
    """Where in `text` it is (an offset in characters), and a sentence. `known`: names and functions that may stand
    there; `elsewhere`: those of other places, and the sentence that says where they are known."""
    found = _PLACE.search(said)
    if "recursion depth" in said or "recursion limit" in said:
        return 0, "the expression is nested too deep; split it"
    if found is None:
        return 0, "the expression cannot be read"
    at, message = _offset(text, int(found[1]), int(found[2])), found[3]
    if (undeclared := _UNDECLARED.search(message)) is not None:
        name = undeclared[1].partition(".")[0]
        if not text.startswith(name, at):  # the runtime points at the end of a path, or behind a function's name
            stands = re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text)
            at = stands.start() if stands else at
        return at, _unknown(text, name, known, elsewhere, near)
    if (overload := _OVERLOAD.search(message)) is not None:
        return at, _no_overload(overload[1], overload[2])
    if message.startswith("Syntax error"):
        if at >= len(text.rstrip()):
            return at, "the expression ends too early"
        return at, f"the expression cannot go on with {shown(text[at : at + 20].strip() or text[-10:])}"
    return at, clause_of(message)


def _offset(text: str, line: int, column: int) -> int:
    lines = text.split("\n")
    if not 1 <= line <= len(lines):
        return 0
    return sum(len(each) + 1 for each in lines[: line - 1]) + max(column - 1, 0)


def _unknown(
    text: str,
    root: str,
    known: tuple[str, ...],
    elsewhere: Mapping[str, str],
    near_of: Callable[[str, tuple[str, ...]], str],
) -> str:
    if root in known and root in _TAKES:
        return f"`{root}` takes {_TAKES[root]}"
    if (why := elsewhere.get(root)) is not None:
        return why
    for path in _HYPHENED.findall(text):
        before, _, name = path.rpartition(".")
        if before and root in name.split("-")[1:]:
            return f"a name with a hyphen is written `{before}['{name}']`"
    near = near_of(root, known)
    hint = f"; did you mean `{near}`?" if near else f"; known here are {', '.join(f'`{each}`' for each in known)}"
    return f"{shown(root)} is not known here{hint}"


def _no_overload(function: str, types: str) -> str:
    operator = _OPERATORS.get(function)
    operands = types.strip("()")
    if operator in {"==", "!="}:
        one, other = _two(operands)
        return f"`{operator}` compares {one} with {other}: they are never equal"
    if operator is not None:
        return f"`{operator}` cannot be used on ({operands})"
    if function == "hash":
        return f"`hash` takes 1 to 8 globs, each a string, not ({operands})"
    return f"`{function}` cannot be called with ({operands})"


def _two(operands: str) -> tuple[str, str]:
    depth = 0
    for at, each in enumerate(operands):
        depth += {"(": 1, ")": -1}.get(each, 0)
        if each == "," and depth == 0:
            return operands[:at].strip(), operands[at + 1 :].strip()
    return operands, ""


def clause_of(said: str) -> str:
    """One clause of what the runtime says, without its status words."""
    text = re.sub(r"^[A-Z_]+: ", "", said.partition("\n")[0]).replace("ERROR: ", "")
    text = re.sub(r"^<input>:-?\d+:-?\d+: ", "", text)
    text = re.sub(r" \[[A-Z_]+\]$", "", text)
    missing = re.match(r'Key not found in map : "(.*)"', text)
    if missing is not None:
        return f"there is no {shown(missing[1])}"
    return text[:300] or "it could not be computed"
