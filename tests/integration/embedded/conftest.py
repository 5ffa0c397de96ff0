"""The server of the session and a database a test."""

from tests.harness.postgres import database_template, fresh_database, postgres_server

__all__ = ["database_template", "fresh_database", "postgres_server"]
