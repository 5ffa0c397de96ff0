"""Shapes of amounts: durations, numbers, sizes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from headrace.pipeline.nodes import Kind, Node, Scalar
from headrace.pipeline.problems import Report, shown
from headrace.pipeline.shapes import Schema, scalar

DURATION = r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?"
_DURATION = re.compile(DURATION, re.ASCII)
_UNITS_MS = (86_400_000, 3_600_000, 60_000, 1_000)


@dataclass(frozen=True, slots=True)
class Duration:
    """A positive duration such as `90s`, `20m`, `1h30m`, `3d`."""

    max_days: int

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "string", "pattern": f"^(?=[0-9]){DURATION}$"}

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
class Whole:
    """A whole number from `least` to `most`."""

    most: int
    least: int = 0

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "integer", "minimum": self.least, "maximum": self.most}

    def read(self, node: Node, what: str, report: Report) -> int | None:
        """The number."""
        found = scalar(node, what, report, "a whole number")
        if found is None:
            return None
        fits = re.fullmatch("-?[0-9]{1,9}", found.text) and self.least <= int(found.text) <= self.most
        if not fits or found.kind is not Kind.NUMBER:
            wanted = f"a whole number from {self.least:,} to {self.most:,}"
            report.add(node.place, f"{what} must be {wanted}, not {shown(found.text)}{_unquoted(found, fits)}")
            return None
        return int(found.text)


@dataclass(frozen=True, slots=True)
class Number:
    """A number more than 0, at most `most`."""

    most: float

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "number", "exclusiveMinimum": 0, "maximum": self.most}

    def read(self, node: Node, what: str, report: Report) -> float | None:
        """The number."""
        found = scalar(node, what, report, "a number")
        if found is None:
            return None
        fits = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", found.text) and 0 < float(found.text) <= self.most
        if not fits or found.kind is not Kind.NUMBER:
            wanted = f"a number above 0, at most {self.most:,g}"
            report.add(node.place, f"{what} must be {wanted}, not {shown(found.text)}{_unquoted(found, fits)}")
            return None
        return float(found.text)


_SIZE = re.compile(r"([0-9]{1,9})(B|KiB|MiB|GiB|TiB)", re.ASCII)
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


@dataclass(frozen=True, slots=True)
class Size:
    """An amount of memory or disk such as `512MiB`."""

    least: int

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "string", "pattern": f"^{_SIZE.pattern}$"}

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
            report.add(node.place, f"{what} must be from {self.least >> 20}MiB to 1023TiB, not {shown(found.text)}")
            return None
        return size


def _unquoted(node: Scalar, fits: object) -> str:
    """The hint for a number that would do without its quotes."""
    return "; remove the quotes" if fits and node.kind is Kind.TEXT else ""
