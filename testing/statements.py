"""Counts the SQL statements that reach the database driver."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2.extensions
from flask import Flask
from sqlalchemy import event


@contextmanager
def counted_statements(app: Flask) -> Iterator[list[str]]:
    """Yield a list of the SQL statements of the block, with their values. BEGIN, COMMIT and the like are left out."""
    statements: list[str] = []

    def note(statement: str) -> None:
        statement = statement.rpartition("SET LOCAL statement_timeout = 30000; ")[2].strip()
        control = ("--", "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "PRAGMA")  # `--` is within a trigger
        again = statements and statement.startswith("INSERT") and statement[:40] == statements[-1][:40]
        if statement and not statement.startswith(control) and not again:  # SQLite tells of each row of executemany
            statements.append(statement)

    class Cursor(psycopg2.extensions.cursor):
        def execute(self, query: str, values: Any = None) -> None:
            note(self.mogrify(query, values).decode())
            super().execute(query, values)

    def watch(connection: Any, _record: Any) -> None:
        if hasattr(connection, "set_trace_callback"):
            connection.set_trace_callback(note)
        else:
            connection.cursor_factory = Cursor

    with app.app_context():
        engine = app.extensions["sqlalchemy"].engine
    engine.dispose()
    event.listen(engine, "connect", watch)
    try:
        yield statements
    finally:
        event.remove(engine, "connect", watch)
        engine.dispose()
