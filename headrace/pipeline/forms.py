"""Forms: values of the language that have more than one spelling, or rules of their own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from headrace.pipeline.model import (
    EnvironmentDef,
    Placed,
    Sees,
    ServiceDef,
)
from headrace.pipeline.nodes import Kind, Mapping, Node, Scalar, Sequence
from headrace.pipeline.patterns import refused_pattern
from headrace.pipeline.plan import Checkout, Network, RetryOn, RetryRule
from headrace.pipeline.problems import Report, shown
from headrace.pipeline.records import Fields, ListOf, Record
from headrace.pipeline.shapes import (
    TEXT,
    Choice,
    Name,
    Schema,
    Shape,
    Templated,
    bad_name,
    clipped,
    is_name,
    kind_of,
    scalar,
)

_HOST = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Use:
    """`artifact/NAME`."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "string", "pattern": "^artifact/"}

    def read(self, node: Node, what: str, report: Report) -> Placed[str] | None:
        """The artifact's name at its place."""
        found = scalar(node, what, report, "`artifact/NAME`")
        if found is None:
            return None
        kind, slash, name = found.text.partition("/")
        if kind != "artifact" or not slash:
            hint = f"; did you mean `artifact/{found.text}`?" if is_name(found.text, dots=True) else ""
            report.add(node.place, f"{what} must be `artifact/NAME`, not {shown(found.text)}{hint}")
            return None
        if not is_name(name, dots=True):
            report.add(node.place, bad_name("the artifact of `use`", name, dots=True))
            return None
        return Placed(name, node.place)


@dataclass(frozen=True, slots=True)
class NetworkForm:
    """`full`, `none` or `services`; the other forms of the language are not built yet."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return Choice(Network).schema()

    def read(self, node: Node, what: str, report: Report) -> Network | None:
        """The network."""
        if isinstance(node, Mapping):
            form = ", ".join(key.text[:20] for key, _ in node.entries)
            report.add(node.place, f"`network: {form}` is not built yet: write `full`, `none` or `services` for now")
            return None
        found = Choice(Network).read(node, what, report)
        return Network(found.value) if found else None


@dataclass(frozen=True, slots=True)
class CheckoutForm:
    """`false`, `true`, or a mapping."""

    record: Record

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"anyOf": [{"type": "boolean"}, self.record.schema()]}

    def read(self, node: Node, what: str, report: Report) -> Checkout | None:
        """How the commit comes into the workspace."""
        if isinstance(node, Scalar) and node.kind is Kind.BOOL:
            return Checkout(enabled=node.text.lower() == "true")
        if isinstance(node, Mapping):
            found: Checkout | None = self.record.read(node, what, report)
            return found
        found_scalar = scalar(node, what, report, "`true`, `false` or a mapping")
        if found_scalar is not None:
            wanted = "`true`, `false` or a mapping such as `{depth: 50}`"
            report.add(node.place, f"{what} must be {wanted}, not {shown(found_scalar.text)}")
        return None


@dataclass(frozen=True, slots=True)
class EnvironmentForm:
    """A deploy target, plain or as `{name: …, url: …}`."""

    record: Record

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"anyOf": [Templated(Name(), Sees.FILE).schema(), self.record.schema()]}

    def read(self, node: Node, what: str, report: Report) -> EnvironmentDef | None:
        """The target."""
        if isinstance(node, Mapping):
            found: EnvironmentDef | None = self.record.read(node, what, report)
            return found
        name = Templated(Name(), Sees.FILE).read(node, what, report)
        return EnvironmentDef(name) if name else None


@dataclass(frozen=True, slots=True)
class OneOrMore:
    """A single item, or a list of them."""

    item: Shape
    one: str

    def schema(self) -> Schema:
        """What editors check it by."""
        one = self.item.schema()
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": 100}]}

    def read(self, node: Node, what: str, report: Report) -> tuple[Any, ...] | None:
        """The items that could be read."""
        if not isinstance(node, Sequence):
            found = self.item.read(node, what, report)
            return None if found is None else (found,)
        listed: tuple[Any, ...] | None = ListOf(self.item, self.one, most=100).read(node, what, report)
        return listed


@dataclass(frozen=True, slots=True)
class RetryRuleForm:
    """`failed`, `lost`, …, `exit:140-150`, `log:/text/`."""

    def schema(self) -> Schema:
        """What editors check it by."""
        words = "|".join(each for each in RetryOn if each not in {RetryOn.EXIT, RetryOn.LOG})
        return {"type": "string", "pattern": f"^({words}|exit:[0-9]+(-[0-9]+)?|log:/.+/)$"}

    def read(self, node: Node, what: str, report: Report) -> RetryRule | None:
        """The rule."""
        found = scalar(node, what, report, "a rule such as `lost`, `exit:137` or `log:/connection reset/`")
        if found is None:
            return None
        kind, colon, rest = found.text.partition(":")
        words = {each.value: each for each in RetryOn}
        if not colon and kind in words and words[kind] not in {RetryOn.EXIT, RetryOn.LOG}:
            return RetryRule(words[kind])
        if kind == RetryOn.EXIT:
            codes = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,3}))?", rest)
            if codes and 1 <= int(codes[1]) <= int(codes[2] or codes[1]) <= 255:
                return RetryRule(RetryOn.EXIT, int(codes[1]), int(codes[2] or codes[1]))
            report.add(node.place, f"{shown(found.text)} names no exit codes; write one or a range from 1 to 255")
            return None
        if kind == RetryOn.LOG:
            return _log_rule(found, rest, report)
        known = [each for each in words if each not in {"exit", "log"}]
        hint = report.suggestion(kind, known) or f"; it knows {', '.join(known)}, `exit:CODES` and `log:/PATTERN/`"
        report.add(node.place, f"{what} has no rule {shown(found.text)}{hint}")
        return None


def _log_rule(node: Scalar, rest: str, report: Report) -> RetryRule | None:
    if not (len(rest) > 2 and rest[0] == rest[-1] == "/" and len(rest) <= 1_000):
        report.add(node.place, f"{shown(node.text)} holds no pattern; write `log:/text/`")
        return None
    if why := refused_pattern(rest[1:-1], report):
        report.add(node.place_of(len("log:/")), why)
        return None
    return RetryRule(RetryOn.LOG, pattern=rest[1:-1])


@dataclass(frozen=True, slots=True)
class CachePath:
    """A path in the workspace, or below `~/`."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {**TEXT, "pattern": "^[^/]"}

    def read(self, node: Node, what: str, report: Report) -> str | None:
        """The path without `.` parts and doubled slashes."""
        found = scalar(node, what, report, "a path in the workspace or below `~/`")
        if found is None:
            return None
        text = found.text
        home = text == "~" or text.startswith("~/")
        parts = [part for part in text.removeprefix("~").split("/") if part not in {"", "."}]
        wrong = ""
        if text.startswith("/") or (text.startswith("~") and not home):
            wrong = "is neither in the workspace nor below `~/`"
        elif ".." in parts:
            wrong = "may not contain `..`"
        elif not parts or not text.isprintable() or len(text.encode()) > 4096:
            wrong = "names no folder; write one such as `.venv` or `~/.cache/pip`"
        if wrong:
            report.add(node.place, f"{what}: {shown(text)} {wrong}")
            return None
        return ("~/" if home else "") + "/".join(parts)


