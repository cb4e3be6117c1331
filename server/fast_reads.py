"""Reading past the session: statements of SQLAlchemy's, compiled once, run by the driver's own cursor.

A request has one connection for it, on which each statement is a transaction of its own: no BEGIN, no ROLLBACK. The
compiler, the pool and the errors stay SQLAlchemy's; its execution costs more than what it executes (an indexed row of
SQLite takes 5 µs, by `Connection.execute` 45).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flask import Flask, current_app, g
from sqlalchemy import ClauseElement, Connection, Dialect, PoolProxiedConnection
from sqlalchemy.exc import DBAPIError

from server import database
from server.database import db

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class _Prepared:
    sql: str
    places: Sequence[str] | None  # the names of the values in their order; None where the driver takes them by name
    own: Mapping[str, Any]  # values that the statement brings along
    converters: Mapping[str, Callable[[Any], Any]]  # for those that the driver does not take as they are

    def bound(self, values: Mapping[str, Any]) -> Any:
        given = {**self.own, **values}
        for name, convert in self.converters.items():
            given[name] = convert(given[name])
        return given if self.places is None else [given[name] for name in self.places]


@lru_cache(maxsize=256)
def _prepared(statement: ClauseElement, dialect: Dialect) -> _Prepared:
    compiled: Any = statement.compile(dialect=dialect)
    kinds = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in compiled.binds.items()}
    converters = {name: convert for name, convert in kinds.items() if convert}
    sql = str(compiled)
    if dialect.name == "postgresql":
        sql = database.limited(sql, current_app.config["STATEMENT_TIMEOUT"])
    return _Prepared(sql, compiled.positiontup, compiled.params, converters)


def _connection() -> PoolProxiedConnection:
    if "reading" not in g:
        g.reading = db.engine.raw_connection()
        if db.engine.dialect.name == "postgresql":
            g.reading.driver_connection.autocommit = True
    connection: PoolProxiedConnection = g.reading
    return connection


def read(statement: ClauseElement, values: Mapping[str, Any]) -> Sequence[Row]:
    """All rows, as the driver gives them, of a statement whose values are `bindparam`s. Keep the statement: by it the
    compiled one is known. Raises what SQLAlchemy raises."""
    dialect = db.engine.dialect
    prepared = _prepared(statement, dialect)
    connection = None
    try:
        connection = _connection()
        cursor = connection.cursor()
        cursor.execute(prepared.sql, prepared.bound(values))
        rows: Sequence[Row] = cursor.fetchall()
        cursor.close()
    except dialect.loaded_dbapi.Error as error:
        if connection is not None and dialect.is_disconnect(error, connection, None):
            connection.invalidate(error)
        raise DBAPIError.instance(prepared.sql, None, error, dialect.loaded_dbapi.Error, dialect=dialect) from error
    return rows


def stop(_: object = None) -> None:
    """Gives the request's connection back before its end: for what needs another, or takes its time."""
    connection: PoolProxiedConnection | None = g.pop("reading", None)
    if connection is not None:
        driver: Any = connection.driver_connection
        if db.engine.dialect.name == "postgresql" and driver is not None and not driver.closed:
            driver.autocommit = False
        connection.close()


def streaming(batch: int) -> Connection:
    """A connection for one long read, so many rows at a time, that outlives the request's context. To be closed."""
    stop()  # a request that held one connection and waited for another could wait for itself
    connection = db.engine.connect().execution_options(reading=True, yield_per=batch)
    if connection.dialect.name == "postgresql":  # two statements shall see one state; on SQLite they do
        connection.execution_options(isolation_level="REPEATABLE READ")
    return connection


def init_app(app: Flask) -> None:
    app.teardown_appcontext(stop)
