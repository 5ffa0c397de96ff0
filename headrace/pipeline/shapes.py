"""Shapes: what a value of the file may look like. Each reads a node, notes what is wrong with it, and goes on.

`read` returns the value, or None where the node holds none that could be used; the mistake is then noted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from headrace.pipeline.model import Condition, Late, Placed, Sees
from headrace.pipeline.nodes import Kind, Mapping, Node, Scalar, Sequence
from headrace.pipeline.problems import Report, shown
from headrace.pipeline.templates import OPENING, Unclosed
from headrace.pipeline.values import Expression, Template, template

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_NAME = 100
MAX_TEMPLATE = 65_536
MAX_EXPRESSIONS = 200
"""Of one text."""
MOST_EXPRESSIONS = 10_000
"""Of a file, equal ones counted."""


Schema = dict[str, Any]
"""JSON Schema, draft 2020-12. It knows what a single value looks like; what holds between values, `load` knows."""
TEXT: Schema = {"type": ["string", "number", "boolean"]}
"""Numbers and flags are taken as they are written."""


class Shape(Protocol):
    """What a value may look like."""

    def schema(self) -> Schema:
        """What editors check it by."""

    def read(self, node: Node, what: str, report: Report) -> Any:
        """The value, or None with the mistake noted. `what` names it for people."""


def kind_of(node: Node) -> str:
    """What a node is, for people."""
    match node:
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"
        case Scalar():
            return node.kind.value


def scalar(node: Node, what: str, report: Report, wanted: str = "a text") -> Scalar | None:
    """The node as a scalar with something in it and without expressions, else None with the mistake noted."""
    if not isinstance(node, Scalar):
        report.add(node.place, f"{what} must be {wanted}, but this is {kind_of(node)}")
        return None
    if OPENING in node.text:
        place = node.place_of(node.text.index(OPENING))
        report.add(place, f"{what} takes no `${{{{ }}}}`: write the value as it is")
        return None
    if node.kind is Kind.NULL:
        report.add(node.place, f"{what} is empty; write {wanted}, or remove it")
        return None
    return node


@dataclass(frozen=True, slots=True)
class Templated:
    """A value that may hold `${{ }}`: those are read by `shape` once their values are known."""

    shape: Shape
    sees: Sees

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"anyOf": [self.shape.schema(), {"type": "string", "pattern": r"\$\{\{"}]}

    def read(self, node: Node, what: str, report: Report) -> Any:
        """What `shape` reads, or a `Late`."""
        if not isinstance(node, Scalar) or OPENING not in node.text:
            return self.shape.read(node, what, report)
        found = template_of(node, report)
        return None if found is None else Late(found, node, self.shape, what, self.sees)


def template_of(node: Scalar, report: Report) -> Template | None:
    """The text of a scalar with its expressions, or None with the mistake noted."""
    if len(node.text) > MAX_TEMPLATE or node.text.count(OPENING) > MAX_EXPRESSIONS:
        message = f"a text with expressions has at most {MAX_TEMPLATE:,} characters and {MAX_EXPRESSIONS} expressions"
        report.add(node.place, f"{message}; keep long scripts in files of their own")
        return None
    before, report.expressions = report.expressions, report.expressions + node.text.count(OPENING)
    if report.expressions > MOST_EXPRESSIONS:
        if before <= MOST_EXPRESSIONS:
            report.add(node.place, f"the file holds more than {MOST_EXPRESSIONS:,} expressions; split the pipeline")
        return None
    try:
        return template(node.text, lambda at: report.where(node.place_of(at)))
    except Unclosed as error:
        report.add(node.place_of(error.at), "this `${{` is never closed; write `}}` behind the expression")
        return None


@dataclass(frozen=True, slots=True)
class If:
    """A condition: one expression, the whole value."""

    sees: Sees

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": ["string", "boolean"]}

    def read(self, node: Node, what: str, report: Report) -> Condition | None:
        """The condition, not yet checked."""
        if isinstance(node, Scalar) and node.text.strip().startswith(OPENING):
            report.add(node.place, f"{what} is an expression already: write it without `${{{{` and `}}}}`")
            return None
        found = scalar(node, what, report, "an expression")
        if found is None:
            return None
        return Condition(Expression(found.text, report.where(found.place_of(0))), found, self.sees)


@dataclass(frozen=True, slots=True)
class Script:
    """The script of a `run:` step. Expressions in it may only be the cell's own values."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return TEXT

    def read(self, node: Node, what: str, report: Report) -> str | Late | None:
        """The script as it was written."""
        if isinstance(node, Scalar) and OPENING in node.text:
            found = template_of(node, report)
            return None if found is None else Late(found, node, self, what, Sees.CELL)
        found_text = scalar(node, what, report, "a script")
        if found_text is not None and not found_text.text.strip():
            report.add(node.place, f"{what} holds no command")
            return None
        return found_text.text if found_text else None


