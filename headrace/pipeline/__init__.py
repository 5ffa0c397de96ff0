"""The pipeline language: load, check, expand. Pure: no I/O, no clock, no asyncio.

`load` reads a file and raises `PipelineError` with all its mistakes; `expand` makes the `Plan` for an `Event`.
"""

from headrace.pipeline.as_json import plan_to_json
from headrace.pipeline.event import Event, PullRequest
from headrace.pipeline.expand import expand
from headrace.pipeline.loading import load
from headrace.pipeline.model import Pipeline
from headrace.pipeline.plan import Plan, PlannedJob, PlannedStage, SandboxKind
from headrace.pipeline.problems import PipelineError, Problem

__all__ = [
    "Event",
    "Pipeline",
    "PipelineError",
    "Plan",
    "PlannedJob",
    "PlannedStage",
    "Problem",
    "PullRequest",
    "SandboxKind",
    "expand",
    "load",
    "plan_to_json",
]
