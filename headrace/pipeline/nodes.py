"""From bytes to nodes with positions: the part of the loader that knows YAML.

YAML 1.2 as far as a pipeline needs it: anchors, aliases and merge keys, no tags, no directives, one document. The
events of ruamel.yaml are composed here, not by its own composer, because the bounds must hold *while* aliases are
expanded, and because every key keeps its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from ruamel.yaml.scanner import Scanner, ScannerError

from headrace.pipeline.problems import PipelineError, Place, Problem, shown
from headrace.pipeline.syntax import sentence_of

MAX_BYTES = 1 << 20
MAX_NODES = 10_000
MAX_DEPTH = 50
MAX_LINES = 50_000
MAX_WORDS = 200_000
MAX_INLINE = 4_000
"""Characters of a text that may be an expression, and so keeps its spelling for places inside it."""

# Characters that YAML forbids; NUL and tabs have sentences of their own.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINES = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_SPELLED = re.compile(r"[\"'\\\s]")
_AROUND, _MANY = 80, 100
"""Characters of a line that a place is looked for by, and lines from which on only the likely one is looked at."""
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Kind(StrEnum):
    """What a scalar is by YAML 1.2's core schema. The text stays as it was written."""

    TEXT = "a text"
    NULL = "nothing"
    BOOL = "true or false"
    NUMBER = "a number"


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value, as it was written."""

    place: Place
    text: str
    kind: Kind
    raw: tuple[str, ...] = ()
    """The lines of the file that it stands in, from the one of `place` on."""
    until: int = 0
    """Where in the last of them it ends."""
    nodes: int = 1
    height: int = 1

    @property
    def chars(self) -> int:
        """How much text this is."""
        return len(self.text)

    def place_of(self, at: int) -> Place:
        """Where in the file the character `at` of the text stands, as far as its spelling shows that; else `place`."""
        if not self.raw:
            return self.place
        is_block = self.raw[0][self.place.column - 1 : self.place.column] in {"|", ">"}
        likely = self.text.count("\n", 0, at) + is_block
        begin = max(self.text.rfind("\n", 0, at) + 1, at - _AROUND)
        line, _, _ = self.text[at : at + _AROUND].partition("\n")
        # Its line as it is; else what follows, up to what may be spelled in another way.
        wanted = dict.fromkeys(((self.text[begin:at], line), ("", line), ("", _SPELLED.split(line, maxsplit=1)[0])))
        for number in (likely, *range(len(self.raw))) if len(self.raw) < _MANY else (likely,):
            for before, after in wanted:
                found = self._find(number, before + after) if after else -1
                if found >= 0:
                    return Place(self.place.line + number, found + len(before) + 1, self.place.file)
        return self.place

    def _find(self, number: int, wanted: str) -> int:
        if number >= len(self.raw):
            return -1
        since = 0 if number else self.place.column - 1
        return self.raw[number].find(wanted, since, self.until if number + 1 == len(self.raw) else None)


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list. `nodes`, `height` and `chars` are those of the whole subtree, aliases expanded."""

    place: Place
    items: tuple[Node, ...]
    nodes: int
    height: int
    chars: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping in the order of the file; merged entries come last and keep the place where they were written."""

    place: Place
    entries: tuple[tuple[Scalar, Node], ...]
    nodes: int
    height: int
    chars: int


Node = Scalar | Sequence | Mapping


class _Scanner(Scanner):
    """Refuses tags and directives before it reads them: a pipeline needs neither, a long tag costs square time."""

    def scan_tag(self) -> Any:
        """Refuse `!tag`."""
        mark = self.reader.get_mark()
        raise ScannerError(None, None, "a tag", mark)

    def scan_directive(self) -> Any:
        """Refuse `%YAML` and `%TAG`."""
        mark = self.reader.get_mark()
        raise ScannerError(None, None, "a directive", mark)


def parse(text: bytes, file: str, *, included: bool = False) -> Mapping:
    """The root mapping of a file of at most `MAX_BYTES`. The places of an `included` one bear its name.

    Raises `PipelineError` with every duplicate key and wrong merge, or with the first thing that is not YAML.
    """
    source = _decode(text, file)
    root = _Composer(file, source, mark=file if included else "").document()
    if not isinstance(root, Mapping):
        message = "a pipeline is a mapping: begin with `stages:`"
        if isinstance(root, Scalar) and root.kind is Kind.NULL and not root.text:
            message = "the file is empty; a pipeline has at least `stages:`"
        raise PipelineError((Problem(file, root.place.line, root.place.column, message),))
    return root


def _decode(raw: bytes, file: str) -> str:
    def refuse(offset: int, message: str) -> PipelineError:
        before = raw[:offset].decode("utf-8", "replace").removeprefix("\ufeff")
        line = before.count("\n") + 1
        return PipelineError((Problem(file, line, len(before) - (before.rfind("\n") + 1) + 1, message),))

    if len(raw) > MAX_BYTES:
        raise refuse(0, f"the file has {len(raw):,} bytes; a pipeline has at most {MAX_BYTES:,}")
    if (lines := raw.count(b"\n") + raw.count(b"\r")) > MAX_LINES:
        raise refuse(0, f"the file has {lines:,} lines; a pipeline has at most {MAX_LINES:,}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"the byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise refuse(error.start, found) from None
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise refuse(0, "the file is empty; a pipeline has at least `stages:`")
    if wrong := _FORBIDDEN.search(text):
        offset = len(text[: wrong.start()].encode()) + (3 if raw.startswith(b"\xef\xbb\xbf") else 0)
        what = "a NUL byte" if wrong[0] == "\0" else f"the control character U+{ord(wrong[0]):04X}"
        raise refuse(offset, f"{what} stands here; a pipeline is plain text")
    if len(text.split()) > MAX_WORDS:
        raise refuse(0, f"the file has more than {MAX_WORDS:,} words; keep long scripts in files of their own")
    return text


@dataclass(slots=True)
class _Composer:
    file: str
    source: str
    mark: str = ""
    """The file of every place: empty for the main one."""
    problems: list[Problem] = field(default_factory=list)
    anchors: dict[str, Node | None] = field(default_factory=dict)
    nodes: int = 0
    chars: int = 0
    last: Place = field(default_factory=lambda: Place(1, 1))
    end: Place = field(default_factory=lambda: Place(1, 1))
    lines: list[str] = field(init=False)
    events: Iterator[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = _LINES.split(self.source)

    def document(self) -> Node:
        self.events = self._events()
        for event in self.events:
            if isinstance(event, StreamEndEvent):
                raise self._stop(Place(1, 1), "the file is empty; a pipeline has at least `stages:`")
            if isinstance(event, DocumentStartEvent):
                break
        root = self._node(next(self.events), 1)
        next(self.events)  # the end of the document
        after = next(self.events)
        if not isinstance(after, StreamEndEvent):
            raise self._stop(
                self.last, "a second document begins here; a pipeline is one document, so remove the `---`"
            )
        if self.problems:
            raise PipelineError(tuple(self.problems))
        return root

    def _events(self) -> Iterator[Any]:
        yaml = YAML(typ="safe", pure=True)
        yaml.Scanner = _Scanner
        try:
            for event in yaml.parse(self.source):
                self.last = Place(event.start_mark.line + 1, event.start_mark.column + 1, self.mark)
                self.end = Place(event.end_mark.line + 1, event.end_mark.column + 1)
                yield event
        except MarkedYAMLError as error:
            mark, message = sentence_of(error)
            place = Place(mark.line + 1, mark.column + 1, self.mark) if mark else self.last
            raise self._stop(place, message) from None
        except (YAMLError, ValueError, LookupError, AttributeError, TypeError, AssertionError):
            # The scanner meets some malformed escapes unprepared; nothing of that is worth more words.
            raise self._stop(self.last, "from here on this is not valid YAML") from None

    def _stop(self, place: Place, message: str) -> PipelineError:
        return PipelineError((*self.problems, Problem(self.file, place.line, place.column, message)))

    def _note(self, place: Place, message: str) -> None:
        self.problems.append(Problem(self.file, place.line, place.column, message))

    def _count(self, place: Place, nodes: int, chars: int) -> None:
        self.nodes += nodes
        self.chars += chars
        if self.nodes > MAX_NODES:
            message = f"the file holds more than {MAX_NODES:,} values once aliases are expanded; split the pipeline"
            raise self._stop(place, message)
        if self.chars > MAX_BYTES:
            message = f"the file holds more than {MAX_BYTES:,} characters once aliases are expanded; split the pipeline"
            raise self._stop(place, message)

    def _deep(self, place: Place, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self._stop(place, f"this is nested more than {MAX_DEPTH} levels deep; no pipeline needs that")

    def _node(self, event: Any, depth: int) -> Node:
        place = self.last
        if isinstance(event, AliasEvent):
            return self._alias(event.anchor, place, depth)
        self._deep(place, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        node: Node
        if isinstance(event, ScalarEvent):
            node = self._scalar(event, place)
        elif isinstance(event, SequenceStartEvent):
            self._count(place, 1, 0)
            node = self._sequence(place, depth)
        else:
            assert isinstance(event, MappingStartEvent)
            self._count(place, 1, 0)
            node = self._mapping(place, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, anchor: str, place: Place, depth: int) -> Node:
        if anchor not in self.anchors:
            raise self._stop(place, f"the alias `*{anchor[:60]}` names no anchor above; write `&{anchor[:60]}` first")
        node = self.anchors[anchor]
        if node is None:
            raise self._stop(place, f"the alias `*{anchor[:60]}` stands inside what it names; it would never end")
        self._count(place, node.nodes, node.chars)
        self._deep(place, depth + node.height - 1)
        return node

    def _scalar(self, event: Any, place: Place) -> Scalar:
        text: str = event.value
        self._count(place, 1, len(text))
        if "\0" in text:
            self._note(place, "this text holds a NUL; remove the `\\0`")
        elif _SURROGATE.search(text):
            self._note(place, "this text holds half a character; check its `\\u` escapes")
        plain = event.implicit[0] and event.style in {None, ""}
        keeps = "${{" in text or len(text) < MAX_INLINE
        raw = tuple(self.lines[place.line - 1 : self.end.line]) if keeps else ()
        # A block ends at the beginning of the line behind it.
        raw, until = (raw[:-1], len(raw[-2])) if len(raw) > 1 and self.end.column == 1 else (raw, self.end.column - 1)
        return Scalar(place, text, _kind(text) if plain else Kind.TEXT, raw, until)

    def _sequence(self, place: Place, depth: int) -> Sequence:
        items: list[Node] = []
        for event in self.events:
            if not isinstance(event, AliasEvent | ScalarEvent | SequenceStartEvent | MappingStartEvent):
                break
            items.append(self._node(event, depth + 1))
        nodes = 1 + sum(each.nodes for each in items)
        height = 1 + max((each.height for each in items), default=0)
        return Sequence(place, tuple(items), nodes, height, sum(each.chars for each in items))

    def _mapping(self, place: Place, depth: int) -> Mapping:
        own: dict[str, tuple[Scalar, Node]] = {}
        merged: list[Node] = []
        for event in self.events:
            if not isinstance(event, AliasEvent | ScalarEvent | SequenceStartEvent | MappingStartEvent):
                break
            at = self.last
            key = self._node(event, depth + 1)
            plain = isinstance(event, ScalarEvent) and event.implicit[0]
            value = self._node(next(self.events), depth + 1)
            if not isinstance(key, Scalar):
                self._note(at, "a key must be a single word, not a list or a mapping")
            elif key.text == "<<" and plain:
                merged.extend(value.items if isinstance(value, Sequence) else (value,))
            elif key.text in own:
                first = own[key.text][0].place.line
                message = f"the key {shown(key.text)} stands here twice, first in line {first}; remove one"
                self._note(at, message)
            else:
                own[key.text] = (key, value)
        for each in merged:
            if not isinstance(each, Mapping):
                message = "`<<` merges mappings only; give it an alias of a mapping, or a list of them"
                self._note(each.place, message)
                continue
            for inherited, value in each.entries:
                own.setdefault(inherited.text, (inherited, value))
        pairs = tuple(own.values())
        nodes = 1 + sum(key.nodes + value.nodes for key, value in pairs)
        height = 1 + max((value.height for _, value in pairs), default=0)
        return Mapping(place, pairs, nodes, height, sum(key.chars + value.chars for key, value in pairs))


def _kind(text: str) -> Kind:
    if text in {"", "~", "null", "Null", "NULL"}:
        return Kind.NULL
    if _BOOL.fullmatch(text):
        return Kind.BOOL
    if _INT.fullmatch(text) or _FLOAT.fullmatch(text):
        return Kind.NUMBER
    return Kind.TEXT
