"""Reads one state of the database for as long as it takes, also in several processes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from flask import current_app
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from server.database import db, reader

Result = TypeVar("Result")

_decode = partial(str, encoding="utf-8", errors="surrogateescape")


@contextmanager
def snapshot() -> Iterator[Connection]:
    """Yield a connection whose statements all see the same state of the database, while others go on writing.

    SQLite stores any bytes as a text, so the connection also reads texts that are not UTF-8.
    """
    with reader() as connection:
        if connection.dialect.name == "postgresql":
            yield connection.execution_options(isolation_level="REPEATABLE READ")
            return
        driver: Any = connection.connection.driver_connection
        text_factory, driver.text_factory = driver.text_factory, _decode
        try:
            yield connection
        finally:
            driver.text_factory = text_factory


def exported(connection: Connection) -> str:
    """Return the name by which other connections can see the state that this PostgreSQL connection sees."""
    return str(connection.exec_driver_sql("SELECT pg_export_snapshot()").scalar())


def address() -> tuple[str, dict[str, Any]]:
    """Return what `connected` takes, to connect to the application's database."""
    options = current_app.config["SQLALCHEMY_ENGINE_OPTIONS"].get("connect_args", {})
    return db.engine.url.render_as_string(hide_password=False), options


@contextmanager
def connected(url: str, connect_args: dict[str, Any]) -> Iterator[Connection]:
    """Yield a connection of a process that has no application."""
    engine = create_engine(url, connect_args=connect_args, poolclass=NullPool, hide_parameters=True)
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            driver: Any = connection.connection.driver_connection
            driver.isolation_level, driver.text_factory = None, _decode  # the driver begins no transaction
        yield connection


def begin(connection: Connection, name: str) -> None:
    """Begin a transaction anew that sees the state called `name`, on SQLite the newest state."""
    connection.rollback()
    if connection.dialect.name == "postgresql":
        connection.execution_options(isolation_level="REPEATABLE READ")
        connection.exec_driver_sql(f"SET TRANSACTION SNAPSHOT '{name}'")
    else:
        connection.exec_driver_sql("BEGIN")
        settle(connection)


def settle(connection: Connection) -> None:
    """Read a row: SQLite's transaction sees the state at its first read."""
    connection.exec_driver_sql("SELECT 1 FROM audit_heads LIMIT 1").all()


def states(connection: Connection) -> int:
    """Return a number that changes when somebody else commits to this SQLite database."""
    return int(connection.exec_driver_sql("PRAGMA data_version").scalar() or 0)


@contextmanager
def meanwhile(connection: Connection, work: Callable[[Connection], Result]) -> Iterator[Callable[[], Result]]:
    """Have a thread do `work` with a connection that sees what this one sees. Yield a function that returns its result.

    On SQLite no second connection is sure to see the same, and PostgreSQL may refuse one. Then the work is done when
    the result is asked for.
    """
    with ExitStack() as closing:
        other = _beside(connection, closing) if connection.dialect.name == "postgresql" else None
        if other is None:
            yield partial(work, connection)
            return
        driver: Any = other.connection.driver_connection
        with ThreadPoolExecutor(1) as thread:
            result = thread.submit(work, other)
            try:
                yield result.result
            finally:
                while not result.done():  # nobody wants it any more
                    driver.cancel()  # does nothing between two statements
                    wait([result], 0.1)


def _beside(connection: Connection, closing: ExitStack) -> Connection | None:
    """Return a second connection that sees what this one sees, or None if there is none to be had."""
    try:
        other = closing.enter_context(connected(*address()))
        begin(other, exported(connection))
        other.exec_driver_sql("SET LOCAL max_parallel_workers_per_gather = 0")  # they would take our cores
    except SQLAlchemyError:
        return None
    return other
