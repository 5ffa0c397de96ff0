"""Runs a migration's SQL file in the migration's own transaction."""

from importlib.resources import files

from alembic import op


def run_script(name: str) -> None:
    """Executes `versions/NAME` whole: the driver's simple protocol takes several statements at once."""
    text = files("coordinator.store.migrations.versions").joinpath(name).read_text("utf-8")
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None
    driver.run_async(lambda connection: connection.execute(text))
