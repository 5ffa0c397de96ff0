"""Shapes of variables and labels: mappings with free names."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.pipeline.model import Late, Sees
from headrace.pipeline.nodes import Kind, Mapping, Node, Scalar
from headrace.pipeline.problems import Report, shown
from headrace.pipeline.shapes import MAX_NAME, NAME, TEXT, VARIABLE, Line, Schema, Templated, bad_name, kind_of, scalar

MAX_VARIABLE_BYTES = 131_071


@dataclass(frozen=True, slots=True)
class Variables:
    """Variables by name. Values are taken as text, as they were written: `1.10` stays `1.10`."""

    sees: Sees
    one: str = "variable"
    article: str = "a"

    def schema(self) -> Schema:
        """What editors check it by."""
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^(?!HEADRACE_){VARIABLE.pattern}$"},
            "additionalProperties": TEXT,
        }

    def read(self, node: Node, what: str, report: Report) -> dict[str, str | Late] | None:
        """Name to value; those that are wrong are left out."""
        if not isinstance(node, Mapping):
            report.add(node.place, f"{what} must be a mapping of names to values, but this is {kind_of(node)}")
            return None
        found: dict[str, str | Late] = {}
        for key, value in node.entries:
            name = key.text
            if not VARIABLE.fullmatch(name):
                rule = f"{self.article} {self.one} is a letter or `_`, then letters, digits or `_`"
                report.add(key.place, f"{what} cannot set {shown(name)}; {rule}")
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

    def schema(self) -> Schema:
        """What editors check it by."""
        return TEXT

    def read(self, node: Node, what: str, report: Report) -> str | None:
        """The text as it was written."""
        found = scalar(node, what, report)
        return found.text if found else None


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels that an agent must have."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "object", "propertyNames": {"pattern": f"^{NAME.pattern}$"}, "additionalProperties": TEXT}

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
