"""The database: connections, transactions, the bulk insert, and how times are stored. models.py has the tables."""

import random
import re
import select as select_module
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from flask import Flask, g, has_app_context, has_request_context, request
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
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator

from server import errors, metrics
from server.outage import outage
from server.writers import BUSY_TIMEOUT, WriterConnection, Writers

Result = TypeVar("Result")


class UTCDateTime(TypeDecorator[datetime]):
    """A column for an instant: UTC in the database, timezone-aware in Python. SQLite stores no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the value for the driver. Raises ValueError for a time without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the driver's value as a time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """The base of every table. Migrations refer to constraints by these names."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


# Objects keep their values after the commit: the answer is made from them without another read.
db = SQLAlchemy(model_class=Base, session_options={"expire_on_commit": False})
MIGRATIONS = str(Path(__file__).parent.parent / "migrations")


def upsert(table: type[Base]) -> Any:
    """Return an INSERT into `table` that can have ON CONFLICT, which only the dialects' own INSERT has."""
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
    """Convert values, and a repeated object once: rows that are written together often share their time."""
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

    On SQLite the values are converted column by column, which takes a third less time.
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


TRIES = 8  # of a transaction that lost a race; all within about two seconds


def in_transaction(work: Callable[[], Result]) -> Result:
    """Return what `work` returns and commit its changes; roll back if it raises.

    The transaction begins with the check in `g.begin_transaction`, which the guard sets. If it loses a race, it is
    tried again, up to `TRIES` times, each time after a longer pause. `work` must not assume that it runs once.

    A view that itself runs in `in_transaction` may call it after `outside_transaction`. When the inner transaction has
    used up its tries, it raises an API error, so the outer transaction does not repeat the view.
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
        metrics.tried_again.inc()
        time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
        attempt += 1


@contextmanager
def outside_transaction() -> Iterator[None]:
    """Commit the open transaction, for a block that hashes or uploads: it must hold neither a lock nor a connection.

    Write after that by `in_transaction`, which checks the caller's rights again.
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


def _is_after_request() -> bool:
    """Return whether this is what a request left to a thread."""
    return has_app_context() and "after_request" in g


def _on_sqlite(engine: Engine) -> None:
    """Set up SQLite: foreign keys, WAL, full sync, and BEGIN IMMEDIATE for every transaction that may write.

    With a plain BEGIN an update is lost if another connection writes between its read and its write. Of 200 requests by
    8 threads 172 lost their update; with IMMEDIATE none did.
    """

    writers = Writers(engine.url.database or "")

    @event.listens_for(engine, "do_connect")
    def _use_our_class(_dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
        options["factory"] = WriterConnection

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction; `_begin` does
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT * 1000}",
            "journal_mode=WAL",
            "foreign_keys=ON",
            "synchronous=FULL",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") == "AUTOCOMMIT":
            return
        if options.get("reading", _reads_only()):
            connection.exec_driver_sql("BEGIN")
        else:
            driver: Any = connection.connection.driver_connection
            with suppress(sqlite3.OperationalError):  # the statement below raises it as SQLAlchemy's
                if driver.begin_writing(writers):
                    return
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def limited(statement: str, seconds: int) -> str:
    """Return the statement with a time limit in front. The limit holds until the end of the transaction.

    Both go in the same message, so the limit takes no round trip. It works behind PgBouncer, which refuses the startup
    parameter `options`, and which passes the settings of a session on to other clients.
    """
    return f"SET LOCAL statement_timeout = {seconds * 1000}; {statement}"


def on_postgresql(engine: Engine, seconds: int) -> None:
    """Limit the time of each statement that a request waits for, and replace a connection that the server closed."""

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.info["needs_limit"] = has_request_context() or _is_after_request()  # a command may take any time
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            _end_autocommit(connection)

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def _prefix(
        connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, *_: Any
    ) -> tuple[str, Any]:
        if preceding := context and context.execution_options.get("preceded_by"):
            statement = f"{preceding}; {statement}"  # in the same message; each statement has its own snapshot
        if connection.info.pop("needs_limit", False):
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
        """Close every connection to a server that became read-only: a new connection may reach the primary."""
        if getattr(context.original_exception, "pgcode", None) == errors.READ_ONLY:
            context.is_disconnect = True


def _end_autocommit(connection: Connection) -> None:
    """End the mode in which `fast_reads` left the connection. Raises the exceptions of SQLAlchemy.

    The driver sends a SET, since the engine has an isolation level. So a read does not end the mode after itself: the
    answer would wait 65 µs longer.
    """
    driver: Any = connection.connection.driver_connection
    if driver.autocommit:
        dialect = connection.dialect
        try:
            driver.autocommit = False
        except dialect.loaded_dbapi.Error as error:
            connection.invalidate(error)
            raise DBAPIError.instance("", None, error, dialect.loaded_dbapi.Error, dialect=dialect) from error


