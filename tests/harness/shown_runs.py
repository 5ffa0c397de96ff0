"""Runs and jobs as a client is told of them, with what a test does not care about filled in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from headrace.cli.board import Board
from headrace.client.types import Attempt, Job, JobState, Run, RunChange, RunState, Source, Stage, StepResult

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def step(number: int, name: str, **values) -> StepResult:
    blank = StepResult(
        number, name, None, skipped=False, exit_code=0, signal=None, sentence="", began_at=at(2), ended_at=at(3)
    )
    return replace(blank, **values)


def attempt(**values) -> Attempt:
    blank = Attempt(
        1, 1, "passed", "local", None, "", at(1), at(1.5), at(9), (step(0, "build"),), 100, 250, 6000, 50, 1234
    )
    return replace(blank, **values)


def job(key: str, state: JobState = JobState.PASSED, **values) -> Job:
    blank = Job(1, key, 0, (), state, None, "", "default", at(0.5), at(1.5), at(9), (attempt(),))
    return replace(blank, **values)


def run(*jobs: Job, state: RunState = RunState.PASSED, **values) -> Run:
    stages = tuple(Stage(index, name, "") for index, name in enumerate(("build", "test")))
    blank = Run(
        7, "demo", "demo", state, "manual", Source("/src", "c" * 40), {}, "", at(0), at(1), at(10), 3, stages, jobs
    )
    return replace(blank, **values)


def board(found: Run) -> Board:
    made = Board()
    made.apply(RunChange(1, snapshot=found))
    return made