@dataclass(frozen=True, slots=True)
class Line:
    """A text of one line for people, at most `limit` characters."""

    limit: int = 200

    def schema(self) -> Schema:
        """What editors check it by."""
        return {**TEXT, "minLength": 1, "maxLength": self.limit}

    def read(self, node: Node, what: str, report: Report) -> str | None:
        """The text."""
        found = scalar(node, what, report)
        if found is None:
            return None
        if not found.text.strip() or not found.text.isprintable() or len(found.text) > self.limit:
            report.add(node.place, f"{what} must be one line of 1 to {self.limit} characters")
            return None
        return found.text


@dataclass(frozen=True, slots=True)
class Name:
    """A name: a letter or `_`, then letters, digits, `_` and `-`, and `.` where there may be `dots`. Returned also
    when it is wrong, once noted."""

    dots: bool = False
    """No expression names it, so that a value such as `3.12` may be a part of it."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "string", "pattern": f"^{(DOTTED if self.dots else NAME).pattern}$", "maxLength": MAX_NAME}

    def read(self, node: Node, what: str, report: Report) -> Placed[str] | None:
        """The name at its place."""
        found = scalar(node, what, report, "a name")
        if found is None:
            return None
        if not is_name(found.text, dots=self.dots):
            report.add(node.place, bad_name(what, found.text, dots=self.dots))
        return Placed(clipped(found.text), node.place)


def clipped(name: str) -> str:
    """A name, or the beginning of one that is too long and refused: other sentences repeat it."""
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}…"


def is_name(text: str, *, dots: bool = False) -> bool:
    """Whether a text is a name."""
    return len(text) <= MAX_NAME and bool((DOTTED if dots else NAME).fullmatch(text))


def bad_name(what: str, text: str, *, dots: bool = False) -> str:
    """The sentence for a name that is none."""
    if len(text) > MAX_NAME:
        return f"{what} has {len(text):,} characters; a name has at most {MAX_NAME}"
    then = "letters, digits, `_`, `-` or `.`" if dots else "letters, digits, `_` or `-`"
    return f"{what} cannot be {shown(text)}; a name is a letter or `_`, then {then}"


@dataclass(frozen=True, slots=True)
class Image:
    """The reference of a container image."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {**TEXT, "pattern": "^[A-Za-z0-9]"}

    def read(self, node: Node, what: str, report: Report) -> Placed[str] | None:
        """The reference at its place."""
        found = scalar(node, what, report, "an image such as `python:3.12`")
        if found is None:
            return None
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}", found.text):
            report.add(node.place, f"{what} cannot be {shown(found.text)}; write an image such as `python:3.12`")
            return None
        return Placed(found.text, node.place)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the words of an enum."""

    words: type[StrEnum]
    left_out: tuple[str, ...] = ()

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"enum": [str(each) for each in self.words if str(each) not in self.left_out]}

    def read(self, node: Node, what: str, report: Report) -> Placed[StrEnum] | None:
        """The word at its place."""
        known = [str(each) for each in self.words if str(each) not in self.left_out]
        listed = ", ".join(f"`{each}`" for each in known[:-1]) + f" or `{known[-1]}`"
        found = scalar(node, what, report, listed)
        if found is None:
            return None
        if found.text not in known:
            suggestion = report.suggestion(found.text, known)
            report.add(node.place, f"{what} must be {listed}, not {shown(found.text)}{suggestion}")
            return None
        return Placed(self.words(found.text), node.place)


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "boolean"}

    def read(self, node: Node, what: str, report: Report) -> bool | None:
        """The flag."""
        found = scalar(node, what, report, "`true` or `false`")
        if found is None:
            return None
        if found.kind is not Kind.BOOL:
            report.add(node.place, f"{what} must be `true` or `false` without quotes, not {shown(found.text)}")
            return None
        return found.text.lower() == "true"


@dataclass(frozen=True, slots=True)
class RelativePath:
    """A path inside the workspace; a `glob` keeps its wildcards."""

    glob: bool = False

    def schema(self) -> Schema:
        """What editors check it by."""
        return {**TEXT, "pattern": "^[^/~]"}

    def read(self, node: Node, what: str, report: Report) -> str | None:
        """The path without `.` parts and doubled slashes; the workspace itself is an empty text."""
        found = scalar(node, what, report, "a path in the workspace")
        if found is None:
            return None
        text, parts = found.text, found.text.split("/")
        wrong = ""
        if text.startswith(("/", "~")):
            wrong = "is not inside the workspace; write it relative to the workspace"
        elif ".." in parts:
            wrong = "may not contain `..`; it must stay inside the workspace"
        elif not text.isprintable() or not text.strip() or len(text.encode()) > 4096:
            wrong = "is no path; write printable characters, at most 4,096 bytes"
        clean = "/".join(part for part in parts if part not in {"", "."})
        if not wrong and self.glob and not clean:
            wrong = "names the workspace itself; write what is in it, such as `**`"
        if wrong:
            report.add(node.place, f"{what}: {shown(text)} {wrong}")
            return None
        return clean
