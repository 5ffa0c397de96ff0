"""By what the runs of a project are counted that have not ended."""

from coordinator.store.migrations.script import run_script

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds alone: every version before works on."""
    run_script("0006_unfinished.sql", works_since="0001")
