"""What every value of the SDK can do: show itself as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import ClassVar


def json_value(value: object) -> object:
    """Any value of this module as what `json.dumps` takes: `datetime` as ISO 8601 with `Z`, tuples as lists."""
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case Value():
            return value.to_json()
        case StrEnum():
            return value.value
        case Mapping():
            return {str(key): json_value(each) for key, each in value.items()}
        case list() | tuple():
            return [json_value(each) for each in value]
        case _:
            return value


class Value:
    """A frozen dataclass that knows its JSON shape: its fields, in order, and the `shown` properties."""

    __slots__ = ()
    shown: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, object]:
        """The documented shape (docs/reference/json.md): plain values, lists and objects."""
        assert is_dataclass(self)
        names = (*(each.name for each in fields(self)), *self.shown)
        return {name: json_value(getattr(self, name)) for name in names}
