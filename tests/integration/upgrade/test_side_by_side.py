"""A rolling upgrade: both versions of coordinator and agent on one database, in every pairing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness.command_line import git_repository
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon, agent, client, share_secrets

pytestmark = pytest.mark.timeout(300)

PAIRS = ("old-at-old", "old-at-new", "new-at-old", "new-at-new")
JOB = """
      {pair}:
        requires: {{pair: {pair}}}
        steps:
          - {{id: say, run: 'echo value=$HEADRACE_JOB >> "$HEADRACE_OUTPUT"; seq 200; echo "done by {pair}"'}}
        outputs: {{value: "${{{{ steps.say.outputs.value }}}}"}}
        retry: {{max: 1, on: [lost]}}
"""
PIPELINE = (
    "name: both\nstages:\n  - name: a\n    jobs:"
    + "".join(JOB.format(pair=pair) for pair in PAIRS)
    + "  - name: b\n    jobs: {after: {requires: {pair: old-at-new}, steps: [{run: 'true'}]}}\n"
)


def test_old_and_new_replicas_and_agents_work_side_by_side(
    make_coordinator: Make,
    daemons: list[Daemon],
    fresh_database: str,
    first_version: dict[str, str],
    tmp_path: Path,
) -> None:
    """The schema and the wire evolve by addition: nobody has to upgrade everything in one moment."""
    shared = {"HEADRACE_DATABASE_URL": fresh_database, "HEADRACE_BLOB_URL": (tmp_path / "blobs").as_uri()}
    old = make_coordinator("old", **shared, **first_version)
    old.start()
    new = make_coordinator("new", **shared)
    share_secrets(old.folder, new.folder)
    new.start()
    for pair in PAIRS:
        which, _, at = pair.split("-")
        more = first_version if which == "old" else {}
        side = agent(tmp_path / pair, {"old": old, "new": new}[at], pair, **more)
        side.arguments["label"] = f"pair={pair}"
        daemons.append(side)
        side.start()
    repository = tmp_path / "repo"
    git_repository(repository, {"headrace.yml": PIPELINE})
    for of in (old, new):
        line = client(of, repository, tmp_path / "state")
        ended = line("run", seconds=120)
        assert ended.code == 0, ended.out + ended.err
        for pair in PAIRS:
            assert line("logs", pair).out.endswith(f"200\ndone by {pair}\n")
        shown = json.loads(line("show", "--json").out)
        assert {job["key"]: job["state"] for job in shown["jobs"]} == dict.fromkeys((*PAIRS, "after"), "passed")
        versions = {each["name"]: each["version"] for each in json.loads(line("agents", "--json").out)}
        assert [versions[pair] == "0.1.0" for pair in PAIRS] == [True, True, False, False]
    assert "Traceback" not in "".join(each.said for each in daemons)


def test_an_agent_goes_on_through_the_upgrade_of_its_coordinator(
    make_coordinator: Make,
    daemons: list[Daemon],
    fresh_database: str,
    first_version: dict[str, str],
    tmp_path: Path,
) -> None:
    """Its job runs while 0.1.0 stops and this version starts on its data, and ends as if nothing had been."""
    of = make_coordinator("c", HEADRACE_DATABASE_URL=fresh_database, **first_version)
    of.start()
    of.arguments["listen"] = of.facts["address"]
    side = agent(tmp_path / "a", of, "a", **first_version)
    daemons.append(side)
    side.start()
    repository = tmp_path / "repo"
    git_repository(
        repository,
        {"headrace.yml": "name: x\nstages: [{name: a, jobs: {unit: {steps: [{run: 'seq 9; sleep 15; seq 9'}]}}}]"},
    )
    line = client(of, repository, tmp_path / "state")
    assert line("run", "--detach").code == 0
    while "9\n" not in line("logs").out:
        assert side.process.poll() is None
    assert of.terminate() == 0
    del of.environment["PYTHONPATH"]
    of.start()
    tail = line("logs", "-f", seconds=120)
    assert tail.out.count("9\n") == 2, tail.out
    (job,) = json.loads(line("show", "--json").out)["jobs"]
    assert (job["state"], len(job["attempts"])) == ("passed", 1)
