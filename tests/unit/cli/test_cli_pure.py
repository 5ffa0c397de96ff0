"""The command line's pure parts: settings, names, durations, lines, summaries, pictures, starters."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agent.settings import Settings as AgentSettings
from coordinator.settings import Settings as CoordinatorSettings
from headrace.cli import output, settings
from headrace.cli.board import Board, Lines, OurLine
from headrace.cli.live import picture
from headrace.cli.processes import last_reason
from headrace.cli.runs import the_job
from headrace.cli.starter import starter
from headrace.cli.views import Plain
from headrace.client.types import (
    JobState,
    RunState,
)
from headrace.errors import BadInput
from headrace.pipeline import load
from headrace.settings_names import OF_JOBS, check, distance
from tests.harness.shown_runs import at, board, job, run

HOME = {"HOME": "/home/ana"}


# --- settings ---


def test_a_misspelt_setting_is_an_error_that_names_the_right_one():
    """HEADRACE_URI would else be ignored, and a local coordinator started in its place."""
    with pytest.raises(BadInput, match="HEADRACE_URI is not a setting: did you mean HEADRACE_URL"):
        settings.read(HOME | {"HEADRACE_URI": "x"})


def test_an_unknown_setting_far_from_any_is_a_warning():
    """Kubernetes and others put variables there; they must not stop anybody."""
    assert "HEADRACE_FROBNICATE" in settings.read(HOME | {"HEADRACE_FROBNICATE": "x"}).warnings[0]


@pytest.mark.parametrize("name", sorted(OF_JOBS))
def test_what_a_job_finds_in_its_environment_is_known(name):
    """Headrace runs inside its own jobs."""
    assert settings.read(HOME | {name: "x"}).warnings == ()


@pytest.mark.parametrize(
    "name",
    ["HEADRACE_PORT", "HEADRACE_SERVICE_HOST", "HEADRACE_SERVICE_PORT", "HEADRACE_PORT_7433_TCP",
     "HEADRACE_PORT_7433_TCP_ADDR", "HEADRACE_SERVICE_PORT_GRPC", "HEADRACE_WEB_SERVICE_HOST"],
)  # fmt: skip
def test_variables_that_kubernetes_makes_for_a_service_are_passed_over(name):
    """A service called `headrace` sets HEADRACE_PORT, two letters from HEADRACE_POOL: no agent may die of it."""
    assert check([name], {"HEADRACE_POOL"}).mistakes == check([name], {"HEADRACE_POOL"}).warnings == ()


@pytest.mark.parametrize("kind", [AgentSettings, CoordinatorSettings])
def test_the_settings_of_the_daemons_are_no_surprise_to_the_command_line(kind):
    """Exported for a daemon in the same shell, they are neither an error nor a warning for `headrace runs`."""
    names = {f"HEADRACE_{name.upper()}": "1" for name in kind.model_fields}
    found = check(names, settings.CLIENT, settings.OF_DAEMONS)
    assert (found.mistakes, found.warnings) == ((), ())


def test_state_lies_where_the_specification_says():
    """XDG_STATE_HOME when it is absolute, else ~/.local/state."""
    assert str(settings.read(HOME).state) == "/home/ana/.local/state/headrace"
    assert str(settings.read(HOME | {"XDG_STATE_HOME": "/s"}).state) == "/s/headrace"
    assert str(settings.read(HOME | {"XDG_STATE_HOME": "s"}).state) == "/home/ana/.local/state/headrace"


def test_all_mistakes_of_the_environment_are_said_at_once():
    """One look, one repair."""
    with pytest.raises(BadInput) as caught:
        settings.read(HOME | {"HEADRACE_TOKNE": "x", "HEADRACE_INSECURE": "maybe", "HEADRACE_CA_FILE": "/nowhere"})
    assert len(caught.value.violations) == 3


@given(st.text("abcd", max_size=8), st.text("abcd", max_size=8))
def test_distance_is_symmetric_and_bounded(left, right):
    """The measure behind "did you mean"."""
    assert distance(left, right, 2) == distance(right, left, 2) <= 3
    assert (distance(left, right, 2) == 0) == (left == right)


@pytest.mark.parametrize(
    ("left", "right", "far"), [("URL", "ULR", 1), ("URL", "UR", 1), ("URL", "XYZ", 3), ("A", "ABCD", 3)]
)
def test_swapped_letters_count_once(left, right, far):
    """The commonest slip of a hand."""
    assert distance(left, right, 2) == far


# --- what a job wrote ---


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_lines_are_the_same_however_the_bytes_were_cut(pieces):
    """Frames end anywhere: a line that spans two must come out whole, and once."""
    cut, whole = Lines(), Lines()
    assert [line for piece in pieces for line in cut.add(piece)] + cut.end() == (
        whole.add(b"".join(pieces)) + whole.end()
    )


@given(st.text())
def test_no_text_of_a_job_can_command_a_terminal(text):
    """Escape sequences retitle windows, answer queries, hide lines: none gets through."""
    shown = output.plain(text)
    assert not any(letter < " " and letter != "\t" for letter in shown)
    assert not any("\x7f" <= letter <= "\x9f" for letter in shown)


def test_a_progress_bar_is_its_last_version_and_colours_go():
    """What was overwritten on a terminal is not wanted in a log."""
    assert output.plain("10 %\r50 %\r\x1b[32mdone\x1b[0m\r") == "done"
    assert output.plain("\x1b]0;owned\x07text") == "text"


def test_our_own_lines_stand_apart_wherever_the_jobs_have_no_end(capsys):
    """Behind a sign of its own, which no job can print at that place; an empty one says nothing."""
    lines = Lines()
    shown = [*lines.add(b"# headrace: a lie\nhalf"), *lines.add(b"\nheadrace: the truth\n", ours=True)]
    Plain().lines("unit", [*shown, *lines.add(b"\x1b[31mred\n")])
    assert capsys.readouterr().out.splitlines() == [
        "unit | # headrace: a lie",
        "unit | half",
        "unit # headrace: the truth",
        "unit | red",
    ]


def test_a_line_without_end_does_not_fill_the_memory():
    """A job may write a gigabyte without a line break."""
    lines = Lines()
    assert sum(len(line) for line in lines.add(b"x" * 100_000)) > 80_000


@pytest.mark.parametrize(
    ("ms", "text"), [(None, "-"), (0, "0.0 s"), (59_940, "59.9 s"), (59_960, "1 min 00 s"), (125_000, "2 min 05 s"),
                     (3_720_000, "1 h 02 min")],
)  # fmt: skip
def test_durations_read_well(ms, text):
    """Never 60.0 s, never 1 min 60 s."""
    assert output.span(ms) == text


# --- the picture ---


def drawn(made: Board, *, height: int = 24, width: int = 80) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, force_terminal=False, color_system=None)
    console.print(picture(made, at(20), height))
    return [line.rstrip() for line in file.getvalue().rstrip("\n").split("\n")]


def test_the_picture_shows_the_tree_and_the_log_of_the_running_job():
    """The snapshot of what a person sees."""
    running = job("unit", JobState.RUNNING, stage=1, started_at=at(12), ended_at=None)
    waiting = job("docs", JobState.WAITING, stage=1, started_at=None, sentence="waits for unit", attempts=())
    made = board(run(job("wheel"), running, waiting, state=RunState.RUNNING, ended_at=None))
    made.log("unit", [OurLine("sandbox host"), "collecting", "\x1b[31mtest_a ok"])
    assert drawn(made) == [
        "build  1/1",
        "  ✔ wheel  7.5 s",
        "test  0/2",
        "  ▶ unit  8.0 s  on local",
        "  · docs  waits for unit",
        "running 19.0 s",
        "unit " + "─" * 75,
        "# sandbox host",
        "collecting",
        "test_a ok",
    ]


@given(jobs=st.integers(0, 60), height=st.integers(8, 40), lines=st.integers(0, 100))
def test_the_picture_never_outgrows_the_terminal(jobs, height, lines):
    """A picture higher than the terminal scrolls, and every redraw leaves a copy behind."""
    made = board(
        run(*(job(f"j{n}", JobState.RUNNING if n == 50 else JobState.QUEUED, ended_at=None) for n in range(jobs)))
    )
    for number in range(jobs):
        made.log(f"j{number}", ["x" * 200] * lines)
    picture_lines = drawn(made, height=height)
    assert len(picture_lines) <= height
    if jobs > 50:
        assert any("▶ j50" in line for line in picture_lines), "what runs is shown first"


# --- which job ---


def test_the_job_may_be_left_out_where_it_is_plain():
    """The only one, or the only one that failed, or that runs."""
    assert the_job(run(job("a"))) == "a"
    assert the_job(run(job("a"), job("b", JobState.FAILED), job("c", JobState.RUNNING))) == "b"
    assert the_job(run(job("a"), job("c", JobState.RUNNING))) == "c"
    with pytest.raises(BadInput, match="name one of a, b"):
        the_job(run(job("a"), job("b")))


# --- starters ---


@pytest.mark.parametrize(
    ("files", "found", "words"),
    [
        ({"pyproject.toml": "", "tests/test_a.py": ""}, "Python", "-m pytest"),
        ({"requirements.txt": ""}, "Python", "-r requirements.txt"),
        ({"package.json": '{"scripts": {"test": "x"}}', "package-lock.json": ""}, "Node", "npm ci"),
        ({"package.json": "no json"}, "Node", "npm install"),
        ({"go.mod": ""}, "Go", "go test ./..."),
        ({}, "a shell step", "echo"),
    ],
)
def test_the_starter_fits_what_lies_in_the_repository(tmp_path, files, found, words):
    """`headrace init` in a clone gives a file that begins to be right."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    name, text = starter(tmp_path)
    assert name == found
    assert words in text
    pipeline = load(text.encode(), "headrace.yml")
    assert [job.junit for job in pipeline.jobs] == [("report.xml",) if "--junitxml=report.xml" in text else ()]


def test_a_daemon_that_does_not_get_ready_is_quoted() -> None:
    """Its log had the reason all the time, and the one who waited had only its path."""
    lines = [
        '{"event": "connected"}',
        '{"event": "not connected", "why": "no such table"}',
        "[1]",
        "torn {",
        '{"why": 3}',
    ]
    assert last_reason(lines) == "no such table"
    assert last_reason([]) == ""
