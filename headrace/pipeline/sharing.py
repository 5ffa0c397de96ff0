"""Sharing definitions inside a repository: `include` brings in files, `extends` builds a job on templates.

Both work on nodes, before anything is read, so that every mistake is told at the place where it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from headrace.pipeline.nodes import MAX_BYTES, MAX_NODES, Mapping, Node, Scalar, Sequence, parse
from headrace.pipeline.problems import PipelineError, Report, shown
from headrace.pipeline.shapes import NAME, kind_of

Read = Callable[[str], bytes | None]
"""The bytes of a file of the repository by its path from the root; None: there is none."""

MAX_INCLUDES = 20
MAX_EXTENDS = 20
"""Templates that extend one another in a row."""
_INCLUDED = ("templates", "env", "defaults", "include")
_MERGED = frozenset({"env", "requires", "outputs", "services", "resources"})
"""Mappings of a job that are merged key by key; everything else of a template is replaced as a whole."""


@dataclass(frozen=True, slots=True)
class Shared:
    """A file with what it shares resolved. `templates`: to be read once for themselves, so that none goes unchecked."""

    root: Mapping
    templates: tuple[tuple[Scalar, Node], ...]


def share(root: Mapping, report: Report, read: Read | None) -> Shared:
    """The root mapping without `include`, `templates` and `extends`; mistakes are noted."""
    gathering = _Gathering(report, read, nodes=root.nodes, size=root.chars)
    own = {key.text: (key, value) for key, value in root.entries}
    gathering.file(own, above=(report.file,))
    templates = gathering.templates
    jobs = _Extending(templates, report)
    jobs.check()
    entries: list[tuple[Scalar, Node]] = []
    for name, (key, value) in own.items():
        if name in {"include", "templates"}:
            continue
        shared = gathering.shared.pop(name)[1] if name in {"env", "defaults"} and name in gathering.shared else value
        entries.append((key, jobs.stages(value) if name == "stages" else _merged(shared, value)))
    entries += [gathering.shared[name] for name in ("env", "defaults") if name in gathering.shared and name not in own]
    return Shared(replace(root, entries=tuple(entries)), tuple(templates.values()))


def resolved(root: Mapping, shared: Shared, report: Report) -> Mapping:
    """The root of a fragment with its jobs built on the templates of its run's file; mistakes are noted."""
    jobs = _Extending({key.text: (key, node) for key, node in shared.templates}, report)
    resolve = {"stages": jobs.stages, "jobs": jobs.jobs}
    return replace(root, entries=tuple((key, resolve.get(key.text, _as_it_is)(node)) for key, node in root.entries))


def _as_it_is(node: Node) -> Node:
    return node


