"""Reads and changes the database past the application, as an attacker or the passing of time would."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy import Executable, text


def sql(app: Flask, *statements: str | Executable, **values: Any) -> list[Any]:
    """Runs statements in one transaction past the application; returns the rows of the last one."""
    rows: list[Any] = []
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        for statement in statements:
            result = connection.execute(text(statement) if isinstance(statement, str) else statement, values or None)
            rows = list(result) if result.returns_rows else []
    return rows


def as_stored(app: Flask, instant: datetime) -> Any:
    """A time for `sql`, as the database has it."""
    utc = instant.astimezone(UTC)
    return str(utc.replace(tzinfo=None)) if app.config["DATABASE_URL"].startswith("sqlite") else utc


@contextmanager
def held_up(app: Flask, statement: Executable) -> Iterator[None]:
    """Whoever wants to write what this statement writes waits until the end of the block, and then sees it."""
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        connection.execute(statement)
        yield


def snapshot(app: Flask) -> dict[str, list[Any]]:
    """All that users, patients, appointments, reports and images hold: what a refused request must leave as it was."""
    kept = ("users", "weeks", "working_hours", "absences", "patients", "appointments", "reports", "images", "uploads")
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        rows = {n: [tuple(r) for r in connection.exec_driver_sql(f"SELECT * FROM {n} ORDER BY 1")] for n in kept}
    return {**rows, "files": sorted(stored_files(app))}


def stored_files(app: Flask) -> list[Path]:
    return [path for path in (Path(app.config["INSTANCE_PATH"]) / "images").rglob("*") if path.is_file()]


def empty_tables(app: Flask) -> None:
    with app.app_context():
        db = app.extensions["sqlalchemy"]
        names = [table.name for table in db.metadata.sorted_tables]
        with db.engine.begin() as connection:
            for name in reversed(names):  # in PostgreSQL, too, fifty times as fast as TRUNCATE
                connection.exec_driver_sql(f"DELETE FROM {name}")
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'")
            else:
                connection.exec_driver_sql("DELETE FROM sqlite_sequence")


def connections_in_use(app: Flask) -> int:
    with app.app_context():
        return int(app.extensions["sqlalchemy"].engine.pool.checkedout())


def dispose(app: Flask) -> None:
    """Closes the application's connections to the database."""
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()


def count(app: Flask, table: str) -> int:
    return int(sql(app, f"SELECT count(*) FROM {table}")[0][0])


def rows(app: Flask, sql: str) -> list[tuple[Any, ...]]:
    """Runs one statement as the driver takes it; returns its rows, if it has any."""
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        result = connection.exec_driver_sql(sql)
        return [tuple(row) for row in result] if result.returns_rows else []
