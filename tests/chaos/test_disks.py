"""Disks that are full, at an agent and at the blob store: outcomes come all the same, and work goes on with room."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import long_form
from tests.chaos.disk import full, small
from tests.chaos.work import BUBBLEWRAP, Counting, User
from tests.harness.seaweedfs import serving
from tests.harness.waiting import wait_for
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import forget_mounts, metric

pytestmark = [pytest.mark.timeout(300), pytest.mark.root]

GREEDY = "cat /dev/zero > big || true"
SIZE = 2 << 20
MAKER = f"""
name: maker
stages:
  - name: make
    jobs:
      make:
        {BUBBLEWRAP.replace(", ", chr(10) + "        ")}
        checkout: false
        retry: {{max: 1, on: [lost, errored]}}
        steps: [{{run: 'head -c {SIZE} /dev/urandom > made.bin'}}]
        artifacts: [{{name: made, paths: [made.bin]}}]
"""


def test_a_job_that_fills_the_disk_of_its_agent_still_has_a_whole_log_and_an_outcome(
    make_coordinator: Make, make_agent: Make, tmp_path: Path
) -> None:
    """One takes all the room there is and keeps it, one only writes: both pass, with every line. One that comes
    meanwhile is refused, waits, and runs when there is room."""
    of = make_coordinator()
    of.start()
    side = make_agent(of)
    side.arguments["slots"] = "3"
    with small(side.folder, "96m"), User(of) as user:
        side.start()
        greedy, modest, late = Counting("greedy", 60, first=GREEDY), Counting("modest", 60), Counting("late", 5)
        run = user.begin([greedy, modest])
        wait_for(lambda: "No space left on device" in user.said(run, "greedy"), "the disk is full", 60)
        after = user.begin([late])
        wait_for(lambda: metric(of, "headrace_assignments_returned_total") > 0, "it is refused", 10)
        assert "running" not in user.states(after, "late")
        for number, job in ((run, greedy), (run, modest), (after, late)):
            user.until_over(number)
            printed = user.log(number, job.name).splitlines(keepends=True)
            assert b"".join(each for each in printed if each.startswith(b"line ")) == job.text()
            assert user.states(number, job.name) == ["passed"]
        wait_for(lambda: not list((side.folder / "attempts").iterdir()), "nothing is to be told any more", 20)
        side.end()
        forget_mounts(side.folder)


@contextlib.contextmanager
def store(kind: str, disk: Path) -> Iterator[dict[str, str]]:
    """A blob store on this disk: the settings of a coordinator that uses it."""
    if kind == "file":
        yield {"HEADRACE_BLOB_URL": (disk / "blobs").as_uri()}
        return
    with serving(disk) as s3:
        yield {
            "HEADRACE_BLOB_URL": s3.url("full"),
            "HEADRACE_S3_ENDPOINT": s3.endpoint,
            "HEADRACE_S3_ACCESS_KEY_ID": s3.access_key_id,
            "HEADRACE_S3_SECRET_ACCESS_KEY": s3.secret_access_key,
        }


@pytest.mark.parametrize(
    ("kind", "size", "reason"),
    [
        ("file", "16m", "it answered 507: the disk of the blob store is full: free some room"),
        pytest.param("s3", "96m", "it answered 500", marks=[pytest.mark.s3, long_form]),
    ],
)
def test_a_job_whose_artifact_has_no_room_in_the_blob_store_is_errored_with_the_reason(
    make_coordinator: Make, make_agent: Make, tmp_path: Path, kind: str, size: str, reason: str
) -> None:
    """It is the machinery that failed, not the command. With room again the same pipeline passes, and nobody had to
    start anything anew."""
    disk = tmp_path / "store"
    with small(disk, size), store(kind, disk) as settings:
        of = make_coordinator(**settings)
        of.start()
        side = make_agent(of)
        side.start()
        with User(of) as user:
            user.until_over(user.start(MAKER))
            assert user.state(1) == "passed", user.job(1, "make")
            with full(disk, leave=SIZE // 2):
                run = user.start(MAKER)
                user.until_over(run, 120)
                job = user.job(run, "make")
                assert (str(job.state), str(job.cause)) == ("failed", "errored"), job
                assert reason in job.sentence
                assert {str(each.state) for each in job.attempts} == {"errored"}
            run = user.start(MAKER)
            user.until_over(run)
            assert user.state(run) == "passed"
        side.end()
        of.end()
