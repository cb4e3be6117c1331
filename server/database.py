"""The database: how it is connected to, what a transaction is, and how times are kept. The tables are in models.py."""

import random
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

Result = TypeVar("Result")


def now() -> datetime:
    return datetime.now(UTC)


def clinic_zone() -> ZoneInfo:
    """Where the clinic is: the zone of times without an offset, and of every time in an answer."""
    return ZoneInfo(current_app.config["TIMEZONE"])


class UTCDateTime(TypeDecorator[datetime]):
    """An instant: UTC in the database (SQLite keeps no zone), timezone-aware in Python."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive time has no place in the database")
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


# Rows stay readable after the commit, so that an answer needs no second read.
db = SQLAlchemy(model_class=Base, session_options={"expire_on_commit": False})
migrate = Migrate(
    directory=str(Path(__file__).parent.parent / "migrations"), render_as_batch=True, compare_server_default=True
)


def upsert(table: type[Base]) -> Any:
    """The dialect's own INSERT, which can say ON CONFLICT."""
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
    return has_request_context() and request.method in ("GET", "HEAD")


def _on_sqlite(engine: Engine) -> None:
    """SQLite as a server's database: foreign keys, WAL, full sync, and no transaction that begins by reading
    what it later writes (of 200 such read-then-write requests, 172 were lost without BEGIN IMMEDIATE)."""

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # the driver begins no transactions of its own; `_begin` does
        for pragma in ("busy_timeout=20000", "journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading", _reads_only())
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def limited(statement: str, seconds: int) -> str:
    """The statement with a limit on its time, and on that of what follows in the transaction, ahead of it.

    Sent in one message it costs no journey, and it holds behind PgBouncer, which refuses `options` at the start and
    gives what is SET for a session to somebody else.
    """
    return f"SET LOCAL statement_timeout = {seconds * 1000}; {statement}"


def _on_postgresql(engine: Engine, seconds: int) -> None:
    """A limit on the time of each statement, and no connection given out that the server has left."""

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.info["unlimited"] = not connection.get_execution_options().get("unhurried")

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def _prefix(
        connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, *_: Any
    ) -> tuple[str, Any]:
        if preceding := context and context.execution_options.get("preceded_by"):
            statement = f"{preceding}; {statement}"  # in one message, and each statement with a snapshot of its own
        if connection.info.pop("unlimited", False):
            if not cursor.name:
                return limited(statement, seconds), parameters
            with cursor.connection.cursor() as plain:  # a server-side cursor is declared in a message of its own
                plain.execute(limited("", seconds))
        return statement, parameters

    @event.listens_for(engine, "checkout")
    def _checkout(connection: Any, *_: Any) -> None:
        """In place of a ping: what waits to be read on an idle connection is the server's goodbye."""
        if connection.closed or _is_readable(connection.fileno()):
            raise DisconnectionError


def _is_readable(descriptor: int) -> bool:
    if not hasattr(select_module, "poll"):  # Windows
        return bool(select_module.select([descriptor], [], [], 0)[0])
    waiting = select_module.poll()
    waiting.register(descriptor, select_module.POLLIN)
    return bool(waiting.poll(0))


def reader() -> Connection:
    """A connection for one short read, outside of the session and its transaction. To be closed by the caller."""
    return db.engine.connect().execution_options(reading=True)


@cache
def _newest_revision(directory: str) -> str | None:
    return ScriptDirectory(directory).get_current_head()


def check_schema() -> str:
    """The revision of the database's schema. Raises `Unavailable` unless it is the newest migration."""
    with reader() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    if revision is None or revision != _newest_revision(current_app.extensions["migrate"].directory):
        raise errors.Unavailable("The database is not up to date. Run: flask db upgrade")
    return revision


def init_app(app: Flask) -> None:
    db.init_app(app)
    migrate.init_app(app, db)
    with app.app_context():
        if db.engine.dialect.name == "sqlite":
            _on_sqlite(db.engine)
        else:
            _on_postgresql(db.engine, app.config["STATEMENT_TIMEOUT"])
