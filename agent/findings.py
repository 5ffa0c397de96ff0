"""What is found out about a job: what its reports of tests say, and what stands in the log of the step that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from agent import junit
from agent.junit import NotJUnit
from agent.parts import Journal
from agent.problems import JobProblem
from agent.record import Record
from agent.supervisor.client import SupervisorClient
from agent.workspace.tree import Bounds, Tree, TreeProblem
from headrace.pipeline.expressions import ExpressionFailed, evaluate
from headrace.pipeline.globs import BadPattern, Patterns
from headrace.pipeline.problems import shown
from headrace.v1 import common_pb2 as pb

MOST_REPORTS = 200
MOST_REPORT_BYTES = 16 << 20
MOST_BYTES = 64 << 20


async def read_tests(record: Record, workspace: Path, client: SupervisorClient, clock: Callable[[], float]) -> None:
    """Reads the job's JUnit reports, says in the log what they come to, and keeps it for the outcome.

    Whatever is wrong with a report is told, and fails nothing.
    """
    await client.open_section("artifacts", "Read test reports")
    found = await asyncio.to_thread(reports_of, workspace, tuple(record.spec.junit), clock)
    if found is None:
        await client.say(f"no file matches {', '.join(record.spec.junit)}\n")
        await client.close_section("")
        return
    shown = [text for each in found.failed for text in (each.suite, each.name, each.message)] + list(found.problems)
    masked = iter(await client.masked(shown))
    for each in found.failed:
        each.suite, each.name, each.message = next(masked), next(masked), next(masked)
    found.problems[:] = list(masked)
    counts = f"{found.failures} failures, {found.errors} errors, {found.skipped} skipped"
    await client.say("".join(f"{line}\n" for line in (f"{found.tests} tests: {counts}", *found.problems)))
    await client.close_section("")
    record.told.tests.CopyFrom(found)


async def find_patterns(record: Record, client: SupervisorClient, journal: Journal) -> None:
    """Keeps for the outcome which of the spec's patterns stand in the log of the step that has just failed."""
    try:
        text = await client.tail()
    except JobProblem as problem:
        journal.warning("patterns not looked for", attempt=record.attempt, why=problem.sentence)
        return
    found, wrong = await asyncio.to_thread(patterns_in, text, tuple(record.spec.log_patterns))
    for sentence in wrong:
        journal.warning("pattern cannot be used", attempt=record.attempt, why=sentence)
    record.told.log_patterns[:] = found


def patterns_in(text: str, patterns: Iterable[str]) -> tuple[list[str], list[str]]:
    """The patterns (RE2, so in linear time) that the text holds somewhere, and a sentence for each that is none."""
    found, wrong = [], []
    for pattern in patterns:
        try:
            if evaluate("text.matches(pattern)", {"text": text, "pattern": pattern}):
                found.append(pattern)
        except ExpressionFailed as error:
            wrong.append(f"{shown(pattern)}: {error}")
    return found, wrong


def reports_of(workspace: Path, globs: tuple[str, ...], clock: Callable[[], float]) -> pb.TestReport | None:
    """What the reports in a workspace say together; None where there is none. Blocks, never raises for a file."""
    with Tree.open(workspace) as tree:  # here: a thread goes on when nobody waits for it any more
        return _reports_in(tree, globs, clock)


def _reports_in(tree: Tree, globs: tuple[str, ...], clock: Callable[[], float]) -> pb.TestReport | None:
    try:
        files = tree.glob(Patterns(globs), Bounds(), clock).files
    except (TreeProblem, BadPattern) as error:
        return junit.together([], [f"the reports cannot be looked for: {error}"])
    if not files:
        return None
    reports, problems = [], []
    if len(files) > MOST_REPORTS:
        problems.append(f"{len(files)} files match, and the first {MOST_REPORTS} are read")
    budget = _Budget(MOST_BYTES)
    for path in files[:MOST_REPORTS]:
        try:
            reports.append(junit.report_of(budget.spent(tree.chunks(path, min(MOST_REPORT_BYTES, budget.left)))))
        except TreeProblem as error:
            problems.append(str(error))
        except (NotJUnit, OSError) as error:
            problems.append(f"{_shown(path)}: {error}")
    return junit.together(reports, problems)


class _Budget:
    """Bytes that may still be read."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spent(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces, counted as they are read."""
        for piece in pieces:
            self.left -= len(piece)
            yield piece


def _shown(path: str) -> str:
    """A path, whose bytes may be no text."""
    return path.encode(errors="backslashreplace").decode()
