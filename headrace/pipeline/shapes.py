"""Shapes: what a value of the file may look like. Each reads a node, notes what is wrong with it, and goes on.

`read` returns the value, or None where the node holds none that could be used; the mistake is then noted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from headrace.pipeline.model import Placed
from headrace.pipeline.nodes import Kind, Mapping, Node, Scalar, Sequence
from headrace.pipeline.problems import Place, Report, shown

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


def _kind_of(node: Node) -> str:
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
        report.add(node.place, f"{what} must be {wanted}, but this is {_kind_of(node)}")
        return None
    if "${{" in node.text:
        report.add(node.place, f"`${{{{ }}}}` is not built yet: write the value of {what} as it is")
        return None
    if node.kind is Kind.NULL:
        report.add(node.place, f"{what} is empty; write {wanted}, or remove it")
        return None
    return node


@dataclass(frozen=True, slots=True)
class Script:
    """The script of a `run:` step."""

    def read(self, node: Node, what: str, report: Report) -> str | None:
        """The script as it was written."""
        if isinstance(node, Scalar) and "${{" in node.text:
            begin = node.text.index("${{")
            found = node.text[begin : begin + 200].partition("}}")
            expression = f"{found[0]}}}}}" if found[1] and "\n" not in found[0] else "${{ … }}"
            report.add(
                node.place,
                f"`{expression}` may not stand in {what}: no quoting makes it safe. Write "
                f'`env: {{V: "{expression}"}}` and `"$V"`; but `${{{{ }}}}` is not built yet, so write the value',
            )
            return None
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
    """A whole number from 0 to `most`."""

    most: int

    def read(self, node: Node, what: str, report: Report) -> int | None:
        """The number."""
        found = scalar(node, what, report, "a whole number")
        if found is None:
            return None
        if not re.fullmatch("[0-9]{1,9}", found.text) or int(found.text) > self.most or found.kind is not Kind.NUMBER:
            report.add(node.place, f"{what} must be a whole number from 0 to {self.most:,}, not {shown(found.text)}")
            return None
        return int(found.text)


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
    """Environment variables. Values are taken as text, as they were written: `1.10` stays `1.10`."""

    def read(self, node: Node, what: str, report: Report) -> dict[str, str] | None:
        """Name to value; those that are wrong are left out."""
        if not isinstance(node, Mapping):
            report.add(node.place, f"{what} must be a mapping of names to values, but this is {_kind_of(node)}")
            return None
        found: dict[str, str] = {}
        for key, value in node.entries:
            name = key.text
            if not VARIABLE.fullmatch(name):
                message = f"{what} cannot set {shown(name)}; a variable is a letter or `_`, then letters, digits or `_`"
                report.add(key.place, message)
            elif name.upper().startswith("HEADRACE_"):
                report.add(key.place, f"{what} cannot set {shown(name)}; names that begin with `HEADRACE_` are our own")
            elif (text := self._value(value, name, report)) is not None:
                if len(name) + len(text) >= MAX_VARIABLE_BYTES or len(f"{name}={text}".encode()) > MAX_VARIABLE_BYTES:
                    message = (
                        f"the variable {shown(name)} is longer than the {MAX_VARIABLE_BYTES:,} bytes that Linux takes"
                    )
                    report.add(value.place, f"{message}; hand it over as a file")
                else:
                    found[name] = text
        return found

    def _value(self, node: Node, name: str, report: Report) -> str | None:
        if isinstance(node, Scalar) and node.kind is Kind.NULL:
            report.add(node.place, f'the variable {shown(name)} has no value; write `""` for an empty one')
            return None
        found = scalar(node, f"the variable {shown(name)}", report)
        return found.text if found else None


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels that an agent must have."""

    def read(self, node: Node, what: str, report: Report) -> dict[str, str] | None:
        """Label to value."""
        if not isinstance(node, Mapping):
            message = f"{what} must be a mapping such as `{{arch: arm64}}`, but this is {_kind_of(node)}"
            report.add(node.place, message)
            return None
        found: dict[str, str] = {}
        for key, value in node.entries:
            if not NAME.fullmatch(key.text) or len(key.text) > MAX_NAME:
                report.add(key.place, bad_name("a label", key.text))
            elif (text := Line().read(value, f"the label {shown(key.text)}", report)) is not None:
                found[key.text] = text
        return found


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list with at least one item, unless it `may_be_empty`."""

    item: Shape
    one: str
    """What an item is called: `a step`."""
    may_be_empty: bool = False

    def read(self, node: Node, what: str, report: Report) -> tuple[Any, ...] | None:
        """The items that could be read."""
        if not isinstance(node, Sequence):
            report.add(node.place, f"{what} must be a list, but this is {_kind_of(node)}; write `- ` before each item")
            report.hidden = True
            return None
        if not node.items and not self.may_be_empty:
            report.add(node.place, f"{what} is empty; write at least one item")
        found = (self.item.read(each, self.one, report) for each in node.items)
        return tuple(each for each in found if each is not None)


@dataclass(frozen=True, slots=True)
class Fields:
    """What a record held: values by key, with the place of the record and of each key."""

    place: Place
    values: dict[str, Any]
    keys: dict[str, Place] = field(default_factory=dict)
    meant: set[str] = field(default_factory=set)
    """Known keys that an unknown one was probably meant to be."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default where the key is absent or its value was wrong."""
        found = self.values.get(key)
        return default if found is None else found


@dataclass(frozen=True, slots=True)
class Record:
    """A mapping with known keys."""

    level: str
    """What it is called: `a job`."""
    fields: dict[str, Shape]
    make: Callable[[Fields, Report], Any]
    unbuilt: dict[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    def read(self, node: Node, what: str, report: Report) -> Any:
        """What `make` makes of the fields, or None when it is no mapping at all."""
        if not isinstance(node, Mapping):
            message = f"{what} must be a mapping, but this is {_kind_of(node)}; write `key: value` lines"
            report.add(node.place, message)
            report.hidden = True
            return None
        found = Fields(node.place, {})
        for key, value in node.entries:
            shape = self.fields.get(key.text)
            if shape is None:
                self._refuse(key, found, report)
            else:
                found.keys[key.text] = key.place
                found.values[key.text] = shape.read(value, f"`{key.text}`", report)
        for name in self.required:
            if name not in found.keys and name not in found.meant:
                report.add(node.place, f"{self.level} needs `{name}`")
        return self.make(found, report)

    def _refuse(self, key: Scalar, found: Fields, report: Report) -> None:
        name = key.text
        if name in self.unbuilt:
            report.add(key.place, f"`{name}` is not built yet: {self.unbuilt[name]}")
            report.hidden = report.hidden or name in {"include", "extends", "templates"}
            return
        near = report.nearest(name, (*self.fields, *self.unbuilt))
        hint = f"; did you mean `{near}`?" if near else f"; it knows {', '.join(sorted(self.fields))}"
        report.add(key.place, f"{self.level} has no key {shown(name)}{hint}")
        found.meant.add(near)
        report.hidden = report.hidden or near in {"stages", "jobs", "artifacts"}
