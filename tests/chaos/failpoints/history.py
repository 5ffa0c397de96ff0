"""What really happened to some runs, and an independent judge of it, which knows the promise alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

BUDGET = 3
"""Attempts that a job has when the machinery fails."""


@dataclass(frozen=True)
class AttemptRow:
    """An attempt as the database has it. `printed`: its log, what the job itself wrote; None: it never began."""

    id: int
    number: int
    state: str
    began: bool
    printed: bytes | None = None
    sealed: bool = True
    """Whether its log is complete."""
    sentence: str = ""
    """Why it ended so."""


@dataclass(frozen=True)
class JobRow:
    """A job. `expected`: what an attempt of that number prints."""

    run: int
    key: str
    deployment: bool
    state: str
    sentence: str
    attempts: Sequence[AttemptRow]
    expected: Mapping[int, bytes]

    @property
    def name(self) -> str:
        """For complaints."""
        return f"run {self.run} {self.key}"


@dataclass
class History:
    """All that is known when everything has ended. `asked`: runs that were created, as who created them knows."""

    asked: int
    runs: Mapping[int, str]
    jobs: Sequence[JobRow]
    ledger: Sequence[tuple[int, str, int]]
    """Side effects in order: run, job, attempt number."""
    killed: frozenset[int] = frozenset()
    """Attempts whose supervisor was killed: these may fail, and lose the end of their log."""
    standing: Mapping[str, float] = field(default_factory=dict)
    """Counts that must be 0."""


def judge(history: History) -> list[str]:
    """Every broken promise, a line each; none: the history is accepted."""
    found = list(_books(history))
    effects: dict[tuple[int, str], list[int]] = defaultdict(list)
    for run, job, number in history.ledger:
        effects[run, job].append(number)
    for job in history.jobs:
        found += _job(job, history.killed)
        found += _effects(job, effects.pop((job.run, job.key), []))
        for each in job.attempts:
            found += _log(job, each, killed=each.id in history.killed)
    found += [f"a side effect of a job that there is not: {key}" for key in effects]
    return found


def _books(history: History) -> Iterator[str]:
    if len(history.runs) != history.asked:
        yield f"{history.asked} runs were asked for, and there are {len(history.runs)}"
    for name, count in history.standing.items():
        if count:
            yield f"{name} is {count:g}"
    failed = {job.run for job in history.jobs if job.state != "passed"}
    for run, state in history.runs.items():
        if state != ("failed" if run in failed else "passed"):
            yield f"run {run} is {state}"


def _job(job: JobRow, killed: frozenset[int]) -> Iterator[str]:
    """Exactly one outcome, and no attempt that has no reason for its end."""
    states = Counter(each.state for each in job.attempts)
    own = sum(each.id in killed for each in job.attempts)
    for each in job.attempts:
        if each.state == "errored" and each.id not in killed:
            yield f"{job.name}: attempt {each.id} is errored, and nobody killed its supervisor: {each.sentence}"
        if each.state not in {"passed", "errored", "returned"}:
            yield f"{job.name}: attempt {each.id} is {each.state}: {each.sentence}"
        if each.state == "returned" and each.began:
            yield f"{job.name}: attempt {each.id} had begun, and is returned"
    if job.state == "passed":
        if states["passed"] != 1:
            yield f"{job.name}: {states['passed']} outcomes were accepted"
    elif job.state == "failed":
        if own < (1 if job.deployment else BUDGET):
            yield f"{job.name} failed: {job.sentence}"
    elif job.state != "skipped":
        yield f"{job.name} is {job.state}: {job.sentence}"
    numbers = [each.number for each in job.attempts if each.began]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"{job.name}: its tries are numbered {numbers}"
    if job.deployment and len(numbers) > 1:
        yield f"{job.name}: a deployment began {len(numbers)} times"


def _effects(job: JobRow, done: Sequence[int]) -> Iterator[str]:
    for number, times in Counter(done).items():
        if times > 1:
            yield f"{job.name}: attempt {number} did its work {times} times"
    passed = [each.number for each in job.attempts if each.state == "passed"]
    if job.state == "passed" and not set(passed) <= set(done):
        yield f"{job.name} passed, and attempt {passed} did nothing"
    if job.deployment and len(done) > 1:
        yield f"{job.name}: a deployment did its work {len(done)} times"
    if not set(done) <= {each.number for each in job.attempts if each.began}:
        yield f"{job.name}: an attempt of {list(done)} worked and never began"


def _log(job: JobRow, attempt: AttemptRow, *, killed: bool) -> Iterator[str]:
    if attempt.printed is None:
        return
    if not attempt.sealed:
        yield f"{job.name}: the log of attempt {attempt.id} is never complete"
    expected = job.expected[attempt.number]
    right = expected.startswith(attempt.printed) if killed else attempt.printed == expected
    if not right:
        yield f"{job.name}: attempt {attempt.id} printed {expected!r}, its log has {attempt.printed!r}"