@dataclass(frozen=True, slots=True)
class Approver:
    """`role:NAME` or `user:NAME`."""

    def schema(self) -> Schema:
        """What editors check it by."""
        return {"type": "string", "pattern": "^(role|user):"}

    def read(self, node: Node, what: str, report: Report) -> str | None:
        """The text."""
        found = scalar(node, what, report, "`role:NAME` or `user:NAME`")
        if found is None:
            return None
        if not re.fullmatch(r"(role|user):[A-Za-z0-9_.@-]{1,100}", found.text):
            report.add(node.place, f"{what} must be `role:NAME` or `user:NAME`, not {shown(found.text)}")
            return None
        return found.text


@dataclass(frozen=True, slots=True)
class Services:
    """Services by name; the name is a host name."""

    record: Record

    def schema(self) -> Schema:
        """What editors check it by."""
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^{_HOST.pattern}$"},
            "additionalProperties": self.record.schema(),
        }

    def read(self, node: Node, what: str, report: Report) -> tuple[ServiceDef, ...] | None:
        """The services."""
        if not isinstance(node, Mapping):
            report.add(node.place, f"{what} must be a mapping of names to services, but this is {kind_of(node)}")
            return None
        found = []
        for key, value in node.entries:
            if not _HOST.fullmatch(key.text):
                wanted = "a service is a host name: lower case letters, digits and `-`, at most 63"
                report.add(key.place, f"{shown(key.text)} cannot name a service; {wanted}")
            fields: Fields | None = self.record.read(value, f"the service {shown(key.text)}", report)
            if fields is not None:
                found.append(_service(Placed(clipped(key.text), key.place), fields))
        return tuple(found)


def _service(name: Placed[str], fields: Fields) -> ServiceDef:
    return ServiceDef(
        name, fields.get("image"), fields.get("env", {}), fields.get("ready", ""), fields.get("timeout", 60_000)
    )
