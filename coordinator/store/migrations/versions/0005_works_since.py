"""By what a version knows whether it may start on the schema of a newer one."""

from coordinator.store.migrations.script import run_script

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds alone: every version before works on."""
    run_script("0005_works_since.sql", works_since="0001")
