"""Migrates the schema while the server runs. A migration waits briefly for locks, and rewrites rows in batches."""

import logging
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import click
from alembic import op
from sqlalchemy import Connection, Engine, bindparam, event, text
from sqlalchemy.exc import DBAPIError

from server import errors

log = logging.getLogger("alembic.runtime.migration")
Result = TypeVar("Result")
Rewrite = Callable[[Connection, list[int]], None]

LOCK_TIMEOUT = 500  # milliseconds; while a migration waits for the lock of a table, every reader waits behind it
LONG = 10_000  # a rewrite of at least so many rows shows a progress bar
PAUSE = 0.11  # seconds between batches, at least; a waiting SQLite connection tries again every 0.1 seconds
TRIES = 100  # of a transaction that does not get its locks; they take about two minutes


def limit_lock_waits(connection: Connection) -> None:
    """Begin every transaction of this connection with a short `lock_timeout`. Does nothing on SQLite."""
    if connection.dialect.name != "postgresql":
        return

    @event.listens_for(connection, "begin")
    def _begin(connection: Connection) -> None:
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT}")


def with_retries(work: Callable[[], Result]) -> Result:
    """Return what `work` returns. `work` is a transaction; it is tried up to `TRIES` times if it gets no lock."""
    attempt = 1
    while True:
        try:
            return work()
        except DBAPIError as error:
            if attempt == TRIES or not errors.is_passing(error):
                raise
        log.info("Other transactions hold a lock that this needs: trying again, %d of %d", attempt, TRIES)
        time.sleep(random.uniform(0.5, 1))  # noqa: S311  # requests that waited behind us go on
        attempt += 1


def rewrite_rows(table: str, todo: str, rewrite: Rewrite, size: int = 1000) -> int:
    """Call `rewrite(connection, ids)` for the rows of `table` that meet the SQL condition `todo`. Return their number.

    Each batch of at most `size` ids is a transaction that locks its rows. `rewrite` must make `todo` false for them, so
    that a stopped upgrade continues where it was. Rows that old code writes during the upgrade are rewritten, too. Rows
    that old code writes later are not: a migration of the next release must rewrite again.

    The migration must do nothing else, since its own transaction is committed first. An earlier migration adds the
    column with a server default, so that old code can go on writing. Raises RuntimeError if the migration changed
    something before, or if `todo` is still true afterwards. `flask db upgrade --sql` rewrites nothing.
    """
    migration = op.get_context()
    if migration.as_sql:
        migration.impl.static_output(f"-- The rows of {table} are rewritten by `flask db upgrade` without --sql.")
        return 0
    _refuse_other_changes(op.get_bind())
    with migration.autocommit_block():
        return _rewrite_all(op.get_bind().engine, table, todo, rewrite, size)


def _refuse_other_changes(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        written = connection.execute(text("SELECT txid_current_if_assigned()")).scalar()
        if written is not None:
            raise RuntimeError("A migration that rewrites rows changes nothing else: give the rest one of its own.")


def _rewrite_all(engine: Engine, table: str, todo: str, rewrite: Rewrite, size: int) -> int:
    with engine.connect().execution_options(reading=True) as connection:
        total = connection.execute(text(f"SELECT count(*) FROM {table} WHERE {todo}")).scalar_one()  # noqa: S608
    rewritten = 0
    with click.progressbar(length=total, label=f"rewriting {table}", file=sys.stderr, hidden=total < LONG) as bar:
        for _ in range(2):  # the second round finds rows that old code wrote during the first round
            last, full = 0, True
            while full:
                began = time.monotonic()
                ids = with_retries(partial(_rewrite_batch, engine, table, todo, rewrite, size, last))
                full = len(ids) == size
                last = ids[-1] if ids else last
                rewritten += len(ids)
                bar.update(len(ids))
                time.sleep(max(PAUSE, time.monotonic() - began))  # other writers get at least half of the time
    return rewritten


def _rewrite_batch(engine: Engine, table: str, todo: str, rewrite: Rewrite, size: int, last: int) -> list[int]:
    """Rewrite the next rows after the id `last` and return their ids."""
    locked = " FOR NO KEY UPDATE" if engine.dialect.name == "postgresql" else ""
    find = text(f"SELECT id FROM {table} WHERE id > :last AND ({todo}) ORDER BY id LIMIT :size{locked}")  # noqa: S608
    left = text(f"SELECT count(*) FROM {table} WHERE id IN :ids AND ({todo})")  # noqa: S608
    with engine.connect().execution_options(reading=False) as connection:
        limit_lock_waits(connection)
        with connection.begin():
            ids = list(connection.execute(find, {"last": last, "size": size}).scalars())
            if ids:
                rewrite(connection, ids)
                if connection.execute(left.bindparams(bindparam("ids", ids, expanding=True))).scalar():
                    raise RuntimeError(f"Rows of {table} still meet {todo!r} after they were rewritten.")
            return ids
