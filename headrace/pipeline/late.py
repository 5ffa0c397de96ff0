"""Which expressions of a planned job are left to its agent, and what they look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from headrace.pipeline.expressions import uses_of
from headrace.pipeline.plan import PlannedJob, RunStep
from headrace.pipeline.values import Expression, Template, Text


def late_expressions(job: PlannedJob) -> Iterator[Expression]:
    """Everything that the agent evaluates."""
    texts: list[Text] = [job.image, *job.env.values(), *job.outputs.values()]
    for cache in job.caches:
        texts += [cache.key, *cache.restore]
    for service in job.services:
        texts += service.env.values()
    for step in job.steps:
        if isinstance(step, RunStep):
            texts += step.env.values()
        if step.condition is not None:
            yield step.condition
    for text in texts:
        if isinstance(text, Template):
            yield from text.expressions


def roots_of(expressions: Iterable[Expression]) -> frozenset[str]:
    """The names that they begin with: `needs`, `steps`, …"""
    found = set()
    for each in expressions:
        checked = uses_of(each.text)
        found |= {use.path[0] for use in checked.uses} if checked else set()
    return frozenset(found)
