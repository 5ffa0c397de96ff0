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
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_NAME = 100
MAX_VARIABLE_BYTES = 131_071
_DURATION = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII)
_UNITS_MS = (86_400_000, 3_600_000, 60_000, 1_000)


class Shape(Protocol):
    """What a value may look like."""

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

    def read(self, node: Node, what: str, report: Report) -> Any:
        """What `shape` reads, or a `Late`."""
        if not isinstance(node, Scalar) or OPENING not in node.text:
            return self.shape.read(node, what, report)
        found = template_of(node, report)
        return None if found is None else Late(found, node, self.shape, what, self.sees)


def template_of(node: Scalar, report: Report) -> Template | None:
    """The text of a scalar with its expressions, or None with the mistake noted."""
    try:
        return template(node.text, lambda at: report.where(node.place_of(at)))
    except Unclosed as error:
        report.add(node.place_of(error.at), "this `${{` is never closed; write `}}` behind the expression")
        return None


@dataclass(frozen=True, slots=True)
class If:
    """A condition: one expression, the whole value."""

    sees: Sees

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
    """A name: a letter or `_`, then letters, digits, `_` and `-`. Returned also when it is wrong, once noted."""

    def read(self, node: Node, what: str, report: Report) -> Placed[str] | None:
        """The name at its place."""
        found = scalar(node, what, report, "a name")
        if found is None:
            return None
        if not NAME.fullmatch(found.text) or len(found.text) > MAX_NAME:
            report.add(node.place, bad_name(what, found.text))
        return Placed(found.text, node.place)


def bad_name(what: str, text: str) -> str:
    """The sentence for a name that is none."""
    if len(text) > MAX_NAME:
        return f"{what} has {len(text)} characters; a name has at most {MAX_NAME}"
    return f"{what} cannot be {shown(text)}; a name is a letter or `_`, then letters, digits, `_` or `-`"


@dataclass(frozen=True, slots=True)
class Image:
    """The reference of a container image."""

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
class Duration:
    """A positive duration such as `90s`, `20m`, `1h30m`, `3d`."""

    max_days: int

    def read(self, node: Node, what: str, report: Report) -> int | None:
        """Milliseconds."""
        found = scalar(node, what, report, "a duration such as `90s`, `20m` or `1h30m`")
        if found is None:
            return None
        parts = _DURATION.fullmatch(found.text)
        if parts is None or not any(parts.groups()):
            hint = f"; did you mean `{found.text}s`?" if re.fullmatch("[0-9]{1,9}", found.text) else ""
            message = f"{what} must be a duration such as `90s`, `20m`, `1h30m` or `3d`, not {shown(found.text)}{hint}"
            report.add(node.place, message)
            return None
        total = sum(int(part or 0) * unit for part, unit in zip(parts.groups(), _UNITS_MS, strict=True))
        if not 0 < total <= self.max_days * _UNITS_MS[0]:
            report.add(node.place, f"{what} must be more than 0s and at most {self.max_days}d, not {shown(found.text)}")
            return None
        return total


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

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
class Whole:
    """A whole number from `least` to `most`."""

    most: int
    least: int = 0

    def read(self, node: Node, what: str, report: Report) -> int | None:
        """The number."""
        found = scalar(node, what, report, "a whole number")
        if found is None:
            return None
        fits = re.fullmatch("-?[0-9]{1,9}", found.text) and self.least <= int(found.text) <= self.most
        if not fits or found.kind is not Kind.NUMBER:
            wanted = f"a whole number from {self.least:,} to {self.most:,}"
            report.add(node.place, f"{what} must be {wanted}, not {shown(found.text)}")
            return None
        return int(found.text)


@dataclass(frozen=True, slots=True)
class Number:
    """A number more than 0, at most `most`."""

    most: float

    def read(self, node: Node, what: str, report: Report) -> float | None:
        """The number."""
        found = scalar(node, what, report, "a number")
        if found is None:
            return None
        fits = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", found.text) and 0 < float(found.text) <= self.most
        if not fits or found.kind is not Kind.NUMBER:
            report.add(node.place, f"{what} must be a number above 0, at most {self.most:g}, not {shown(found.text)}")
            return None
        return float(found.text)


