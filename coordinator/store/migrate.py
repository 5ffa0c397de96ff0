"""Brings a database to this version's schema."""

from __future__ import annotations

from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from coordinator.errors import BadInput, StoreDown
from coordinator.store.migrations.script import digests
from coordinator.store.pooler import NOT_AN_ADDRESS, NOT_DIRECT

# One replica migrates, the others wait: a session-level advisory lock with a number of our own.
_LOCK = 0x68656164


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def newest_revision() -> str:
    """The schema that this version of the coordinator works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


async def migrate(dsn: str) -> str:
    """Runs what is missing; does nothing on a database that is up to date, or newer and still good for this version.

    Returns the revision that the database has now: greater than `newest_revision()` when a newer version made it.
    Raises BadInput for a database that is too new or of another build, for one that does not exist and for an address
    that is none, StoreDown for one that cannot be reached.
    """

    async def connect() -> asyncpg.Connection:
        try:
            # A migration takes what it takes, whatever limit the role has. A pooler refuses the setting.
            settings = {"application_name": "headrace migrate", "statement_timeout": "0"}
            return await asyncpg.connect(dsn, server_settings=settings)
        except asyncpg.ProtocolViolationError as error:
            if "startup parameter" in str(error):
                raise BadInput(NOT_DIRECT) from error
            raise StoreDown(f"the database cannot be reached: {error}") from error
        except asyncpg.InvalidCatalogNameError as error:
            raise BadInput(f"{error}: create it, or name another one") from error
        except (ValueError, asyncpg.InterfaceError) as error:  # the driver's sentence may hold the password
            raise BadInput(NOT_AN_ADDRESS) from error

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            revision = await connection.run_sync(_upgrade)
            await connection.commit()
            return revision
    except (
        OSError,
        asyncpg.PostgresConnectionError,
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.OperatorInterventionError,  # it starts up or shuts down
    ) as error:
        raise StoreDown(f"the database cannot be reached: {error}") from error
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> str:
    config = _config()
    config.attributes["connection"] = connection
    connection.exec_driver_sql(f"SELECT pg_advisory_lock({_LOCK})")
    try:
        revision = _revision(connection)
        if revision is not None:
            _refuse_other_builds(connection)
            if revision > newest_revision():
                _refuse_too_new(connection)
                return revision
        command.upgrade(config, "head")
        return newest_revision()
    finally:
        connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_LOCK})")


def _revision(connection: Connection) -> str | None:
    """That of the database: four digits, greater the newer; None for one without tables of ours."""
    if connection.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar() is None:
        return None
    found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return found


def _refuse_too_new(connection: Connection) -> None:
    """A newer version says by its migrations how old the code may be that works on what they leave."""
    since = connection.exec_driver_sql("SELECT max(works_since) FROM schema_script").scalar_one()
    if since > newest_revision():
        raise BadInput(
            f"the database belongs to a newer version of headrace, whose tables (revision {_revision(connection)}) this"
            f" one (revision {newest_revision()}) cannot use: start that one, or name another database"
        )


def _refuse_other_builds(connection: Connection) -> None:
    """What ran under a number must be what this build has under it: nothing else would notice before it failed."""
    kept = connection.exec_driver_sql("SELECT to_regclass('schema_script')").scalar()
    ran = connection.exec_driver_sql("SELECT name, sha256 FROM schema_script").all() if kept is not None else []
    own = digests()
    if not ran or any(own.get(name, sha256) != sha256 for name, sha256 in ran):
        raise BadInput(
            "the database was made by another build of headrace, whose tables differ under the same version: "
            "start that build, or move the database (without HEADRACE_DATABASE_URL: the data directory) out of the way"
        )
