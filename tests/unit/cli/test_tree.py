"""The tree of a run: cells together, warnings apart, approvals with the command that gives them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from headrace.cli.board import Board
from headrace.cli.sentences import ALLOWED, approval_of, tried
from headrace.cli.summary import summary
from headrace.cli.tree import tree
from headrace.cli.views import Plain
from headrace.client.types import (
    Approval,
    Attempt,
    Decision,
    Job,
    JobState,
    Run,
    RunChange,
    RunState,
    Source,
    Stage,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
ASKED = Approval("asked", "waits for an approval: Ship it?", 1, (), T0)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def job(key: str, state: JobState = JobState.PASSED, **values) -> Job:
    started = None if state in {JobState.WAITING, JobState.SKIPPED, JobState.BLOCKED} else at(1)
    ended = at(3) if state in {JobState.PASSED, JobState.FAILED} else None
    blank = Job(1, key, 0, (), state, None, "", "default", at(0), started, ended, (), name=key.partition("[")[0])
    return replace(blank, **values)


def cell(python: str, state: JobState = JobState.PASSED, **values) -> Job:
    return job(f"unit[python={python}]", state, matrix={"python": python}, **values)


def board(*jobs: Job, state: RunState = RunState.RUNNING, stages: tuple[Stage, ...] = (), **values) -> Board:
    made = Board()
    blank = Run(
        7, "demo", "demo", state, "manual", Source("/src", "c" * 40), {}, "", at(0), at(1), None, 3,
        stages or (Stage(0, "test", ""),), jobs,
    )  # fmt: skip
    made.apply(RunChange(1, snapshot=replace(blank, **values)))
    return made


def rows(made: Board, most: int = 100) -> list[str]:
    return tree(made, at(10), rows=most).plain.splitlines()


def test_cells_that_are_alike_have_one_row():
    """A matrix of sixty that all passed must not push the one that failed off the screen."""
    assert rows(board(cell("3.11"), cell("3.12"), job("lint"))) == [
        "✔ unit  2 cells",
        "✔ lint  2.0 s",
        "running 9.0 s",
    ]


def test_cells_take_the_place_of_the_job_that_stood_for_them():
    """It is no job beside them: neither shown nor counted."""
    made = board(job("list"), job("unit", JobState.WAITING, sentence="its matrix is being worked out"))
    assert rows(made)[1] == "· unit  its matrix is being worked out"
    stood = job("unit", JobState.PASSED, expanded=True)
    assert made.apply(RunChange(2, job=stood)) == []
    for each in (cell("3.11", JobState.WAITING), cell("3.12", JobState.WAITING)):
        made.apply(RunChange(2, job=each))
    assert [each.key for each in made.whole().jobs] == ["list", "unit[python=3.11]", "unit[python=3.12]"]
    assert rows(made)[1] == "· unit  2 cells"


def test_cells_that_differ_stand_below_their_name():
    """Which of them failed is the question."""
    assert rows(board(cell("3.11", JobState.FAILED), cell("3.12"))) == [
        "  unit  2/2",
        "  ✘ [python=3.11]  2.0 s",
        "  ✔ [python=3.12]  2.0 s",
        "running 9.0 s",
    ]


def test_what_failed_and_was_allowed_to_has_a_colour_and_a_sign_of_its_own():
    """Red would send people to look for what does not hold the run up; green would hide it."""
    made = board(job("lint", JobState.FAILED, may_fail=True), state=RunState.PASSED, ended_at=at(9), warnings=1)
    text = tree(made, at(10), rows=9)
    assert text.plain.splitlines() == ["! lint  2.0 s  allowed to fail", "passed with 1 warning 8.0 s"]
    assert ALLOWED in {str(span.style).removeprefix("bold ") for span in text.spans}
    assert "✘" not in text.plain
    assert "run 7 passed with 1 warning in 8.0 s" in summary(made, [], {})


def test_a_stage_that_waits_for_a_person_shows_what_is_asked_and_the_command():
    """Whoever sees it wait must not have to look up how it goes on."""
    stages = (Stage(0, "test", ""), Stage(1, "release", "", approval=ASKED))
    blocked = job("deploy", JobState.BLOCKED, stage=1, sentence=ASKED.sentence)
    made = board(job("unit"), blocked, stages=stages, state=RunState.BLOCKED)
    assert rows(made)[2:] == [
        "release  0/1",
        "  ◆ waits for an approval: Ship it?",
        "    headrace approve 7",
        "  ◆ deploy",
        "blocked 9.0 s",
    ]


def test_in_a_low_terminal_people_come_first():
    """What waits for the one who looks is shown before anything else."""
    stages = (Stage(0, "test", ""), Stage(1, "release", "", approval=ASKED))
    made = board(*(job(f"j{n}", JobState.WAITING) for n in range(30)), stages=stages, state=RunState.BLOCKED)
    assert "    headrace approve 7" in rows(made, 6)
    assert len(rows(made, 6)) <= 6


def test_a_skipped_job_tells_why_dimly():
    """An `if` that is false is no failure; its reason is there for who looks."""
    text = tree(board(job("deploy", JobState.SKIPPED, sentence="the `if` of `deploy` is false")), at(9), rows=9)
    assert text.plain.splitlines()[0] == "↷ deploy  the `if` of `deploy` is false"
    assert {str(span.style) for span in text.spans if span.end < len(text.plain.splitlines()[0])} <= {"dim"}


def test_plain_lines_say_once_how_a_blocked_run_goes_on(capsys):
    """In a log of somebody else's CI there is no tree."""
    view = Plain()
    made = board(stages=(Stage(0, "release", "", approval=ASKED),), state=RunState.BLOCKED)
    view.changed(made, [])
    view.changed(made, [])
    assert capsys.readouterr().out.splitlines() == [
        "run 7 * blocked",
        "run 7 * stage release waits for an approval: Ship it?",
        "run 7 * to approve it: headrace approve 7",
    ]


