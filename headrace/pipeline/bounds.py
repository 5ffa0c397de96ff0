"""What all jobs of a run may hold together, every copy counted: a small file must not blow up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.pipeline.expression_checks import MOST_EVALUATED, expressions_in
from headrace.pipeline.model import JobDef, Late, Pipeline, StageDef
from headrace.pipeline.problems import Report

MAX_PLANNED_STEPS = 50_000
"""Of all jobs of a run, every copy counted."""
MAX_ENV_BYTES, ENTRY_BYTES = 16 << 20, 64
"""Of the environments of all jobs, and what an entry costs beside its text."""


def env_bytes(env: Mapping[str, str | Late]) -> int:
    """What variables weigh."""
    texts = (name + (each.node.text if isinstance(each, Late) else each) for name, each in env.items())
    return sum(len(each) + ENTRY_BYTES for each in texts)


@dataclass(slots=True)
class Bounds:
    """Counts while a run is planned: the loader has counted each matrix whose values it did not know as one job."""

    pipeline: Pipeline
    report: Report
    steps: int = 0
    env: int = 0
    expressions: int = 0

    def hold(self, stage: StageDef, job: JobDef, copies: int) -> bool:
        """Counts the copies of a job; whether they are still within bounds, else the mistake is noted."""
        self.steps += len(job.steps) * copies
        self.env += sum(map(env_bytes, (self.pipeline.env, stage.env, job.env))) * copies
        self.expressions += expressions_in(job) * copies
        found = (
            (self.steps, MAX_PLANNED_STEPS, "steps"),
            (self.env, MAX_ENV_BYTES, "bytes of environment"),
            (self.expressions, MOST_EVALUATED, "expressions"),
        )
        for count, most, what in found:
            if count > most:
                message = f"the jobs have {count:,} {what} by here, those of every copy counted"
                self.report.add(job.name.place, f"{message}; a run has at most {most:,}")
                return False
        return True
