"""Brings a database to this version's schema."""

from __future__ import annotations

from pathlib import Path

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
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


async def migrate(dsn: str) -> None:
    """Runs what is missing; does nothing on a database that is up to date.

    Raises BadInput for a database of a newer version or of another build, for one that does not exist and for an
    address that is none, StoreDown for one that cannot be reached.
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
            await connection.run_sync(_upgrade)
            await connection.commit()
    except CommandError as error:
        raise BadInput(
            "the database belongs to a newer version of headrace: start that one, or name another database"
        ) from error
    except (
        OSError,
        asyncpg.PostgresConnectionError,
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.OperatorInterventionError,  # it starts up or shuts down
    ) as error:
        raise StoreDown(f"the database cannot be reached: {error}") from error
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    connection.exec_driver_sql(f"SELECT pg_advisory_lock({_LOCK})")
    try:
        _refuse_other_builds(connection)
        command.upgrade(config, "head")
    finally:
        connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_LOCK})")


def _refuse_other_builds(connection: Connection) -> None:
    """What ran under a number must be what this build has under it: nothing else would notice before it failed."""
    tables = connection.exec_driver_sql("SELECT to_regclass('alembic_version'), to_regclass('schema_script')").one()
    if tables[0] is None or not connection.exec_driver_sql("SELECT 1 FROM alembic_version").all():
        return
    ran = connection.exec_driver_sql("SELECT name, sha256 FROM schema_script").all() if tables[1] is not None else []
    own = digests()
    if not ran or any(own.get(name, sha256) != sha256 for name, sha256 in ran):
        raise BadInput(
            "the database was made by another build of headrace, whose tables differ under the same version: "
            "start that build, or move the database (without HEADRACE_DATABASE_URL: the data directory) out of the way"
        )
