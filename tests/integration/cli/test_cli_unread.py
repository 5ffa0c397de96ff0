"""Output that nobody reads to its end: a pipe that is closed, a disk that is full."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.harness.command_line import HEADRACE
from tests.harness.scripted_runs import fails


def test_a_reader_that_leaves_is_no_mistake(world):
    """`headrace logs | head` ends quietly."""
    here = world(fails)
    here.headrace("run")
    with here.headrace.start("logs") as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize("arguments", [["run"], ["run", "--json"]])
def test_a_run_whose_output_nobody_reads_ends_with_its_own_exit_code(world, arguments):
    """`headrace run | head -3` in a script must not say of a run that failed that all is well."""
    with world(fails).headrace.start(*arguments) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_an_output_that_cannot_be_written_is_said_once_and_the_run_is_followed(world):
    """A full disk is no reason to leave a run alone, nor a mistake of ours."""
    here = world(fails)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*HEADRACE, "run"], cwd=here.headrace.folder, env=here.headrace.environment, stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
        shown = subprocess.run(
            [*HEADRACE, "show"], cwd=here.headrace.folder, env=here.headrace.environment, stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1, "headrace: the output cannot be written (No space left on device): the run goes on without it\n"
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (
        3, "headrace: the output cannot be written: No space left on device\n"
    )  # fmt: skip