_SIZE = re.compile(r"([0-9]{1,9})(B|KiB|MiB|GiB|TiB)", re.ASCII)
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True, slots=True)
class Size:
    """An amount of memory or disk such as `512MiB`."""

    least: int

    def read(self, node: Node, what: str, report: Report) -> int | None:
        """Bytes."""
        found = scalar(node, what, report, "a size such as `512MiB` or `4GiB`")
        if found is None:
            return None
        parts = _SIZE.fullmatch(found.text)
        if parts is None:
            near = re.fullmatch(r"([0-9]{1,9}) ?([kKmMgGtT])(i?[bB])?", found.text)
            hint = f"; did you mean `{near[1]}{near[2].upper()}iB`?" if near else ""
            report.add(node.place, f"{what} must be a size such as `512MiB` or `4GiB`, not {shown(found.text)}{hint}")
            return None
        size = int(parts[1]) * _SIZE_UNITS[parts[2]]
        if not self.least <= size < 1 << 50:
            report.add(node.place, f"{what} must be at least {self.least >> 20}MiB, not {shown(found.text)}")
            return None
        return size


@dataclass(frozen=True, slots=True)
class RelativePath:
    """A path inside the workspace; a `glob` keeps its wildcards."""

    glob: bool = False

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


@dataclass(frozen=True, slots=True)
class Variables:
    """Variables by name. Values are taken as text, as they were written: `1.10` stays `1.10`."""

    sees: Sees
    one: str = "variable"

    def read(self, node: Node, what: str, report: Report) -> dict[str, str | Late] | None:
        """Name to value; those that are wrong are left out."""
        if not isinstance(node, Mapping):
            report.add(node.place, f"{what} must be a mapping of names to values, but this is {kind_of(node)}")
            return None
        found: dict[str, str | Late] = {}
        for key, value in node.entries:
            name = key.text
            if not VARIABLE.fullmatch(name):
                message = (
                    f"{what} cannot set {shown(name)}; a {self.one} is a letter or `_`, then letters, digits or `_`"
                )
                report.add(key.place, message)
            elif name.upper().startswith("HEADRACE_"):
                report.add(key.place, f"{what} cannot set {shown(name)}; names that begin with `HEADRACE_` are our own")
            elif isinstance(text := self._value(value, name, report), Late):
                found[name] = text
            elif text is not None:
                if len(name) + len(text) >= MAX_VARIABLE_BYTES or len(f"{name}={text}".encode()) > MAX_VARIABLE_BYTES:
                    message = (
                        f"the {self.one} {shown(name)} is longer than the {MAX_VARIABLE_BYTES:,} bytes that Linux takes"
                    )
                    report.add(value.place, f"{message}; hand it over as a file")
                else:
                    found[name] = text
        return found

    def _value(self, node: Node, name: str, report: Report) -> str | Late | None:
        if isinstance(node, Scalar) and node.kind is Kind.NULL:
            report.add(node.place, f'the {self.one} {shown(name)} has no value; write `""` for an empty one')
            return None
        found: str | Late | None = Templated(AnyText(), self.sees).read(node, f"the {self.one} {shown(name)}", report)
        return found


@dataclass(frozen=True, slots=True)
class AnyText:
    """A text, whatever it holds."""

    def read(self, node: Node, what: str, report: Report) -> str | None:
        """The text as it was written."""
        found = scalar(node, what, report)
        return found.text if found else None


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels that an agent must have."""

    def read(self, node: Node, what: str, report: Report) -> dict[str, str | Late] | None:
        """Label to value."""
        if not isinstance(node, Mapping):
            message = f"{what} must be a mapping such as `{{arch: arm64}}`, but this is {kind_of(node)}"
            report.add(node.place, message)
            return None
        found: dict[str, str | Late] = {}
        for key, value in node.entries:
            if not NAME.fullmatch(key.text) or len(key.text) > MAX_NAME:
                report.add(key.place, bad_name("a label", key.text))
            elif (text := LABEL.read(value, f"the label {shown(key.text)}", report)) is not None:
                found[key.text] = text
        return found


LABEL = Templated(Line(), Sees.EVENT)
