"""Quarantine of agents."""

from coordinator.store.migrations.script import run_script

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds why an agent gets no jobs."""
    run_script("0002_quarantine.sql")
