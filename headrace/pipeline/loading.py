"""Loading: bytes in, a checked pipeline out, or every mistake of the file at once."""

from __future__ import annotations

from headrace.pipeline.checks import check
from headrace.pipeline.language import PIPELINE, TEMPLATE
from headrace.pipeline.model import Pipeline
from headrace.pipeline.nodes import parse
from headrace.pipeline.problems import Report, shown
from headrace.pipeline.sharing import Read, Shared, share


def load(text: bytes, name: str, read: Read | None = None) -> Pipeline:
    """Read and check a pipeline file. `name` is the file's path as messages should show it.

    `read` gives the files of its repository, for `include`. Raises `PipelineError`, and nothing else, with every
    mistake of the file and of those that it includes. Broken YAML ends the reading at once: what stands behind the
    break cannot be judged.
    """
    report = Report(name)
    pipeline, _ = read_whole(text, name, read, report)
    check(pipeline, report)
    report.raise_if_any()
    return pipeline


def read_whole(text: bytes, name: str, read: Read | None, report: Report) -> tuple[Pipeline, Shared]:
    """Read a pipeline file, and what it shares, without a look at the whole. Raises `PipelineError` for broken YAML."""
    shared = share(parse(text, name), report, read)
    for key, node in shared.templates:
        TEMPLATE.read(node, f"the template {shown(key.text)}", report)
    pipeline: Pipeline = PIPELINE.read(shared.root, "the pipeline", report)
    return pipeline.with_keys(), shared
