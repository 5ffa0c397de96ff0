"""The spine: projects, runs, jobs, attempts, the fleet, logs and artifacts."""

from coordinator.store.migrations.script import run_script

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes everything that the first version needs."""
    run_script("0001_spine.sql")
