"""The same world as for logs: one replica over a migrated database."""

from __future__ import annotations

from tests.integration.logs.conftest import database_template, fresh_database, postgres_server, world

__all__ = ["database_template", "fresh_database", "postgres_server", "world"]
