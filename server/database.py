"""The database: connections, transactions, the bulk insert, and how times are stored. The tables are in models.py."""

import random
import re
import select as select_module
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast
from zoneinfo import ZoneInfo

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import Flask, current_app, g, has_request_context, request
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    Connection,
    CursorResult,
    DateTime,
    Delete,
    Dialect,
    Engine,
    ExceptionContext,
    MetaData,
    Table,
    Update,
    event,
    insert,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator

from server import errors
from server.outage import outage

Result = TypeVar("Result")


def now() -> datetime:
    """Return this instant in UTC."""
    return datetime.now(UTC)


def clinic_zone() -> ZoneInfo:
    """Return the clinic's time zone: of a time without an offset, and of every time in an answer."""
    return ZoneInfo(current_app.config["TIMEZONE"])


class UTCDateTime(TypeDecorator[datetime]):
    """A column for an instant: UTC in the database, timezone-aware in Python. SQLite stores no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


# An object stays readable after the commit, so an answer needs no second read.
db = SQLAlchemy(model_class=Base, session_options={"expire_on_commit": False})
migrate = Migrate(
    directory=str(Path(__file__).parent.parent / "migrations"), render_as_batch=True, compare_server_default=True
)


def upsert(table: type[Base]) -> Any:
    """Return the dialect's own INSERT of `table`, which has ON CONFLICT."""
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[db.engine.dialect.name](table)


@lru_cache(maxsize=64)
def _sqlite_insert(
    table: Table, names: tuple[str, ...], dialect: Dialect
) -> tuple[str, tuple[Callable[[Any], Any] | None, ...]]:
    """Return SQLite's INSERT of these columns, and for each column the function that converts its values."""
    converters = tuple(table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in names)
    columns, marks = ", ".join(names), ", ".join("?" * len(names))
    return f"INSERT INTO {table.name} ({columns}) VALUES ({marks})", converters  # noqa: S608  # names of our own


def _converted(values: Sequence[Any], convert: Callable[[Any], Any]) -> list[Any]:
    """Convert values, reusing the last result for repeats: rows written together often share their time."""
    converted: list[Any] = []
    last: Any = convert
    for value in values:
        if value is not last:
            last, result = value, convert(value)
        converted.append(result)
    return converted


def insert_many(
    connection: Connection, kind: type[Base], names: tuple[str, ...], rows: Sequence[Sequence[Any]]
) -> None:
    """Insert rows whose values are in the order of `names`.

    On SQLite values are converted column by column: a million rows take a third less time.
    """
    table, dialect = cast(Table, kind.__table__), connection.dialect
    if dialect.name != "sqlite" or not rows:
        connection.execute(insert(table), [dict(zip(names, row, strict=True)) for row in rows])
        return
    statement, converters = _sqlite_insert(table, names, dialect)
    columns = [
        _converted(values, convert) if convert else values
        for values, convert in zip(zip(*rows, strict=True), converters, strict=True)
    ]
    connection.exec_driver_sql(statement, list(zip(*columns, strict=True)))


TRIES = 8  # of a transaction that lost a race: within two seconds or so


def in_transaction(work: Callable[[], Result]) -> Result:
    """Return what `work` returns and commit its changes; roll back if it raises.

    It begins with the check that the guard left in `g.begin_transaction`. A transaction that lost a race is tried
    again, a little later each time. It may run within another `in_transaction` after `outside_transaction`: the outer
    one does not repeat what the inner one gave up.
    """
    attempt = 1
    while True:
        try:
            if check := has_request_context() and g.get("begin_transaction"):
                check()
            result = work()
            db.session.commit()
            return result
        except Exception as error:
            db.session.rollback()
            db.session.expunge_all()
            if not errors.is_worth_another_try(error):
                raise
            if attempt == TRIES:
                raise errors.from_database(error) or error from error
        time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
        attempt += 1


@contextmanager
def outside_transaction() -> Iterator[None]:
    """Commit the open transaction. Hash and upload within: they take long and must hold neither lock nor connection.

    Write afterwards by `in_transaction`, which looks at the caller's rights again.
    """
    db.session.commit()
    yield


def refuse_open_transaction(what: str) -> None:
    """Raise RuntimeError if the session has a transaction open: `what` takes long."""
    if db.session().in_transaction():
        raise RuntimeError(f"{what} takes long and must run outside of a transaction: use outside_transaction()")


def affected_rows(statement: Delete | Update) -> int:
    """Execute the statement in the session and return how many rows it changed."""
    result: CursorResult[Any] = db.session.execute(  # type: ignore[assignment]
        statement, execution_options={"synchronize_session": False}
    )
    return result.rowcount


def _reads_only() -> bool:
    """Return whether the current request is a GET or HEAD, whose transactions only read."""
    return has_request_context() and request.method in ("GET", "HEAD")


