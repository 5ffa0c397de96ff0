"""Alembic's entry: the connection is made by `coordinator.store.migrate` and handed over."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
