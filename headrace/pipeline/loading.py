"""Loading: bytes in, a checked pipeline out, or every mistake of the file at once."""

from __future__ import annotations

from headrace.pipeline.checks import check
from headrace.pipeline.language import PIPELINE
from headrace.pipeline.model import Pipeline
from headrace.pipeline.nodes import parse
from headrace.pipeline.problems import Report


def load(text: bytes, name: str) -> Pipeline:
    """Read and check a pipeline file. `name` is the file's path as messages should show it.

    Raises `PipelineError`, and nothing else, with every mistake of the file. Broken YAML ends the reading at once:
    what stands behind the break cannot be judged.
    """
    root = parse(text, name)
    report = Report(name)
    pipeline: Pipeline = PIPELINE.read(root, "the pipeline", report)
    check(pipeline, report)
    report.raise_if_any()
    return pipeline
