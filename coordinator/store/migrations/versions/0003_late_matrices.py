"""Matrices whose values come from expressions."""

from coordinator.store.migrations.script import run_script

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Makes the two tables of expansions."""
    run_script("0003_late_matrices.sql")
