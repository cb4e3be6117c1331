"""Reads past the session: SQLAlchemy compiles a statement once, and the driver's own cursor executes it.

Each request has its own connection for these reads. Each statement is a transaction, without BEGIN and ROLLBACK.
SQLAlchemy still supplies the compiler, the pool and the errors. A guarded read takes 390 µs of CPU this way, and 770 µs
with `Connection.execute`. A page of 100 patients takes 1,170 µs, and 1,610 µs with `Connection.execute`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from flask import Flask, current_app, g
from sqlalchemy import ClauseElement, Connection, Dialect, Engine, PoolProxiedConnection, Select, true
from sqlalchemy.exc import DBAPIError

from server import database
from server.database import db

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A compiled statement."""

    sql: str
    positions: Sequence[str] | None  # the names of the parameters in their order; None if the driver takes names
    constants: Mapping[str, Any]  # the parameters that have their value already
    converters: Mapping[str, Callable[[Any], Any]]  # from Python values to values of the driver

    def parameters(self, values: Mapping[str, Any]) -> Any:
        """Return the parameters as the driver takes them."""
        parameters = {**self.constants, **values}
        for name, convert in self.converters.items():
            parameters[name] = convert(parameters[name])
        return parameters if self.positions is None else [parameters[name] for name in self.positions]


@lru_cache(maxsize=256)
def _prepared(statement: ClauseElement, dialect: Dialect) -> _Prepared:
    compiled: Any = statement.compile(dialect=dialect)
    processors = {n: bind.type.dialect_impl(dialect).bind_processor(dialect) for n, bind in compiled.binds.items()}
    converters = {name: convert for name, convert in processors.items() if convert}
    sql = str(compiled)
    if dialect.name == "postgresql":
        sql = database.limited(sql, current_app.config["STATEMENT_TIMEOUT"])
    return _Prepared(sql, compiled.positiontup, compiled.params, converters)


class _Ahead(NamedTuple):
    """The rows of a statement that is expected next."""

    statement: ClauseElement
    values: Mapping[str, Any]
    rows: Sequence[Row]


class _Reading:
    """What a request reads by: its connection, and what it has read ahead. `g` has it until `stop`."""

    def __init__(self, engine: Engine) -> None:
        self.dialect = engine.dialect
        self.connection: PoolProxiedConnection | None = None
        self.engine = engine
        self.ahead: _Ahead | None = None

    def rows_of(self, statement: ClauseElement, values: Mapping[str, Any]) -> Sequence[Row]:
        """Return all rows of the statement, as `read` does."""
        dialect, prepared = self.dialect, _prepared(statement, self.dialect)
        try:
            cursor = (self.connection or self._connected()).cursor()
            cursor.execute(prepared.sql, prepared.parameters(values))
            rows: Sequence[Row] = cursor.fetchall()
            cursor.close()
        except dialect.loaded_dbapi.Error as error:
            raise DBAPIError.instance(prepared.sql, None, error, dialect.loaded_dbapi.Error, dialect=dialect) from error
        return rows

    def _connected(self) -> PoolProxiedConnection:
        """Return a connection of the pool, on which every statement is its own transaction."""
        self.connection = self.engine.raw_connection()
        driver: Any = self.connection.driver_connection
        if self.dialect.name == "postgresql" and not driver.autocommit:
            driver.autocommit = True  # it stays so: `database` ends it where a transaction begins
        return self.connection

    def close(self) -> None:
        """Return the connection to the pool."""
        if self.connection:
            self.connection.close()


def _reading() -> _Reading:
    reading: _Reading | None = g.get("reading")
    if reading is None:
        reading = g.reading = _Reading(db.engine)
    return reading


def read(statement: ClauseElement, values: Mapping[str, Any]) -> Sequence[Row]:
    """Return all rows of the statement, as the driver returns them. Raises the exceptions of SQLAlchemy.

    `values` are for the statement's `bindparam`s. Reuse the statement object: compiled SQL is cached by identity.
    """
    reading = _reading()
    if (ahead := reading.ahead) and ahead.statement is statement and ahead.values == values:
        reading.ahead = None
        return ahead.rows
    return reading.rows_of(statement, values)


def read_together(
    first: Select[*tuple[Any, ...]], values: Mapping[str, Any], then: Select[Any], later: Mapping[str, Any]
) -> Row | None:
    """Return the row of `first`, if there is one, and read the row of `then` in the same statement.

    The request's next `read` gets it, if it is `read(then, later)`. Both have one row at most, and the first column of
    `then` is not null. A guarded read takes 126 µs of CPU this way on SQLite and 269 µs on PostgreSQL, where one of two
    round trips is saved; with two statements 133 µs and 295 µs.
    """
    reading = _reading()
    rows = reading.rows_of(_joined(first, then), {**values, **later})
    if not rows:
        return None
    row, count = rows[0], len(first.selected_columns)
    reading.ahead = _Ahead(then, later, [] if row[count] is None else [row[count:]])
    return row[:count]


@lru_cache(maxsize=64)
def _joined(first: Select[*tuple[Any, ...]], then: Select[Any]) -> Select[*tuple[Any, ...]]:
    beside = then.subquery()
    return first.add_columns(*beside.c).outerjoin(beside, true())


def stop(_: object = None) -> None:
    """Return the request's connection to the pool. Call it before long work, or before taking another connection."""
    reading: _Reading | None = g.pop("reading", None)
    if reading:
        reading.close()


def snapshot() -> Connection:
    """Return a connection whose statements all see the same state of the database. Close it after use."""
    stop()  # a thread that holds a connection while it waits for another could empty the pool
    return as_snapshot(db.engine.connect().execution_options(reading=True))


def as_snapshot(connection: Connection) -> Connection:
    """Return the connection, whose next transaction sees one state of the database."""
    if connection.dialect.name == "postgresql":  # SQLite does so by itself
        connection.execution_options(isolation_level="REPEATABLE READ")
    return connection


def init_app(app: Flask) -> None:
    """Return a request's connection to the pool when the request ends."""
    app.teardown_appcontext(stop)
