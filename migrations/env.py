"""How `flask db` runs the migrations. Alembic calls this file; Flask-Migrate hands it the application."""

import logging
from typing import Any

from alembic import context
from flask import current_app
from sqlalchemy import Connection

log = logging.getLogger("alembic.runtime.migration")
log.setLevel(logging.INFO)  # each migration is a line
migrate = current_app.extensions["migrate"]
engine = migrate.db.engine
metadata = migrate.db.metadata


def _leave_out_what_did_not_change(_context: Any, _revision: Any, directives: list[Any]) -> None:
    """`flask db migrate` writes no empty migration."""
    if getattr(context.config.cmd_opts, "autogenerate", False) and directives[0].upgrade_ops.is_empty():
        directives[:] = []
        log.info("The models and the migrations agree: nothing to write.")


def _render(kind: str, item: Any, _context: Any) -> str | bool:
    """A migration stands on its own: it names no class of models.py, which will have moved on."""
    return "sa.DateTime(timezone=True)" if kind == "type" and type(item).__name__ == "UTCDateTime" else False


options = {
    "process_revision_directives": _leave_out_what_did_not_change,
    "render_item": _render,
    **migrate.configure_args,
}


def _upgrade_sqlite(connection: Connection) -> None:
    """Batch mode makes a table anew and drops the old one, which foreign keys would hinder, or answer by deleting the
    children; so they are off meanwhile, which SQLite heeds only outside of a transaction, and checked at the end.
    """
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        with connection.begin():
            context.configure(connection=connection, target_metadata=metadata, **options)
            context.run_migrations()
            if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
                tables = sorted({str(row[0]) for row in broken})
                raise SystemExit(f"Nothing was migrated: rows of {', '.join(tables)} would refer to what is gone.")
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def _upgrade(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, **options)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    url = engine.url.render_as_string(hide_password=False)
    context.configure(url=url, target_metadata=metadata, literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    with engine.connect().execution_options(unhurried=True) as connection:
        (_upgrade_sqlite if connection.dialect.name == "sqlite" else _upgrade)(connection)