def _on_sqlite(engine: Engine) -> None:
    """Set SQLite up as a server's database: foreign keys, WAL, full sync, and BEGIN IMMEDIATE for every writer.

    A plain BEGIN loses updates between the read and the write: 172 of 200 requests by 8 threads, 0 with IMMEDIATE.
    """

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction; `_begin` does
        for pragma in ("busy_timeout=20000", "journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") == "AUTOCOMMIT":
            return
        reading = options.get("reading", _reads_only())
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def limited(statement: str, seconds: int) -> str:
    """Return the statement with a time limit in front, which holds until the end of the transaction.

    One message carries both, so the limit takes no round trip. It works behind PgBouncer, which refuses the startup
    parameter `options` and hands what a session SET to another client.
    """
    return f"SET LOCAL statement_timeout = {seconds * 1000}; {statement}"


def _on_postgresql(engine: Engine, seconds: int) -> None:
    """Limit the time of every transaction's statements, and replace a connection that the server closed."""

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.info["unlimited"] = not connection.get_execution_options().get("unhurried")

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def _prefix(
        connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, *_: Any
    ) -> tuple[str, Any]:
        if preceding := context and context.execution_options.get("preceded_by"):
            statement = f"{preceding}; {statement}"  # one message; each statement has its own snapshot
        if connection.info.pop("unlimited", False):
            if not cursor.name:
                return limited(statement, seconds), parameters
            with cursor.connection.cursor() as plain:  # DECLARE of a server-side cursor must be alone in its message
                plain.execute(limited("", seconds))
        return statement, parameters

    @event.listens_for(engine, "checkout")
    def _checkout(connection: Any, *_: Any) -> None:
        if connection.closed or _is_readable(connection.fileno()):
            raise DisconnectionError

    @event.listens_for(engine, "handle_error")
    def _leave_standby(context: ExceptionContext) -> None:
        """Close every connection to a server that became read-only: the next one may find the primary."""
        if getattr(context.original_exception, "pgcode", None) == errors.READ_ONLY:
            context.is_disconnect = True


def _is_readable(descriptor: int) -> bool:
    """Return whether a socket has something to read. If it is idle, the server closed it; cheaper than a ping."""
    if not hasattr(select_module, "poll"):  # Windows
        return bool(select_module.select([descriptor], [], [], 0)[0])
    waiting = select_module.poll()
    waiting.register(descriptor, select_module.POLLIN)
    return bool(waiting.poll(0))


def _end_outage(connection: Any, _record: Any) -> None:
    """Note that the database answers, when a connection that still works returns to the pool."""
    if connection is not None:
        outage.ended()


def reader() -> Connection:
    """Return a connection for one short read, outside of the session's transaction. The caller closes it."""
    return db.engine.connect().execution_options(reading=True)


@cache
def _known_revisions(directory: str) -> tuple[str, frozenset[str]]:
    """Return the newest migration of this code, and all of them."""
    script = ScriptDirectory(directory)
    return script.get_current_head() or "", frozenset(step.revision for step in script.walk_revisions())


def is_newer(revision: str, directory: str) -> bool:
    """Return whether `revision` is a migration of a newer version of this code. Revisions are numbered: 0008, 0009."""
    head, known = _known_revisions(directory)
    return revision not in known and bool(re.fullmatch(r"[0-9]{4}", revision)) and revision > head


def check_schema() -> str:
    """Return the revision of the schema. Raise `Unavailable` unless this code can serve with the database.

    A newer schema will do: in a rolling upgrade the nodes of the old version go on serving (expand, then contract).
    """
    directory = current_app.extensions["migrate"].directory
    with reader() as connection:
        if not _is_writable(connection):
            raise errors.Unavailable(errors.SAYS_READ_ONLY)
        revisions = MigrationContext.configure(connection).get_current_heads()
    if len(revisions) != 1 or not (revisions[0] == _known_revisions(directory)[0] or is_newer(revisions[0], directory)):
        raise errors.Unavailable("The database is not up to date. Run: flask db upgrade")
    return revisions[0]


def _is_writable(connection: Connection) -> bool:
    """Return whether a transaction may write: not on a standby, nor in a file that can only be read."""
    if connection.dialect.name == "postgresql":
        return connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "off"
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA busy_timeout=0")
    try:
        driver.execute("BEGIN IMMEDIATE")  # of a file that can only be read, this begins a read
        driver.execute("PRAGMA user_version=0")
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # another connection writes at this moment
    finally:
        driver.rollback()
        driver.execute("PRAGMA busy_timeout=20000")
    return True


def init_app(app: Flask) -> None:
    db.init_app(app)
    migrate.init_app(app, db)
    with app.app_context():
        event.listen(db.engine, "checkin", _end_outage)
        if db.engine.dialect.name == "sqlite":
            _on_sqlite(db.engine)
        else:
            _on_postgresql(db.engine, app.config["STATEMENT_TIMEOUT"])