@dataclass(slots=True)
class _Gathering:
    """What a file and those that it includes share, the including file first."""

    report: Report
    read: Read | None
    templates: dict[str, tuple[Scalar, Node]] = field(default_factory=dict)
    shared: dict[str, tuple[Scalar, Node]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    nodes: int = 0
    size: int = 0

    def file(self, own: dict[str, tuple[Scalar, Node]], *, above: tuple[str, ...]) -> None:
        if "templates" in own:
            self._templates(*own["templates"])
        if "include" in own:
            for path in self._paths(own["include"][1]):
                self._include(path, above)

    def _templates(self, _: Scalar, node: Node) -> None:
        if not isinstance(node, Mapping):
            self.report.add(node.place, f"`templates` must be a mapping of names to jobs, but this is {kind_of(node)}")
            self.report.hidden = True
            return
        for key, value in node.entries:
            if not NAME.fullmatch(key.text):
                self.report.add(
                    key.place, f"a template cannot be named {shown(key.text)}; a name is letters and digits"
                )
            elif not isinstance(value, Mapping):
                message = f"the template {shown(key.text)} must be a mapping, but this is {kind_of(value)}"
                self.report.add(value.place, message)
            else:
                self.templates.setdefault(key.text, (key, value))

    def _paths(self, node: Node) -> Iterator[Scalar]:
        if not isinstance(node, Sequence):
            self.report.add(node.place, f"`include` must be a list of `local: PATH`, but this is {kind_of(node)}")
            self.report.hidden = True
            return
        for item in node.items:
            entries = item.entries if isinstance(item, Mapping) else ()
            value = entries[0][1] if len(entries) == 1 and entries[0][0].text == "local" else None
            if not isinstance(value, Scalar) or not value.text:
                self.report.add(item.place, "an include is `local: PATH`, a file of this repository")
                self.report.hidden = True
                continue
            yield value

    def _include(self, path: Scalar, above: tuple[str, ...]) -> None:
        name = "/".join(part for part in path.text.split("/") if part not in {"", "."})
        wrong = ""
        if path.text.startswith(("/", "~")) or ".." in path.text.split("/") or not name or not name.isprintable():
            wrong = f"{shown(path.text)} is not inside the repository; write the path from its root"
        elif name in above:
            wrong = f"the files include each other for ever: {' → '.join((*above[above.index(name) :], name))}"
        elif len(self.seen) >= MAX_INCLUDES:
            wrong = f"more than {MAX_INCLUDES} files are included; put some together"
        elif self.read is None:
            wrong = "a file can only be included from a repository, and this one was read alone"
        if not wrong and name in self.seen:
            return
        text = None if wrong or self.read is None else self.read(name)
        if not wrong and text is None:
            wrong = f"there is no file {shown(name)} in the repository"
        if text is not None and self.size + len(text) > MAX_BYTES:
            wrong = f"the file and those that it includes together hold more than {MAX_BYTES:,} bytes"
        if wrong or text is None:
            self.report.add(path.place, wrong)
            self.report.hidden = True
            return
        self.seen.add(name)
        self.size += len(text)
        self._included(path, name, text, (*above, name))

    def _included(self, path: Scalar, name: str, text: bytes, above: tuple[str, ...]) -> None:
        try:
            root = parse(text, name, included=True)
        except PipelineError as error:
            self.report.problems.extend(error.problems)
            self.report.hidden = True
            return
        self.nodes += root.nodes
        if self.nodes > MAX_NODES:
            self.report.add(
                path.place, f"the file and those that it includes together hold more than {MAX_NODES:,} values"
            )
            raise PipelineError(tuple(self.report.problems))
        own = {}
        for key, value in root.entries:
            if key.text not in _INCLUDED:
                hint = self.report.suggestion(key.text, list(_INCLUDED)) or f"; it holds {', '.join(_INCLUDED)}"
                self.report.add(key.place, f"an included file has no key {shown(key.text)}{hint}")
                continue
            own[key.text] = (key, value)
        for name_of in ("env", "defaults"):
            if name_of in own:
                before = self.shared.get(name_of)
                key, value = own[name_of]
                self.shared[name_of] = (key, value if before is None else _merged(value, before[1]))
        self.file(own, above=above)


@dataclass(slots=True)
class _Extending:
    """Jobs built on templates."""

    templates: dict[str, tuple[Scalar, Node]]
    report: Report
    nodes: int = 0
    made: dict[str, Node] = field(default_factory=dict)
    """Templates with what they extend filled in."""
    depth: dict[str, int] = field(default_factory=dict)
    """How many extend one another up to it, itself counted."""

    def check(self) -> None:
        """Fill in every template, so that no mistake waits for the first job that uses it."""
        for name, (key, _) in self.templates.items():
            self._template(replace(key, text=name), ())

    def stages(self, node: Node) -> Node:
        """The stages with every job resolved."""
        if not isinstance(node, Sequence):
            return node
        return replace(node, items=tuple(self._stage(each) for each in node.items))

    def _stage(self, node: Node) -> Node:
        if not isinstance(node, Mapping):
            return node
        return replace(
            node,
            entries=tuple((key, self.jobs(value) if key.text == "jobs" else value) for key, value in node.entries),
        )

    def jobs(self, node: Node) -> Node:
        """The jobs of one stage, resolved."""
        if not isinstance(node, Mapping):
            return node
        return replace(node, entries=tuple((key, self.resolved(value, ())) for key, value in node.entries))

    def resolved(self, node: Node, above: tuple[str, ...]) -> Node:
        """A job or a template with what it extends merged in; its own keys win."""
        if not isinstance(node, Mapping) or all(key.text != "extends" for key, _ in node.entries):
            return node
        own = replace(node, entries=tuple(each for each in node.entries if each[0].text != "extends"))
        extends = next(value for key, value in node.entries if key.text == "extends")
        found: Node = own
        for name in reversed(self._names(extends)):
            base = self._template(name, above)
            if base is None or base.place in self.report.partial:
                self.report.partial.add(node.place)
            if base is not None:
                found = _merged(base, found)
        self.nodes += found.nodes
        if self.nodes > MAX_NODES:
            message = f"the jobs hold more than {MAX_NODES:,} values once templates are filled in; split the pipeline"
            self.report.add(extends.place, message)
            raise PipelineError(tuple(self.report.problems))
        return found

    def _names(self, node: Node) -> list[Scalar]:
        items = node.items if isinstance(node, Sequence) else (node,)
        found = [each for each in items if isinstance(each, Scalar) and each.text]
        if len(found) != len(items) or not found:
            self.report.hidden = True
            self.report.add(node.place, "`extends` must be the name of a template, or a list of names")
        return found

    def _template(self, name: Scalar, above: tuple[str, ...]) -> Node | None:
        if name.text in above:
            circle = " → ".join((*above[above.index(name.text) :], name.text))
            self.report.add(name.place, f"the templates extend each other for ever: {circle}")
            return None
        if len(above) >= MAX_EXTENDS or self.depth.get(name.text, 0) > MAX_EXTENDS:
            self.report.add(name.place, f"more than {MAX_EXTENDS} templates extend one another; put some together")
            return None
        if name.text not in self.templates:
            if not self.report.hidden:
                hint = self.report.suggestion(name.text, list(self.templates))
                self.report.add(name.place, f"there is no template {shown(name.text)}{hint}")
            return None
        if name.text not in self.made:
            node = self.templates[name.text][1]
            self.made[name.text] = self.resolved(node, (*above, name.text))
            self.depth[name.text] = 1 + max((self.depth.get(each, 0) for each in _bases(node)), default=0)
        return self.made[name.text]


def _bases(node: Node) -> Iterator[str]:
    """The names that a job or a template extends."""
    for key, value in node.entries if isinstance(node, Mapping) else ():
        if key.text == "extends":
            items = value.items if isinstance(value, Sequence) else (value,)
            yield from (each.text for each in items if isinstance(each, Scalar))


def _merged(base: Node, over: Node) -> Node:
    """A mapping over another: its own keys win, and the mappings in `_MERGED` are merged key by key."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    entries = {key.text: (key, value) for key, value in base.entries}
    for key, value in over.entries:
        before = entries.get(key.text)
        merged = _merged(before[1], value) if before is not None and key.text in _MERGED else value
        entries[key.text] = (key, merged)
    pairs = tuple(entries.values())
    nodes = 1 + sum(key.nodes + value.nodes for key, value in pairs)
    return replace(over, entries=pairs, nodes=nodes)
