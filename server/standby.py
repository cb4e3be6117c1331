"""Sends long reads to a standby of PostgreSQL, while it has every write that was acknowledged before the request.

The primary tells how far its log is flushed, and the standby whether it has replayed that. See docs/decisions.md.
"""

import logging
import time
from contextlib import suppress

from flask import Flask, current_app
from sqlalchemy import Connection, Select, literal_column, select, text
from sqlalchemy.exc import SQLAlchemyError

from server import database, fast_reads, gate
from server.database import db
from server.outage import reason_of

log = logging.getLogger("hosi")

NAME = "standby"  # of the engine
WAIT = 0.2  # seconds for the standby to replay the newest writes
LOOK_EVERY = 0.01  # seconds
PAUSE = 10  # seconds in which nothing is asked of a standby that was away or behind

# Whoever lets commits be acknowledged before they are flushed waits for those, too.
_WRITTEN: Select[str] = select(
    literal_column(
        "CASE current_setting('synchronous_commit') WHEN 'off' THEN pg_current_wal_insert_lsn()"
        " ELSE pg_current_wal_flush_lsn() END::text"
    )
)
# Without a stream from its primary it may be the standby of a primary that has been replaced.
_HAS = text(
    "SELECT pg_is_in_recovery() AND pg_last_wal_replay_lsn() >= CAST(:written AS pg_lsn)"
    " AND EXISTS (SELECT FROM pg_stat_wal_receiver)"
)


class Standby:
    """Whether the standby of an application can be asked. Threads share it: a race costs one try more."""

    def __init__(self) -> None:
        self._trouble = ""
        self._not_before = 0.0

    @property
    def is_worth_a_try(self) -> bool:
        """Whether it answered last time, or `PAUSE` is over."""
        return time.monotonic() >= self._not_before

    def failed(self, trouble: str) -> None:
        """Ask the primary alone for a while."""
        if not self._trouble:
            log.warning("long reads go to the primary: the standby %s", trouble)
        self._trouble = trouble
        self._not_before = time.monotonic() + PAUSE

    def answered(self) -> None:
        """Note that the standby has what the primary has."""
        if self._trouble:
            log.warning("long reads go to the standby again")
        self._trouble, self._not_before = "", 0.0


def snapshot() -> Connection:
    """Return a connection whose statements all see the same state, in a request that reads. Close it after use.

    Every write that was acknowledged before this call is in that state.
    """
    standby: Standby | None = current_app.extensions.get(NAME)
    if standby is None or not standby.is_worth_a_try:
        return fast_reads.snapshot()
    written = fast_reads.read(_WRITTEN, {})[0][0]
    fast_reads.stop()  # a thread that holds a connection while it waits for another could empty the pool
    with gate.outside():
        connection = _with_all(standby, written)
    return fast_reads.snapshot() if connection is None else fast_reads.as_snapshot(connection)


def streaming(batch: int) -> Connection:
    """Return a snapshot for a stream of `batch` rows at a time. Close it after use.

    It stays open after the context of the request ends: the rows are still to be sent.
    """
    return snapshot().execution_options(yield_per=batch)


def _with_all(standby: Standby, written: str) -> Connection | None:
    """Return a connection to the standby once it has replayed the log up to `written`; None if it is away or behind."""
    connection = None
    try:
        connection = db.engines[NAME].connect().execution_options(reading=True)
        end = time.monotonic() + WAIT
        while not _has(connection, written):
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(LOOK_EVERY)
    except (SQLAlchemyError, TimeoutError) as error:
        if connection is not None:
            with suppress(SQLAlchemyError):
                connection.close()
        standby.failed("is behind" if isinstance(error, TimeoutError) else f"is away: {reason_of(error)}")
        return None
    standby.answered()
    return connection


def _has(connection: Connection, written: str) -> bool:
    """Return whether the standby has the log up to there. The snapshot of the read begins after this."""
    try:
        return bool(connection.execute(_HAS, {"written": written}).scalar())
    finally:
        connection.rollback()


def init_app(app: Flask) -> None:
    """Listen to the connections of the standby's engine, if there is one."""
    if app.config["DATABASE_READ_URL"]:
        app.extensions[NAME] = Standby()
        with app.app_context():
            database.on_postgresql(db.engines[NAME], app.config["STATEMENT_TIMEOUT"])
