"""The matrix of a job as it stands in the file: keys with their values, and how the cells run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass
from typing import Any

from headrace.pipeline.amounts import Whole
from headrace.pipeline.model import Late, MatrixDef, Placed, Sees
from headrace.pipeline.model import Scalar as Value
from headrace.pipeline.nodes import Kind, Mapping, Node, Scalar
from headrace.pipeline.problems import Report, shown
from headrace.pipeline.records import ListOf
from headrace.pipeline.shapes import MAX_NAME, NAME, Flag, Schema, Templated, bad_name, kind_of, scalar
from headrace.pipeline.templates import OPENING
from headrace.pipeline.values import described

MAX_VALUES = 1_000
MAX_KEYS = 50
MAX_TEXT = 200
"""Characters of a value."""
MOST_NUMBER = 1 << 62
_SETTINGS = ("include", "exclude", "max_parallel", "fail_fast")


@dataclass(frozen=True, slots=True)
class MatrixForm:
    """Keys with their values, and how the cells run."""

    def schema(self) -> Schema:
        """What editors check it by."""
        cells = ListOf(_Cell(), "a cell", may_be_empty=True, most=MAX_VALUES).schema()
        settings = {
            "include": cells,
            "exclude": cells,
            "max_parallel": Whole(MAX_VALUES, least=1).schema(),
            "fail_fast": Flag().schema(),
        }
        listed = ListOf(MatrixValue(), "a value", most=MAX_VALUES).schema()
        values = {"anyOf": [listed, {"type": "string", "pattern": r"\$\{\{"}]}
        return {"type": "object", "properties": settings, "additionalProperties": values}

    def read(self, node: Node, what: str, report: Report) -> MatrixDef | None:
        """The matrix; what is wrong in it is left out."""
        if not isinstance(node, Mapping):
            report.add(node.place, f"{what} must be a mapping of keys to lists of values, but this is {kind_of(node)}")
            return None
        values: dict[str, tuple[Value, ...] | Late] = {}
        settings: dict[str, Any] = {}
        for key, value in node.entries:
            if key.text in _SETTINGS:
                settings[key.text] = _setting(key.text, value, report)
            elif _is_key(key, report) and (found := _values(key.text, value, report)) is not None:
                values[key.text] = found
        included: tuple[Placed[AnyMapping[str, Value]], ...] = settings.get("include") or ()
        count = len({*values, *(key for each in included for key in each.value)})
        if count > MAX_KEYS:
            report.add(node.place, f"{what} has {count:,} keys over all its cells; it takes at most {MAX_KEYS}")
            return None
        if not values and not settings.get("include"):
            report.add(node.place, f'{what} has no cell; give it a key with values, such as `python: ["3.12"]`')
        return MatrixDef(
            node.place,
            values,
            included,
            settings.get("exclude") or (),
            settings.get("max_parallel") or 0,
            settings.get("fail_fast") or False,
        )


def _setting(name: str, node: Node, report: Report) -> Any:
    what = f"`{name}`"
    if name == "max_parallel":
        return Whole(MAX_VALUES, least=1).read(node, what, report)
    if name == "fail_fast":
        return Flag().read(node, what, report)
    return ListOf(_Cell(), "a cell", may_be_empty=True, most=MAX_VALUES).read(node, what, report)


def _is_key(key: Scalar, report: Report) -> bool:
    if not NAME.fullmatch(key.text) or len(key.text) > MAX_NAME:
        report.add(key.place, bad_name("a key of a matrix", key.text))
    elif key.text in {"shard", "shards"}:
        report.add(
            key.place, f"`{key.text}` is the number of a `parallel` copy; give the key of the matrix another name"
        )
    else:
        return True
    return False


def _values(name: str, node: Node, report: Report) -> tuple[Value, ...] | Late | None:
    what = f"the matrix key {shown(name)}"
    if isinstance(node, Scalar) and OPENING in node.text:
        late: Late | None = Templated(MatrixValues(), Sees.MATRIX).read(node, what, report)
        if late is not None and len(late.template.parts) > 1:
            example = "`${{ json(needs.list.outputs.all) }}`"
            report.add(node.place, f"{what} takes a list: one expression alone, such as {example}")
        return late
    found = ListOf(MatrixValue(), f"a value of {what}", most=MAX_VALUES).read(node, what, report)
    return None if found is None else tuple(each.value for each in found)


@dataclass(frozen=True, slots=True)
class MatrixValues:
    """A list of values that an expression gives; `expand` reads it as data, not as a node."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "array"}

    def read(self, node: Node, what: str, report: Report) -> None:
        """Never called: a list is no text."""
        report.add(node.place, f"{what} must be a list")

    def values(self, given: Any) -> tuple[Value, ...] | str:
        """The values of a list that an expression gave; or what is wrong with it, as a clause."""
        if not isinstance(given, list):
            return f"a list is wanted, and this is {described(given)}"
        if len(given) > MAX_VALUES:
            return f"it gives {len(given):,} values; a key of a matrix takes at most {MAX_VALUES:,}"
        for number, each in enumerate(given, 1):
            if wrong := _wrong(each):
                return f"value {number} of its list {wrong}"
        return tuple(given)


