"""What the language makes of a run, on the command line against a fake coordinator over real gRPC."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from headrace.v1 import common_pb2, run_pb2
from tests.harness.command_line import CommandLine, Terminal, git_repository
from tests.harness.fake_coordinator import TOKEN, FakeCoordinator

pytestmark = pytest.mark.timeout(120)

T0 = 1_700_000_000_000
PIPELINE = """\
name: web
on:
  manual:
    parameters:
      target: {type: choice, options: [staging, production], default: staging}
      count: {type: int, default: 1}
include: [{local: ci/shared.yml}]
stages:
  - name: test
    jobs:
      unit: {extends: tested}
"""
SHARED = "templates:\n  tested: {steps: [{run: pytest}]}\n"

Script = Callable[[FakeCoordinator, int], None]


class World:
    """A repository, a fake coordinator, and `headrace` pointed at it."""

    def __init__(self, fake: FakeCoordinator, headrace: CommandLine) -> None:
        self.fake = fake
        self.headrace = headrace

    @property
    def created(self) -> run_pb2.CreateRunRequest:
        (found,) = self.fake.requests("Create")
        return found


@pytest.fixture
def world(tmp_path) -> Iterator[Callable[[Script], World]]:
    made: list[FakeCoordinator] = []

    def make(script: Script) -> World:
        fake = FakeCoordinator(script)
        fake.__enter__()
        made.append(fake)
        git_repository(tmp_path / "demo", {"headrace.yml": PIPELINE, "ci/shared.yml": SHARED, "ci/other.yml": "x"})
        where = {"HEADRACE_URL": fake.address, "HEADRACE_TOKEN": TOKEN}
        return World(fake, CommandLine(tmp_path / "demo", tmp_path / "state", where))

    yield make
    for each in made:
        each.__exit__()


def passes(fake: FakeCoordinator, run_id: int) -> None:
    fake.set_job(run_id, "unit", state=common_pb2.JOB_STATE_PASSED, started_ms=T0, ended_ms=T0 + 1000)
    fake.set_run(run_id, state=common_pb2.RUN_STATE_PASSED, started_ms=T0, ended_ms=T0 + 1500)


def asks(fake: FakeCoordinator, run_id: int) -> None:
    fake.runs[run_id].stages.add(index=0, name="release", environment="production", url="https://web.example.com")
    fake.set_job(run_id, "unit", state=common_pb2.JOB_STATE_BLOCKED)
    fake.ask(run_id, "release", "waits for an approval: Ship it?")
    fake.wait_for(lambda: bool(fake.requests("Approve")), 60)
    passes(fake, run_id)


def warns(fake: FakeCoordinator, run_id: int) -> None:
    fake.runs[run_id].stages.add(index=0, name="test")
    for version in ("3.11", "3.12"):
        fake.set_job(
            run_id, f"unit[python={version}]", name="unit", cell=json.dumps({"matrix": {"python": version}}),
            state=common_pb2.JOB_STATE_FAILED, cause=common_pb2.CAUSE_STEP_FAILED, may_fail=True, ended_ms=T0 + 1000,
        )  # fmt: skip
    fake.set_run(run_id, state=common_pb2.RUN_STATE_PASSED, started_ms=T0, ended_ms=T0 + 1500, warnings=2)


def test_included_files_come_from_what_is_built_and_no_others_are_sent(world):
    """What is on disk now is built: its included files too, also those that are not committed yet."""
    here = world(passes)
    changed = SHARED.replace("pytest", "pytest -x")
    (here.headrace.folder / "ci/shared.yml").write_text(changed)
    assert here.headrace("run").code == 0
    assert dict(here.created.included) == {"ci/shared.yml": changed.encode()}


def test_with_a_ref_included_files_come_from_the_ref(world):
    """A template that was edited meanwhile must not change what a commit means."""
    here = world(passes)
    (here.headrace.folder / "ci/shared.yml").write_text("templates: {}\n")
    assert here.headrace("run", "--ref", "main").code == 0
    assert dict(here.created.included) == {"ci/shared.yml": SHARED.encode()}


def test_a_mistake_in_an_included_file_is_told_at_its_place_there(world):
    """An editor opens the file that has to be mended; nothing was started meanwhile."""
    here = world(passes)
    (here.headrace.folder / "ci/shared.yml").write_text("templates:\n  tested: {steps: [{rnu: pytest}]}\n")
    done = here.headrace("run")
    assert done.code == 2
    assert done.err.startswith("ci/shared.yml:2:21: "), done.err
    assert here.fake.requests("Create") == []
    checked = here.headrace("validate", "headrace.yml")
    assert (checked.code, checked.err) == (2, done.err)
    elsewhere = CommandLine(here.headrace.folder / "ci", here.headrace.folder)("validate", "../headrace.yml")
    assert elsewhere.err.startswith("shared.yml:2:21: "), elsewhere.err
    (here.headrace.folder / "ci/shared.yml").unlink()
    assert "headrace.yml:7:19: there is no file `ci/shared.yml` in the repository" in here.headrace("run").err


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (["target=prod"], "`target` must be one of `staging`, `production`, not `prod`"),
        (["count=many"], "`count` must be a whole number, not `many`"),
        (["tagret=staging"], "no parameter `tagret`; did you mean `target`?"),
    ],
)
def test_a_wrong_parameter_is_said_before_anything_starts(world, parameters, words):
    """Also when the coordinator is far away: the file says what it takes."""
    here = world(passes)
    done = here.headrace("run", *(word for each in parameters for word in ("--param", each)))
    assert (done.code, words in done.err) == (2, True), done.err
    assert here.fake.requests("Create") == []


def test_a_run_that_blocks_says_how_it_goes_on_and_waits_for_it(world):
    """One terminal waits, another decides; nothing has to be looked up."""
    here = world(asks)
    with here.headrace.start("run") as process:
        try:
            said = ""
            while "to approve it: headrace approve 1\n" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            assert "run 1 * stage release waits for an approval: Ship it?\n" in said
            shown = here.headrace("show").out
            assert "stage release: environment production, https://web.example.com\n" in shown
            assert "`headrace approve 1` approves it" in shown
            approved = here.headrace("approve", "1", "--comment", "tested")
            assert (approved.code, approved.out) == (0, "run 1: the stage release is approved, the run is running\n")
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out.splitlines()[-1]) == (0, "run 1 passed in 1.5 s")
    assert here.headrace("approve", "1").err == "headrace: run 1 waits for no approval: it is passed\n"


def test_a_terminal_shows_what_is_asked_and_the_command(world):
    """The tree stands still while it waits: it has to say for whom."""
    here = world(asks)
    screen = Terminal(here.headrace, "run")
    screen.until(lambda text: "Ship it?" in text and "headrace approve 1" in text)
    assert here.headrace("approve", "1", "--json").code == 0
    assert screen.end() == 0


def test_a_run_that_passes_with_warnings_passes(world):
    """Allowed to fail means that nobody is stopped, and that nobody is kept in the dark."""
    done = world(warns).headrace("run")
    assert (done.code, done.out.splitlines()[-1]) == (0, "run 1 passed with 2 warnings in 1.5 s")
    assert "warning: job unit[python=3.11] failed (step_failed)" in done.out
    assert "failed, allowed" in done.out


def test_validate_explains_what_an_event_would_start_and_why_not(world):
    """Before it is pushed: which filter lets it in, and which job would stay behind."""
    here = world(passes).headrace
    (here.folder / "headrace.yml").write_text(
        PIPELINE.replace("on:\n", "on:\n  push: {branches: [main], paths: [src]}\n")
        + "  - {name: ship, if: \"branch == 'main'\", jobs: {deploy: {steps: [{run: ship}]}}}\n"
    )
    explained = ("validate", "headrace.yml", "--explain")
    pushed = here(*explained, "--event", "push", "--branch", "main", "--changed", "src/a.py").out
    assert "a push of main starts it: the branch `main` matches `main` of `on.push.branches`" in pushed
    held_back = here(*explained, "--event", "push", "--branch", "main", "--changed", "docs/a.md").out
    assert "does not start it: no changed path matches `on.push.paths`: `src`" in held_back
    by_hand = here(*explained, "--branch", "dev", "--param", "target=production")
    assert by_hand.code == 0, by_hand.err
    assert "parameters target=production, count=1" in by_hand.out
    found = json.loads(here(*explained, "--branch", "dev", "--json").out)["files"][0]
    assert found["explanation"]["event"]["branch"] == "dev"
    assert [(job["key"], job["runs"]) for job in found["explanation"]["jobs"]] == [("unit", "yes"), ("deploy", "no")]
    assert "with branch = 'dev'" in found["explanation"]["jobs"][1]["reasons"][0]
    assert found["plan"]["jobs"][0]["steps"][0]["script"] == "pytest"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--event", "push"], "--branch or --tag"),
        (["--event", "pull_request"], "--branch"),
        (["--event", "comet"], "there are push, pull_request, schedule and manual"),
        (["--event", "push", "--branch", "a", "--tag", "b"], "one of both"),
        (["--event", "push", "--branch", "a", "--param", "target=staging"], "a run by hand takes parameters"),
        (["--param", "target=prod"], "`target` must be one of `staging`, `production`, not `prod`"),
    ],
)
def test_an_event_that_cannot_be_is_one_sentence(world, options, words):
    """What is missing or does not go together is said with its mend."""
    done = world(passes).headrace("validate", "headrace.yml", "--explain", *options)
    assert (done.code, words in done.err, len(done.err.splitlines())) == (2, True, 1), done.err


def test_an_event_without_explain_is_not_passed_over(world):
    """Whoever names an event wants to see what it makes of the file."""
    assert "--explain" in world(passes).headrace("validate", "headrace.yml", "--branch", "main").err


def test_the_file_that_is_checked_is_headrace_yml_unless_one_is_named(world):
    """As `run` does; where there is none, the sentence says how to get one."""
    here = world(passes).headrace
    assert here("validate").out == "headrace.yml: valid, 1 job\n"
    explained = here("validate", "--explain", "--json")
    assert [each["file"] for each in json.loads(explained.out)["files"]] == ["headrace.yml"]
    (here.folder / "headrace.yml").unlink()
    missing = here("validate")
    assert (missing.code, missing.out) == (2, "")
    assert missing.err == "headrace.yml: No such file or directory: `headrace init` writes one\n"


def test_a_file_is_valid_although_a_parameter_has_no_default(world):
    """It is given when somebody runs it: a check has nobody to ask."""
    here = world(passes).headrace
    (here.folder / "headrace.yml").write_text(PIPELINE.replace(", default: staging", "").replace(", default: 1", ""))
    assert here("validate", "headrace.yml").out == "headrace.yml: valid, 1 job\n"
    assert "has no default and was not given" in here("run").err
