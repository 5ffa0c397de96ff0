"""`on`: which events start a run, and what a run by hand takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from headrace.pipeline.globs import LONGEST_PATTERN
from headrace.pipeline.matrix_form import MatrixValue
from headrace.pipeline.model import ParameterDef, Placed, PushDef, ScheduleDef, Triggers
from headrace.pipeline.nodes import Kind, Mapping, Node, Scalar
from headrace.pipeline.plan import ParameterType
from headrace.pipeline.problems import Report, shown
from headrace.pipeline.records import Fields, ListOf, Record
from headrace.pipeline.shapes import (
    MAX_NAME,
    TEXT,
    VARIABLE,
    Choice,
    Line,
    RelativePath,
    Schema,
    clipped,
    kind_of,
    scalar,
)

_CRON_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of the month", 1, 31),
    ("month", 1, 12),
    ("day of the week", 0, 7),
)
_CRON_PART = re.compile(r"(\*|[0-9]{1,2}(?:-[0-9]{1,2})?)(?:/([0-9]{1,2}))?")


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression of five fields."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "string", "pattern": r"^\s*(\S+\s+){4}\S+\s*$"}

    def read(self, node: Node, what: str, report: Report) -> str | None:
        """The expression with single spaces."""
        found = scalar(node, what, report, "a time such as `0 3 * * 1-5`")
        if found is None:
            return None
        fields = found.text.split()
        if len(fields) != len(_CRON_FIELDS):
            names = ", ".join(name for name, _, _ in _CRON_FIELDS)
            report.add(node.place, f"{what} has {len(fields)} field{'s' * (len(fields) != 1)}; it takes five: {names}")
            return None
        for text, (name, least, most) in zip(fields, _CRON_FIELDS, strict=True):
            if not all(_cron_part(part, least, most) for part in text.split(",")):
                report.add(
                    node.place,
                    f"{what}: {shown(text)} is no {name}; it is from {least} to {most}, `*`, a range or a step",
                )
                return None
        return " ".join(fields)


def _cron_part(part: str, least: int, most: int) -> bool:
    found = _CRON_PART.fullmatch(part)
    if found is None or (found[2] is not None and int(found[2]) == 0):
        return False
    bounds = [] if found[1] == "*" else [int(each) for each in found[1].split("-")]
    return all(least <= each <= most for each in bounds) and bounds == sorted(bounds)


@dataclass(frozen=True, slots=True)
class TimeZone:
    """A name of the time zone database."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "string", "pattern": "^(UTC|[A-Z][A-Za-z_]+/.+)$"}

    def read(self, node: Node, what: str, report: Report) -> str | None:
        """The name; whether it exists is known to whoever keeps the clock."""
        found = scalar(node, what, report, "a time zone such as `America/Bogota`")
        if found is None:
            return None
        if not re.fullmatch(r"UTC|[A-Z][A-Za-z_]+(/[A-Z][A-Za-z0-9_+-]+){1,2}", found.text):
            report.add(node.place, f"{what} must be a time zone such as `America/Bogota`, not {shown(found.text)}")
            return None
        return found.text


def _schedule(fields: Fields, _: Report) -> ScheduleDef:
    """A time at which a run starts."""
    return ScheduleDef(fields.get("cron", ""), fields.get("timezone", "UTC"), fields.get("branch", ""))


@dataclass(frozen=True, slots=True)
class RefGlob:
    """A glob of branch or tag names, such as `release/*`."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {**TEXT, "pattern": "^[^/-]"}

    def read(self, node: Node, what: str, report: Report) -> str | None:
        """The glob."""
        found = scalar(node, what, report, "a name or a glob such as `release/*`")
        if found is None:
            return None
        if not re.fullmatch(r"[^\s~^:\\?[]{1,200}", found.text) or found.text.startswith(("/", "-")):
            report.add(node.place, f"{what} cannot be {shown(found.text)}; write a name or a glob such as `release/*`")
            return None
        return found.text


@dataclass(frozen=True, slots=True)
class PathGlob:
    """A glob of paths that an event changes, short enough for whoever matches it."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {**RelativePath(glob=True).schema(), "maxLength": LONGEST_PATTERN}

    def read(self, node: Node, what: str, report: Report) -> str | None:
        """The glob."""
        found = RelativePath(glob=True).read(node, what, report)
        if found is not None and len(found) > LONGEST_PATTERN:
            report.add(node.place, f"{what}: a glob has at most {LONGEST_PATTERN:,} characters; make it shorter")
            return None
        return found


def _push(fields: Fields, _: Report) -> PushDef:
    return PushDef(
        fields.get("branches", ()), fields.get("tags", ()), fields.get("paths", ()), fields.get("paths-ignore", ())
    )


_REFS = ListOf(RefGlob(), "a glob", most=100)
_PATHS = ListOf(PathGlob(), "a path", most=100)
_PUSH = Record("`push`", {"branches": _REFS, "tags": _REFS, "paths": _PATHS, "paths-ignore": _PATHS}, _push)
_PULL_REQUEST = Record("`pull_request`", {"branches": _REFS, "paths": _PATHS, "paths-ignore": _PATHS}, _push)
_SCHEDULE = Record(
    "a schedule", {"cron": Cron(), "timezone": TimeZone(), "branch": Line()}, _schedule, required=("cron",)
)


