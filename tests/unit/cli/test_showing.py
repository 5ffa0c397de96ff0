"""The page of `headrace show`: what needs a look, readable in 100 columns."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.sentences import counts
from headrace.cli.showing import WIDTH, page
from headrace.client.types import (
    Approval,
    Attempt,
    Decision,
    Job,
    JobState,
    Run,
    RunState,
    Source,
    Stage,
    StepResult,
    TestFailure,
    TestReport,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
REPORT = TestReport(42, 1, 0, 3, 12_300, (TestFailure("tests.web", "test_login", "assert 200 == 500", 3, error=False),))


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def step(**values) -> StepResult:
    blank = StepResult(
        0, "pytest", None, skipped=False, exit_code=0, signal=None, sentence="", began_at=at(2), ended_at=at(3)
    )
    return replace(blank, **values)


def attempt(**values) -> Attempt:
    blank = Attempt(1, 1, "passed", "one", None, "", at(1), at(1), at(9), (step(),), 100, 250, 6000, 50, 9)
    return replace(blank, **values)


def job(key: str, state: JobState = JobState.PASSED, **values) -> Job:
    blank = Job(
        1, key, 0, (), state, None, "", "default", at(0), at(1), at(9), (attempt(),), name=key.partition("[")[0]
    )
    return replace(blank, **values)


def run(*jobs: Job, state: RunState = RunState.PASSED, stages: tuple[Stage, ...] = (), **values) -> Run:
    blank = Run(
        7, "demo", "web", state, "push", Source("/src/web", "c" * 40, branch="main"), {}, "", at(0), at(1), at(10), 3,
        stages or (Stage(0, "test", ""),), jobs,
    )  # fmt: skip
    return replace(blank, **values)


def lines(found: Run) -> list[str]:
    return [line.plain for line in page(found)]


def style_of(found: Run, words: str) -> set[str]:
    (line,) = (line for line in page(found) if words in line.plain)
    return {str(line.style)} | {str(span.style) for span in line.spans}


def test_a_run_of_the_usual_kind_is_short():
    """Three lines of what it was, and where the time went; nothing asks for a look."""
    shown = lines(run(job("unit"), parameters={"target": "staging"}))
    assert shown[0] == "run 7 passed in 9.0 s"
    assert shown[1] == f"pipeline web at {'c' * 40}, /src/web"
    assert shown[2].startswith("push on main, created 20")
    assert shown[3] == "parameters target=staging"
    assert shown[5].split()[:2] == ["JOB", "STATE"]
    assert len(shown) == 7


def test_test_reports_are_summed_up_with_the_first_failures():
    """The message of the assertion is what a person looks for in thousands of lines of log."""
    failed = job("unit", JobState.FAILED, cause="step_failed", attempts=(attempt(
        tests=REPORT, steps=(step(cause="step_failed", exit_code=1),)),
    ))  # fmt: skip
    shown = lines(run(failed, state=RunState.FAILED))
    at_ = shown.index("job unit failed (step_failed) in step 1, pytest: exit code 1")
    assert shown[at_ + 1 : at_ + 4] == [
        "  42 tests, 1 failed, 3 skipped in 12.3 s",
        "    ✘ tests.web: test_login",
        "        assert 200 == 500",
    ]


def test_many_failures_and_long_messages_do_not_drown_the_page():
    """A hundred failures have one cause: five of them show it, and where the rest is."""
    each = TestFailure("", "test_x", "line\n" * 500, 3, error=True)
    report = TestReport(300, 0, 120, 0, 9, (each,) * 100, ("report.xml is no XML",))
    shown = lines(run(job("unit", attempts=(attempt(tests=report),))))
    assert sum("✘ test_x" in line for line in shown) == 5
    assert "    and 115 more: --json has the first hundred" in shown
    assert "    report.xml is no XML" in shown
    assert len(shown) < 50


def test_tests_that_all_passed_have_one_line():
    """What is zero is not said."""
    assert counts(TestReport(1, 0, 0, 0, 500)) == "1 test in 0.5 s"
    assert counts(TestReport(9, 1, 2, 3, 500)) == "9 tests, 1 failed, 2 broke, 3 skipped in 0.5 s"


def test_outputs_tries_and_allowed_failures_of_steps_are_told():
    """They are what a later job went by, and what a green job hides."""
    steps = (
        step(name="lint", cause="step_failed", exit_code=2, allowed=True),
        step(number=1, name="flaky", tries=3),
    )
    lost = attempt(state="lost", cause="lost", sentence="its agent was gone")
    shown = lines(run(job("unit", outputs={"version": "1.2", "n": 3}, attempts=(lost, attempt(number=2, steps=steps)))))
    assert shown[-7:] == [
        "job unit passed",
        "  try 1 of 2 lost in 8.0 s on one: its agent was gone",
        "  try 2 of 2 passed in 8.0 s on one",
        "  step 1, lint: exit code 2, which is allowed",
        "  step 2, flaky: passed at try 3",
        "  output version = 1.2",
        "  output n = 3",
    ]


def test_an_environment_shows_its_address_and_who_let_it_in():
    """Who shipped it, and where it can be seen."""
    decided = Approval("open", "approved by ana", 1, (Decision("ana", approved=True, comment="looks good"),), at(1))
    stages = (Stage(0, "release", "production", "https://web.example.com", decided),)
    shown = lines(run(job("deploy"), stages=stages))
    assert shown[-2:] == [
        "stage release: environment production, https://web.example.com",
        "  approved by ana: looks good",
    ]


def test_a_stage_that_waits_says_it_once_with_the_command():
    """Its jobs wait for the same: they need not repeat the question."""
    asked = Approval("asked", "waits for an approval: Ship it?", 1, (), at(99))
    blocked = job("deploy", JobState.BLOCKED, sentence=asked.sentence, attempts=())
    shown = lines(run(blocked, state=RunState.BLOCKED, stages=(Stage(0, "release", "", "", asked),), ended_at=None))
    assert sum("Ship it?" in line for line in shown) == 1
    assert "  `headrace approve 7` approves it, with --reject it is refused" in shown


def test_cells_of_a_matrix_stand_together_in_the_table():
    """Their common name once, and what tells them apart below it."""
    cells = [job(f"unit[python={each}]", matrix={"python": each}) for each in ("3.11", "3.12")]
    shown = lines(run(*cells, job("lint")))
    assert [line.split()[0] for line in shown if "passed" in line or line == "unit"][1:] == [
        "unit", "[python=3.11]", "[python=3.12]", "lint",
    ]  # fmt: skip


def test_a_skipped_job_is_dim_and_a_warning_has_its_own_colour():
    """One is as it should be, the other wants a look some day: neither is red."""
    skipped = job("deploy", JobState.SKIPPED, sentence="the `if` of `deploy` is false", attempts=())
    warned = job("lint", JobState.FAILED, may_fail=True, cause="step_failed", sentence="it failed", attempts=())
    found = run(skipped, warned, warnings=1)
    assert style_of(found, "job deploy skipped: the `if` of `deploy` is false") == {"dim"}
    assert style_of(found, "warning: job lint failed") == {"magenta"}
    assert style_of(found, "run 7 passed with 1 warning") == {"", "bold magenta"}


@given(text=st.text(min_size=1), count=st.integers(1, 9))
def test_the_page_obeys_nothing_that_a_job_wrote_and_stays_narrow(text, count):
    """Test messages and outputs come from the job: no escape sequence, and no line that breaks the page."""
    report = TestReport(count, count, 0, 0, 1, (TestFailure(text, text, text * 50, 1, error=False),), (text,))
    found = run(job("unit", outputs={"o": text * 9}, attempts=(attempt(tests=report),)))
    for line in page(found):
        assert not any(letter < " " and letter != "\t" for letter in line.plain)
        assert len(line.plain) <= max(WIDTH, 12 + 2 * len(text))