def _is_readable(descriptor: int) -> bool:
    """Return whether a socket is readable. A readable idle socket means the server closed it; cheaper than a ping."""
    if not hasattr(select_module, "poll"):  # Windows
        return bool(select_module.select([descriptor], [], [], 0)[0])
    waiting = select_module.poll()
    waiting.register(descriptor, select_module.POLLIN)
    return bool(waiting.poll(0))


def _end_outage(connection: Any, _record: Any) -> None:
    """Note that the database answers: a connection that still works returned to the pool."""
    if connection is not None:
        outage.ended()


def _show_pool(engine: Engine, options: dict[str, Any]) -> None:
    size = options.get("pool_size", 0) + options.get("max_overflow", 0)
    metrics.sample("hosi_pool_size", "Connections to the database that the workers may hold.", lambda: size)
    in_use = getattr(engine.pool, "checkedout", lambda: 0)  # SQLite in memory has no pool
    metrics.sample("hosi_pool_in_use", "Connections to the database that are in use.", in_use)


def reader() -> Connection:
    """Return a connection for one short read, outside of the session's transaction. Close it after use."""
    return db.engine.connect().execution_options(reading=True)


@cache
def _known_revisions(directory: str) -> tuple[str, frozenset[str]]:
    """Return the newest migration of this code, and all its migrations."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(directory)
    return script.get_current_head() or "", frozenset(step.revision for step in script.walk_revisions())


def is_newer(revision: str, directory: str = MIGRATIONS) -> bool:
    """Return whether `revision` is a migration of a newer version of this code. Revisions are numbers: 0008, 0009."""
    head, known = _known_revisions(directory)
    return revision not in known and bool(re.fullmatch(r"[0-9]{4}", revision)) and revision > head


def check_schema() -> str:
    """Return the revision of the schema. Raises `Unavailable` if the database is read-only or its schema is older.

    A newer schema is accepted: during a rolling upgrade, nodes with the old version go on serving.
    """
    from alembic.runtime.migration import MigrationContext

    with reader() as connection:
        if not _is_writable(connection):
            raise errors.Unavailable(errors.SAYS_READ_ONLY)
        revisions = MigrationContext.configure(connection).get_current_heads()
    if len(revisions) != 1 or not (revisions[0] == _known_revisions(MIGRATIONS)[0] or is_newer(revisions[0])):
        raise errors.Unavailable("The database is not up to date: run flask db upgrade.")
    return revisions[0]


def _is_writable(connection: Connection) -> bool:
    """Return whether a transaction may write. On a standby and in a read-only file it may not."""
    if connection.dialect.name == "postgresql":
        return connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "off"
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA busy_timeout=0")
    try:
        driver.execute("BEGIN IMMEDIATE")  # succeeds in a read-only file, as a read
        driver.execute("PRAGMA user_version=0")
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # another connection is writing
    finally:
        driver.rollback()
        driver.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT * 1000}")
    return True


class FlaskMigrate(click.Command):
    """Sets Flask-Migrate up when it is first needed: by `flask db`, or by `app.extensions["migrate"]`.

    It imports alembic with mako and pygments, which takes 0.1 s. A server needs alembic for its first /readyz.
    """

    def __init__(self, app: Flask) -> None:
        super().__init__("db", help="Perform database migrations.")
        self.app = app

    def set_up(self) -> None:
        """Put Flask-Migrate's own command and its own extension in the place of this object."""
        from flask_migrate import Migrate

        Migrate(self.app, db, directory=MIGRATIONS, compare_server_default=True)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Begin the command `flask db`."""
        self.set_up()
        return self.app.cli.commands["db"].make_context(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the extension."""
        self.set_up()
        return getattr(self.app.extensions["migrate"], name)


def init_app(app: Flask) -> None:
    """Make the engine and listen to its connections."""
    db.init_app(app)
    flask_migrate = FlaskMigrate(app)
    app.extensions["migrate"] = flask_migrate
    app.cli.add_command(flask_migrate)
    with app.app_context():
        event.listen(db.engine, "checkin", _end_outage)
        _show_pool(db.engine, app.config["SQLALCHEMY_ENGINE_OPTIONS"])
        if db.engine.dialect.name == "sqlite":
            _on_sqlite(db.engine)
        else:
            on_postgresql(db.engine, app.config["STATEMENT_TIMEOUT"])
