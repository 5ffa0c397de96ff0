"""From a job whose matrix has become known to the rows of its cells: those that are new, and those that were there.

The cells are told apart by their values. A retry of what gave the values asks for the expander again, and with it for
all its cells; none of them goes on before the expander does: by then those that are in the matrix no more are out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from coordinator.core.events import Asked, Expanded, JobEvent, Vanished
from coordinator.core.extend import Addition, Extended, Standing, grown
from coordinator.core.job import Job, step
from coordinator.core.rules import Verdict
from coordinator.core.states import NEVER_BEGUN, Cause

MOST_ROWS = 5_000
"""Jobs of a run, with all cells that its matrices ever had."""


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of a matrix as it is now. `values`: by key, its values as text that is equal for equal ones."""

    values: Mapping[str, str]
    new: Sequence[Job]
    """Those of a key that the run does not know, with ids of their own."""
    needs: Mapping[int, tuple[int, ...]]
    """Of all jobs of the run that are in its plan, and of the new ones: all their needs."""
    verdict: Verdict = field(default_factory=Verdict)
    """Why there are none."""


@dataclass(frozen=True, slots=True)
class Expansion:
    """What is to be stored. `added`: ids of cells that are new; `more`: further needs of jobs that are there."""

    extended: Extended
    added: frozenset[int] = frozenset()
    more: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    failed: bool = False
    """Nothing has become known."""


def expand(now: Standing, expander: int, there: Mapping[int, str], cells: Cells) -> Expansion:
    """The rows of a run when the cells of a job are known. `there`: by id, the values of the cells that it has.

    What is new waits for the expander, which ends last of all.
    """
    jobs = {job.id: job for job in now.jobs}
    by = jobs[expander]
    if cells.verdict.cause in NEVER_BEGUN or (problem := _problem(now, jobs, there, cells)):
        verdict = cells.verdict if cells.verdict.cause is not Cause.NONE else Verdict(Cause.EXPRESSION_FAILED, problem)
        extended = grown(now, Addition((), {}, guarded=frozenset(now.doors)))
        return Expansion(replace(extended, events=((expander, Expanded(verdict)),)), failed=True)
    wanted = [key for key in there if jobs[key].key in cells.values]
    # A new cell of a deployment asks a person where those that were there do.
    added = [replace(job, asks=job.at_most_once and by.asks) for job in cells.new]
    back = [
        step(jobs[key], Asked(1, 0, "", asks=jobs[key].at_most_once and by.asks))
        for key in wanted
        if jobs[key].has_vanished
    ]
    known = {key: needs for key, needs in cells.needs.items() if key in jobs}
    addition = Addition(
        [*added, *back],
        {job.id: cells.needs[job.id] for job in added},
        guarded=frozenset(now.doors),
        more={key: more for key, needs in known.items() if (more := _without(needs, now.graph.needs.get(key, ())))},
    )
    sentence = f"`{by.key}` was expanded anew, and has this cell no more"
    gone: list[tuple[int, JobEvent]] = [
        (key, Vanished(sentence)) for key in there if key not in wanted and _may_vanish(jobs[key])
    ]
    made = grown(now, addition)
    events = (*gone, *made.events, (expander, Expanded(cells.verdict)))
    return Expansion(replace(made, events=events), frozenset(job.id for job in added), addition.more)


def _without(needs: Sequence[int], known: Sequence[int]) -> tuple[int, ...]:
    before = frozenset(known)
    return tuple(need for need in needs if need not in before)


def _may_vanish(job: Job) -> bool:
    return not job.has_vanished and (job.is_idle or bool(job.rules.skip))


def _problem(now: Standing, jobs: Mapping[int, Job], there: Mapping[int, str], cells: Cells) -> str:
    """Why the cells cannot be; empty: they can."""
    for key, values in there.items():
        if cells.values.get(jobs[key].key, values) != values:
            return f"the cell `{jobs[key].key}` was there before with a value of another type: a name stands for one"
    if len(now.jobs) + len(cells.new) > MOST_ROWS:
        return f"the run has had {len(now.jobs):,} jobs by now, and keeps at most {MOST_ROWS:,}; start a new one"
    return ""