def _wrong(value: Any) -> str:
    """Why it can be no value of a matrix; empty: it can."""
    match value:
        case None | bool():
            return ""
        case str():
            fits = value.isprintable() and len(value) <= MAX_TEXT
            return "" if fits else f"is not one line of at most {MAX_TEXT} characters"
        case int():
            return "" if abs(value) < MOST_NUMBER else "is a number beyond 62 bits; hand it over as a string"
        case float():
            return "" if math.isfinite(value) else "is no number that has an end"
        case _:
            return f"is {described(value)}; a value is a string, a number, true, false or null"


@dataclass(frozen=True, slots=True)
class MatrixValue:
    """One value: a text, a number, true, false or null."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": ["string", "number", "boolean", "null"]}

    def read(self, node: Node, what: str, report: Report) -> Placed[Value] | None:
        """The value as CEL knows it."""
        if not isinstance(node, Scalar):
            report.add(node.place, f"{what} must be a text, a number, `true` or `false`, but this is {kind_of(node)}")
            return None
        if node.kind is Kind.NULL:
            return Placed(None, node.place)
        found = scalar(node, what, report)
        if found is None:
            return None
        value = _typed(found)
        if isinstance(value, float | int) and not isinstance(value, bool) and repr(value) != found.text:
            message = f"{what} is the number {value!r}, not {shown(found.text)}; put quotes around it"
            report.add(node.place, message)
            return None
        if isinstance(value, str) and (not value.isprintable() or len(value) > MAX_TEXT):
            report.add(node.place, f"{what} must be one line of at most {MAX_TEXT} characters")
            return None
        return Placed(value, node.place)


def _typed(node: Scalar) -> Value:
    if node.kind is Kind.BOOL:
        return node.text.lower() == "true"
    if node.kind is Kind.NUMBER:
        try:
            number = int(node.text)
        except ValueError:
            return float(node.text) if re.fullmatch(r"[-+0-9.eE]{1,30}", node.text) else node.text
        return number if abs(number) < MOST_NUMBER else node.text
    return node.text


@dataclass(frozen=True, slots=True)
class _Cell:
    """One cell of `include` or `exclude`: keys with one value each."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "object", "minProperties": 1, "additionalProperties": MatrixValue().schema()}

    def read(self, node: Node, what: str, report: Report) -> Placed[AnyMapping[str, Value]] | None:
        if not isinstance(node, Mapping) or not node.entries:
            report.add(node.place, f'{what} must be a mapping of keys to single values, such as `{{python: "3.13"}}`')
            return None
        found: dict[str, Value] = {}
        for key, value in node.entries:
            if _is_key(key, report):
                read = MatrixValue().read(value, f"the matrix key {shown(key.text)}", report)
                if read is not None:
                    found[key.text] = read.value
        return Placed(found, node.place)
