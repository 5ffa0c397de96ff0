"""A rolling upgrade to the next version, which is this one with one more migration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from coordinator.store.migrate import newest_revision
from tests.harness.command_line import git_repository
from tests.integration.coordinator.conftest import Make
from tests.integration.coordinator.processes import Daemon, agent, client, share_secrets

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parents[3]
NEXT = f"{int(newest_revision()) + 1:04}"
MIGRATION = """
from coordinator.store.migrations.script import run_script
revision, down_revision = "{revision}", "{before}"
def upgrade() -> None:
    run_script("{revision}_next.sql", works_since="{works_since}")
"""
SQL = """
ALTER TABLE run ADD COLUMN mood text NOT NULL DEFAULT 'calm' CHECK (mood IN ('calm', 'wild'));
ALTER TABLE queue ADD COLUMN mood text NOT NULL DEFAULT 'calm';
ALTER TABLE agent ADD COLUMN mood text NOT NULL DEFAULT 'calm';
CREATE TABLE mood_of_job (job_id bigint PRIMARY KEY REFERENCES job ON DELETE CASCADE, mood text NOT NULL);
"""
PIPELINE = "name: x\nstages: [{name: a, jobs: {unit: {steps: [{run: 'seq 9'}]}}}]"


def next_version(folder: Path, *, works_since: str) -> dict[str, str]:
    """The environment in which `python -m headrace` is the next version."""
    for package in ("headrace", "coordinator", "agent"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    versions = folder / "coordinator" / "store" / "migrations" / "versions"
    said = MIGRATION.format(revision=NEXT, before=newest_revision(), works_since=works_since)
    (versions / f"{NEXT}_next.py").write_text(said)
    (versions / f"{NEXT}_next.sql").write_text(SQL)
    return {"PYTHONPATH": str(folder)}


def test_a_replica_that_dies_in_the_middle_of_an_upgrade_starts_again_on_the_newer_schema(
    make_coordinator: Make, daemons: list[Daemon], fresh_database: str, tmp_path: Path
) -> None:
    """systemd or Kubernetes start an old replica again until it is replaced: that must not need the new version."""
    shared = {"HEADRACE_DATABASE_URL": fresh_database, "HEADRACE_BLOB_URL": (tmp_path / "blobs").as_uri()}
    old = make_coordinator("old", **shared)
    old.start()
    new = make_coordinator("new", **shared, **next_version(tmp_path / "next", works_since=newest_revision()))
    share_secrets(old.folder, new.folder)
    new.start()
    assert "newer version" not in old.said + new.said
    old.process.kill()
    old.process.wait()
    old.start()
    (line,) = [json.loads(each) for each in old.said.splitlines() if "newer version" in each]
    assert (line["level"], line["revision"], line["own"]) == ("info", NEXT, newest_revision())
    repository = tmp_path / "repo"
    git_repository(repository, {"headrace.yml": PIPELINE})
    for of in (old, new):
        side = agent(tmp_path / f"at-{of.folder.name}", of, f"at-{of.folder.name}")
        daemons.append(side)
        side.start()
        ended = client(of, repository, tmp_path / "state")("run", seconds=60)
        assert ended.code == 0, ended.out + ended.err


def test_a_replica_that_the_newer_schema_leaves_behind_says_so_and_ends(
    make_coordinator: Make, fresh_database: str, tmp_path: Path
) -> None:
    """One sentence at the start, instead of statements that fail one by one."""
    new = make_coordinator(
        "new", HEADRACE_DATABASE_URL=fresh_database, **next_version(tmp_path / "next", works_since=NEXT)
    )
    new.start()
    code, sentence = make_coordinator("old", HEADRACE_DATABASE_URL=fresh_database).refuse()
    assert (code, sentence.count("\n")) == (2, 0), sentence
    assert f"newer version of headrace, whose tables (revision {NEXT})" in sentence
