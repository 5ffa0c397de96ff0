"""What deleting old runs needs: a mark on those that are being deleted, and indexes by which rows are found."""

from coordinator.store.migrations.script import run_script

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds alone: the version before works on."""
    run_script("0004_keep.sql")
