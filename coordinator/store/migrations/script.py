"""Runs a migration's SQL file in the migration's own transaction, and keeps what was run."""

import hashlib
from importlib.resources import files

from alembic import op

_VERSIONS = "coordinator.store.migrations.versions"


def run_script(name: str, *, works_since: str | None = None) -> None:
    """Executes `versions/NAME` whole: the driver's simple protocol takes several statements at once.

    `works_since` is the oldest revision whose code still works on the tables that this script leaves, by which older
    versions know whether they may start on them. Scripts up to 0004 are from before that was kept: they have none.
    """
    text = files(_VERSIONS).joinpath(name).read_text("utf-8")
    driver = op.get_bind().connection.dbapi_connection
    assert driver is not None
    driver.run_async(lambda connection: connection.execute(text))
    driver.run_async(
        lambda connection: connection.execute(
            "INSERT INTO schema_script (name, sha256) VALUES ($1, $2)", name, digest(text)
        )
    )
    if works_since is not None:
        driver.run_async(
            lambda connection: connection.execute(
                "UPDATE schema_script SET works_since = $2 WHERE name = $1", name, works_since
            )
        )


def digests() -> dict[str, str]:
    """Of each script that this build has: a database made by others has other tables under the same number."""
    scripts = (each for each in files(_VERSIONS).iterdir() if each.name.endswith(".sql"))
    return {each.name: digest(each.read_text("utf-8")) for each in scripts}


def digest(text: str) -> str:
    """SHA-256 of a script, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
