"""Runs the migrations for `flask db`. Alembic executes this file in the context of the application."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from alembic import context
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from flask import current_app
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from server import database, errors
from server.migrating import limit_lock_waits, with_retries
from server.outage import reason_of

log = logging.getLogger("alembic.runtime.migration")
log.setLevel(logging.INFO)  # a line for each migration
migrate = current_app.extensions["migrate"]
engine = migrate.db.engine


def _write_no_empty_migration(_context: Any, _revision: Any, directives: list[Any]) -> None:
    """Make `flask db migrate` write no file if the models and the migrations agree."""
    if getattr(context.config.cmd_opts, "autogenerate", False) and directives[0].upgrade_ops.is_empty():
        directives[:] = []
        log.info("The models and the migrations agree: nothing to write.")


def _render(kind: str, item: Any, _context: Any) -> str | bool:
    """Write SQLAlchemy's own type for `UTCDateTime`: our classes may change, and a migration must not."""
    return "sa.DateTime(timezone=True)" if kind == "type" and type(item).__name__ == "UTCDateTime" else False


options = {
    "target_metadata": migrate.db.metadata,
    "process_revision_directives": _write_no_empty_migration,
    "render_item": _render,
    "transaction_per_migration": True,
    **migrate.configure_args,
}


def _check_foreign_keys(ctx: MigrationContext, step: Any, **_: Any) -> None:
    """Undo a migration that leaves a row without its parent: SQLite's own checks are off during migrations."""
    connection: Any = ctx.connection
    if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
        tables = ", ".join(sorted({str(row[0]) for row in broken}))
        raise SystemExit(
            f"Migration {step.up_revision_id} is undone: rows of {tables} would refer to rows that are gone."
        )


@contextmanager
def _without_foreign_keys(connection: Connection) -> Iterator[None]:
    """Switch off SQLite's foreign keys: batch mode drops a table and makes it again, which they would refuse.

    SQLite ignores both pragmas in a transaction. `legacy_alter_table` leaves the triggers of other tables unchanged.
    https://www.sqlite.org/lang_altertable.html#otheralter
    """
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    driver.execute("PRAGMA legacy_alter_table=ON")
    try:
        yield
    finally:
        connection.rollback()
        driver.isolation_level = None  # alembic's autocommit_block() changes it
        driver.execute("PRAGMA legacy_alter_table=OFF")
        driver.execute("PRAGMA foreign_keys=ON")


def _run(connection: Connection, *checks: Any, **more: Any) -> None:
    """Run each migration in its own transaction. A migration that gets no lock is tried again."""
    steps: list[Any] = []
    done: list[Any] = []
    more |= {"connection": connection, "on_version_apply": (*checks, lambda step, **_: done.append(step))}
    context.configure(**options, **more)
    find_steps = context.get_context().opts["fn"]

    def remaining_steps(heads: Any, migration: MigrationContext) -> list[Any]:
        steps[:] = steps or find_steps(heads, migration)
        return steps[len(done) :]

    def attempt() -> None:
        connection.rollback()  # alembic begins no transactions of its own inside an open transaction
        context.configure(**options, **more, fn=remaining_steps)
        with context.begin_transaction():
            context.run_migrations()

    with_retries(attempt)


def _is_of_newer_code(connection: Connection) -> bool:
    """Return whether the command is `flask db upgrade` and a newer version of this code has upgraded the schema."""
    command = click.get_current_context(silent=True)
    if command is None or command.info_name != "upgrade":
        return False
    revisions = MigrationContext.configure(connection).get_current_heads()
    connection.rollback()
    return len(revisions) == 1 and database.is_newer(revisions[0], context.script.dir)


def _run_online() -> None:
    with engine.connect() as connection:
        if _is_of_newer_code(connection):
            log.info("The schema is of a newer version of this code: nothing to upgrade.")
        elif connection.dialect.name == "sqlite":
            with _without_foreign_keys(connection):
                _run(connection, _check_foreign_keys, transactional_ddl=True)
        else:
            limit_lock_waits(connection)
            _run(connection)


if context.is_offline_mode():
    url = engine.url.render_as_string(hide_password=False)
    context.configure(url=url, literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    try:
        _run_online()
    except DBAPIError as error:
        if errors.is_passing(error):
            raise CommandError(
                "Other transactions kept a lock for minutes. Earlier migrations are kept; run this again."
            ) from None
        if not errors.is_outage(error):
            raise
        raise CommandError(f"The database did not answer: {reason_of(error)}. Run this again.") from None
