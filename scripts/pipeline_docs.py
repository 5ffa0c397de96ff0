"""The generated parts of the manual of the pipeline file, from the model that reads it."""

import json
from pathlib import Path

from headrace.pipeline import bounds as planned
from headrace.pipeline import (
    cells,
    expressions,
    language,
    matrix_form,
    nodes,
    patterns,
    scopes,
    shapes,
    sharing,
    triggers,
)
from headrace.pipeline.described import KEYS
from headrace.pipeline.model import Sees
from headrace.pipeline.records import Record

EXAMPLE = Path(__file__).resolve().parent.parent / "tests/pipelines/good/language.yml"
PLACES = {
    Sees.EVENT: "`timeout`, `allow_failure`, `requires`, artifacts; of a step also `name`, `workdir`, `use`, `path`",
    Sees.FILE: "`pool`, the name of an `environment`",
    Sees.CELL: "`run`",
    Sees.JOB: "`env` of pipeline, stage, job and service; `image`",
    Sees.MATRIX: "the values of a `matrix`",
    Sees.JOB_IF: "a job's `if`",
    Sees.STAGE_IF: "a stage's `if`",
    Sees.STEP: "a step's `env`, cache keys, a job's `outputs`",
    Sees.STEP_IF: "a step's `if`",
    Sees.APPROVAL: "an approval's `message`, an environment's `url`",
}


def example() -> str:
    """The language's own example, which is a test."""
    return f"```yaml\n{EXAMPLE.read_text('utf-8').strip()}\n```"


def keys() -> str:
    """A table of keys for each record; what is not built yet is marked."""
    found = {
        each.level: each for room in (triggers, language) for each in vars(room).values() if isinstance(each, Record)
    }
    parts = []
    for level, about in KEYS.items():
        record = found[level]
        rows = [f"### In {level}", "", "| key | what it is | example |", "| --- | --- | --- |"]
        for key, (text, value) in about.items():
            is_needed = " (has to be there)" if key in record.required else ""
            built = f" — not built yet: {record.unbuilt[key]}" if key in record.unbuilt else ""
            shown = json.dumps(value, ensure_ascii=False).replace("|", "\\|")
            rows.append(f"| `{key}` | {text}{is_needed}{built} | `{shown}` |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def bounds() -> str:
    """What one file may hold."""
    of_file = f"{nodes.MAX_BYTES >> 20} MiB, {nodes.MAX_LINES:,} lines, {nodes.MAX_NODES:,} values after anchors"
    of_run = f"{cells.MAX_JOBS:,} jobs a run, copies counted; {language.MAX_STEPS} steps a job"
    of_matrix = f"{matrix_form.MAX_KEYS} keys of a matrix, {matrix_form.MAX_VALUES:,} values each"
    different = f"{expressions.MOST_DIFFERENT:,} different ones, of {expressions.MOST_CHARS:,} characters together"
    lines = [
        f"{of_file} are expanded, a depth of {nodes.MAX_DEPTH}; bytes and values of included files are counted",
        f"{sharing.MAX_INCLUDES} included files; {sharing.MAX_EXTENDS} templates that extend one another in a row",
        f"{of_run}, {planned.MAX_PLANNED_STEPS:,} in all copies; {of_matrix}",
        f"{expressions.MAX_CHARS:,} characters of an expression; {different}; {shapes.MAX_EXPRESSIONS} in one text",
        f"a pattern whose length times its repetitions is over {patterns.MOST_OF_ONE:,} is refused",
        f"{planned.MAX_ENV_BYTES >> 20} MiB of environment over all jobs",
    ]
    return "\n".join(f"- {each}" for each in lines)


def seen() -> str:
    """Which names may stand where."""
    rows = ["| where | names |", "| --- | --- |"]
    for sees, where in PLACES.items():
        names = ", ".join(f"`{each}`" for each in scopes.NAMES[sees])
        rows.append(f"| {where} | {names}{', and the four functions' if sees in scopes.WITH_STATUS else ''} |")
    return "\n".join(rows)