@pytest.mark.parametrize(
    ("approval", "state", "words"),
    [
        (replace(ASKED, state="closed", count=2), RunState.RUNNING, ["asks for 2 approvals once it is its turn"]),
        (replace(ASKED, state="closed"), RunState.FAILED, []),
        (ASKED, RunState.CANCELED, ["was never decided: the run ended first"]),
        (
            replace(ASKED, state="open", decisions=(Decision("ana", approved=True, comment="ok"),)),
            RunState.PASSED,
            ["approved by ana: ok"],
        ),
        (
            replace(ASKED, state="expired", sentence="nobody approved it in time"),
            RunState.CANCELED,
            ["nobody approved it in time"],
        ),
    ],
)
def test_how_an_approval_stands_is_said_in_words(approval, state, words):
    """Asked, decided, out of time, never its turn: each is another answer to `why was it not deployed`."""
    stage = Stage(0, "release", "", approval=approval)
    assert approval_of(board(stages=(stage,), state=state).whole(), stage) == words


def test_several_tries_are_told_apart():
    """Two lost agents and a pass look like one pass otherwise."""
    lost = Attempt(1, 1, "lost", "one", "lost", "its agent was gone", at(1), at(1), at(2), (), 0, 0, 0, 0, 0)
    again = replace(lost, number=2, state="passed", cause=None, sentence="", agent="two", ended_at=at(4))
    assert tried(job("unit", attempts=(lost, again))) == [
        "try 1 of 2 lost in 1.0 s on one: its agent was gone",
        "try 2 of 2 passed in 3.0 s on two",
    ]
    pausing = tried(job("unit", JobState.WAITING, attempts=(lost,), due_at=at(60)))
    assert pausing[1].startswith("try 2 of 2 begins at 20")
    assert tried(job("unit", attempts=(again,))) == []
