"""Makes the generated parts of the documentation: state diagrams, settings, metrics, the keys of pipelines.

A part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; the text around it is written by hand.
"""

import re
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path

import pipeline_docs
from prometheus_client import CollectorRegistry
from pydantic_settings import BaseSettings

from agent.metrics import Metrics as AgentMetrics
from agent.sandbox import passed
from agent.settings import Settings as AgentSettings
from coordinator.core import attempt, job, run
from coordinator.core.states import AttemptState, JobState, RunState
from coordinator.metrics import Metrics as CoordinatorMetrics
from coordinator.settings import Settings as CoordinatorSettings

DOCS = Path(__file__).resolve().parent.parent / "docs"

# What is wired by the commands themselves and is no operator's business.
HIDDEN = {"ready_fd", "embedded", "local", "local_paths"}


def diagram(edges: Iterable[tuple[StrEnum, StrEnum, str]], begin: StrEnum) -> str:
    """A Mermaid state diagram; several events between the same states share an arrow."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for source, target, label in edges:
        found = arrows.setdefault((source, target), [])
        if label and label not in found:
            found.append(label)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {begin}"]
    for (source, target), labels in sorted(arrows.items()):
        lines.append(f"    {source} --> {target}" + (f": {', '.join(labels)}" if labels else ""))
    ends = {target for _, target in arrows} - {source for source, _ in arrows}
    lines += [f"    {end} --> [*]" for end in sorted(ends)]
    return "\n".join([*lines, "```"])


def of_table(table: dict[tuple[StrEnum, type], frozenset[StrEnum]]) -> list[tuple[StrEnum, StrEnum, str]]:
    """The arrows of a transition table."""
    return [(source, target, event.__name__) for (source, event), targets in table.items() for target in targets]


def run_diagram() -> str:
    """The run's, whose table has no events: its state follows from counters."""
    return diagram(((s, t, "") for s, targets in run.TABLE.items() for t in targets), RunState.PENDING)


def settings(kind: type[BaseSettings]) -> str:
    """A table of settings: variable, default, meaning."""
    rows = ["| variable | default | what it is |", "| --- | --- | --- |"]
    for name, field in kind.model_fields.items():
        if name in HIDDEN:
            continue
        default = "" if field.default_factory is not None else _shown(field.get_default())
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `HEADRACE_{name.upper()}` | {default} | {meaning} |")
    return "\n".join(rows)


def _shown(value: object) -> str:
    if value in (None, "", ()) or "SecretStr" in repr(value):
        return ""
    text = ", ".join(str(each) for each in value) if isinstance(value, tuple) else str(value)
    return f"`{text}`"


def metrics(registry: CollectorRegistry) -> str:
    """A table of our own metrics; those of the process are the client library's."""
    rows = ["| metric | kind | what it is |", "| --- | --- | --- |"]
    for family in sorted(registry.collect(), key=lambda each: each.name):
        if family.name.startswith("headrace_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append(f"| `{name}` | {family.type} | {family.documentation} |")
    return "\n".join(rows)


def passed_variables() -> str:
    """The names that jobs are given, from the pattern that decides it. Raises ValueError for what this cannot read."""
    pattern = re.sub(r"\[[^]]+\]\+", "*", passed._NAMES.pattern)  # noqa: SLF001 - the list itself, or it goes stale
    while group := re.search(r"(?<![^|])\(([^()]+)\)([^|]*)", pattern):
        names = "|".join(each + group[2] for each in group[1].split("|"))
        pattern = pattern[: group.start()] + names + pattern[group.end() :]
    if not re.fullmatch(r"[A-Za-z0-9_*|]+", pattern):
        raise ValueError(f"no list of names: {pattern}")
    return "\n".join(f"- `{name}`" for name in pattern.split("|"))


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "run states": ("architecture.md", run_diagram),
    "job states": ("architecture.md", lambda: diagram(of_table(job.TABLE), JobState.WAITING)),
    "attempt states": ("architecture.md", lambda: diagram(of_table(attempt.TABLE), AttemptState.LEASED)),
    "coordinator settings": ("reference/settings.md", lambda: settings(CoordinatorSettings)),
    "agent settings": ("reference/settings.md", lambda: settings(AgentSettings)),
    "passed variables": ("reference/settings.md", passed_variables),
    "pipeline example": ("reference/pipeline.md", pipeline_docs.example),
    "pipeline keys": ("reference/pipeline.md", pipeline_docs.keys),
    "pipeline bounds": ("reference/pipeline.md", pipeline_docs.bounds),
    "pipeline scopes": ("reference/pipeline.md", pipeline_docs.seen),
    "coordinator metrics": ("reference/metrics.md", lambda: metrics(CoordinatorMetrics().registry)),
    "agent metrics": ("reference/metrics.md", lambda: metrics(AgentMetrics().registry)),
}


def main() -> int:
    """Writes every part anew; what was stale shows as a difference in git."""
    for name, (file, make) in PARTS.items():
        path = DOCS / file
        text = path.read_text("utf-8")
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            print(f"{path}: the marks of `{name}` are missing")
            return 1
        part = make()
        path.write_text(pattern.sub(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
