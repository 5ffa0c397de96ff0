"""Records: mappings with known keys, and lists of things. What most of the language is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from headrace.pipeline.described import KEYS
from headrace.pipeline.nodes import Mapping, Node, Scalar, Sequence
from headrace.pipeline.problems import Place, Report, shown
from headrace.pipeline.shapes import Schema, Shape, kind_of


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list with at least one item, unless it `may_be_empty`."""

    item: Shape
    one: str
    """What an item is called: `a step`."""
    may_be_empty: bool = False
    most: int = 0
    """0: no bound of its own."""

    def schema(self) -> Schema:
        """What editors check it by."""
        bounds = {"minItems": 0 if self.may_be_empty else 1, **({"maxItems": self.most} if self.most else {})}
        return {"type": "array", "items": self.item.schema(), **bounds}

    def read(self, node: Node, what: str, report: Report) -> tuple[Any, ...] | None:
        """The items that could be read."""
        if not isinstance(node, Sequence):
            report.add(node.place, f"{what} must be a list, but this is {kind_of(node)}; write `- ` before each item")
            report.hidden = True
            return None
        if not node.items and not self.may_be_empty:
            report.add(node.place, f"{what} is empty; write at least one item")
        if self.most and len(node.items) > self.most:
            report.add(
                node.items[self.most].place, f"{what} has {len(node.items):,} items; it takes at most {self.most:,}"
            )
            return None
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
    required: tuple[str, ...] = ()
    unbuilt: dict[str, str] = field(default_factory=dict)
    """Keys of the language that are refused, and what to do meanwhile; whether they have a shape already or not."""
    resolved: dict[str, Shape] = field(default_factory=dict)
    """Keys that stand in the file and are resolved before it is read: known for suggestions and to editors."""

    def read(self, node: Node, what: str, report: Report) -> Any:
        """What `make` makes of the fields, or None when it is no mapping at all."""
        if not isinstance(node, Mapping):
            message = f"{what} must be a mapping, but this is {kind_of(node)}; write `key: value` lines"
            report.add(node.place, message)
            report.hidden = True
            return None
        found = Fields(node.place, {})
        for key, value in node.entries:
            shape = None if key.text in self.unbuilt else self.fields.get(key.text)
            if shape is None:
                self._refuse(key, found, report)
            else:
                found.keys[key.text] = key.place
                found.values[key.text] = shape.read(value, f"`{key.text}`", report)
        for name in self.required:
            if name not in found.keys and name not in found.meant and node.place not in report.partial:
                report.add(node.place, f"{self.level} needs `{name}`")
        return self.make(found, report)

    @property
    def known(self) -> tuple[str, ...]:
        """Every key that may stand there, by name."""
        return tuple(sorted({*self.fields, *self.resolved} - self.unbuilt.keys()))

    def schema(self) -> Schema:
        """What editors check it by, each key with its description and an example."""
        about = KEYS[self.level]
        properties = {}
        for name in self.known:
            shape = self.fields.get(name) or self.resolved[name]
            properties[name] = {"description": about[name].text, **shape.schema(), "examples": [about[name].example]}
        needs: Schema = {"required": list(self.required)} if self.required else {}
        if "extends" in self.resolved:  # what is missing may be the template's
            needs = {"anyOf": [needs, {"required": ["extends"]}]}
        return {"type": "object", "properties": properties, "additionalProperties": False, **needs}

    def _refuse(self, key: Scalar, found: Fields, report: Report) -> None:
        name = key.text
        if name in self.unbuilt:
            report.add(key.place, f"`{name}` is not built yet: {self.unbuilt[name]}")
            return
        near = report.nearest(name, (*self.known, *self.unbuilt))
        hint = f"; did you mean `{near}`?" if near else f"; it knows {', '.join(self.known)}"
        report.add(key.place, f"{self.level} has no key {shown(name)}{hint}")
        found.meant.add(near)
        report.hidden = report.hidden or near in {"stages", "jobs", "artifacts"}
