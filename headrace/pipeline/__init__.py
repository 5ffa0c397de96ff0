"""The pipeline language: load, check, expand. Pure: no I/O, no clock, no asyncio.

`load` reads a file and raises `PipelineError` with all its mistakes; `start` says whether an `Event` starts it;
`expand` makes the `Plan` for an event, and `explain` tells of that plan what would run, and why. `schema` is the JSON
Schema of such a file.
"""

from headrace.pipeline.as_json import explanation_to_json, plan_to_json
from headrace.pipeline.event import Event, PullRequest
from headrace.pipeline.expand import expand
from headrace.pipeline.explaining import Explanation, explain
from headrace.pipeline.language import schema
from headrace.pipeline.loading import load
from headrace.pipeline.model import Pipeline
from headrace.pipeline.plan import Plan, PlannedJob, PlannedStage, SandboxKind
from headrace.pipeline.problems import PipelineError, Problem
from headrace.pipeline.starting import Start, start

__all__ = [
    "Event",
    "Explanation",
    "Pipeline",
    "PipelineError",
    "Plan",
    "PlannedJob",
    "PlannedStage",
    "Problem",
    "PullRequest",
    "SandboxKind",
    "Start",
    "expand",
    "explain",
    "explanation_to_json",
    "load",
    "plan_to_json",
    "schema",
    "start",
]