@dataclass(frozen=True, slots=True)
class _OrNothing:
    """A mapping, or nothing at all: `push:` alone means every push."""

    record: Record

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"anyOf": [{"type": "null"}, self.record.schema()]}

    def read(self, node: Node, what: str, report: Report) -> PushDef | None:
        """The events that are meant."""
        if isinstance(node, Scalar) and node.kind is Kind.NULL:
            return PushDef()
        found: PushDef | None = self.record.read(node, what, report)
        return found


@dataclass(frozen=True, slots=True)
class _Parameters:
    """Parameters by name."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^{VARIABLE.pattern}$"},
            "additionalProperties": _PARAMETER.schema(),
        }

    def read(self, node: Node, what: str, report: Report) -> tuple[ParameterDef, ...] | None:
        """Those that could be read."""
        if not isinstance(node, Mapping):
            report.add(node.place, f"{what} must be a mapping of names to parameters, but this is {kind_of(node)}")
            return None
        found = []
        for key, value in node.entries:
            if not VARIABLE.fullmatch(key.text) or len(key.text) > MAX_NAME:
                rule = "it becomes `PARAM_<NAME>`: a letter or `_`, then letters, digits or `_`, at most 100"
                report.add(key.place, f"a parameter cannot be {shown(key.text)}; {rule}")
            fields: Fields | None = _PARAMETER.read(value, f"the parameter {shown(key.text)}", report)
            if fields is not None:
                found.append(_parameter(Placed(clipped(key.text), key.place), fields, report))
        return tuple(found)


def _parameter(name: Placed[str], fields: Fields, report: Report) -> ParameterDef:
    kind = fields.get("type")
    given = ParameterType(kind.value) if kind else ParameterType.STRING
    options: tuple[str, ...] = fields.get("options", ())
    default = fields.get("default")
    if given is ParameterType.CHOICE and "options" not in fields.keys:
        report.add(fields.place, f"the choice {shown(name.value)} needs `options`")
    if given is not ParameterType.CHOICE and "options" in fields.keys:
        report.add(fields.keys["options"], f"only a `choice` has options; the type of {shown(name.value)} is `{given}`")
    value = None
    if default is not None:
        text = default.value if isinstance(default.value, str) else str(default.value).lower()
        value = parsed(ParameterDef(name.value, name.place, given, options), text)
        if value is None:
            report.add(default.place, f"`default` {what_it_takes(given, options)}, not {shown(text)}")
    return ParameterDef(name.value, name.place, given, options, value, fields.get("description", ""))


def parsed(parameter: ParameterDef, text: str) -> str | int | float | bool | None:
    """The value that a text is for a parameter, or None for one that it does not take."""
    match parameter.type:
        case ParameterType.BOOL:
            return {"true": True, "false": False}.get(text)
        case ParameterType.INT:
            return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None
        case ParameterType.DOUBLE:
            return float(text) if re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]{1,18})?", text) else None
        case ParameterType.CHOICE:
            return text if text in parameter.options else None
        case _:
            return text if "\0" not in text and len(text) <= 64 << 10 else None


def what_it_takes(kind: ParameterType, options: tuple[str, ...]) -> str:
    """For a sentence: `must be true or false`."""
    words = {
        ParameterType.BOOL: "`true` or `false`",
        ParameterType.INT: "a whole number",
        ParameterType.DOUBLE: "a number",
        ParameterType.CHOICE: "one of " + ", ".join(shown(each) for each in options[:20]),
    }
    return f"must be {words.get(kind, 'a text')}"


_PARAMETER = Record(
    "a parameter",
    {
        "type": Choice(ParameterType),
        "options": ListOf(Line(), "an option", most=100),
        "default": MatrixValue(),
        "description": Line(),
    },
    lambda fields, _: fields,
)
_MANUAL = Record("`manual`", {"parameters": _Parameters()}, lambda fields, _: fields.get("parameters", ()))


@dataclass(frozen=True, slots=True)
class _Manual:
    """`manual:` alone, or with its parameters."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"anyOf": [{"type": "null"}, _MANUAL.schema()]}

    def read(self, node: Node, what: str, report: Report) -> tuple[ParameterDef, ...] | None:
        """The parameters."""
        if isinstance(node, Scalar) and node.kind is Kind.NULL:
            return ()
        found: tuple[ParameterDef, ...] | None = _MANUAL.read(node, what, report)
        return found


def _on(fields: Fields, _: Report) -> Triggers:
    return Triggers(
        push=fields.get("push"),
        pull_request=fields.get("pull_request"),
        schedule=fields.get("schedule", ()),
        parameters=fields.get("manual", ()),
    )


ON = Record(
    "`on`",
    {
        "push": _OrNothing(_PUSH),
        "pull_request": _OrNothing(_PULL_REQUEST),
        "schedule": ListOf(_SCHEDULE, "a schedule", most=100),
        "manual": _Manual(),
    },
    _on,
)
