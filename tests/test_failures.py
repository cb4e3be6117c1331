"""Failures of our own: the database is away, its schema is broken, a connection is cut."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from client import Client, assert_refused, run_cli
from factories import USUAL, MakeApp, make_patient, sign_in, sign_up
from flask import Flask, g
from flask_jwt_extended import create_access_token
from psycopg2.extensions import parse_dsn
from sqlalchemy import Engine, Select, event

from app import create_app
from clinic import collections
from server import outage
from server.fast_reads import read
from testing.postgresql import run_sql

PATIENT = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712 345 678"}
NOBODY = "postgresql://ward:a-secret@127.0.0.1:1/clinic"  # a port on which nothing listens
NO_NAME = "postgresql://ward:a-secret@no..host/clinic"  # a name that does not resolve
SECRETS = ("a-secret", "127.0.0.1", "nowhere", "no..host", "sqlite", "psycopg", "ward")


@pytest.fixture(params=[NOBODY, NO_NAME, "sqlite:////nowhere/at/all/hosi.db"], ids=["postgresql", "no name", "sqlite"])
def stranded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    """Someone with a token, while the database is away."""
    app = create_app({**USUAL, "DATABASE_URL": request.param, "INSTANCE_PATH": tmp_path / "instance"})
    with app.app_context():
        token = create_access_token("1", additional_claims={"sid": 1})
    yield Client(app, token)
    with app.app_context():
        app.extensions["sqlalchemy"].engine.dispose()


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("GET", "/patients", None),
        ("POST", "/patients", PATIENT),
        ("GET", "/reports/1", None),
        ("POST", "/login", {"email": "ada@clinic.test", "password": "a-secret"}),
        ("POST", "/signup", {**PATIENT, "phone_number": None}),
        ("POST", "/password/forgot", {"email": "ada@clinic.test"}),
        ("GET", "/readyz", None),
    ],
)
def test_while_the_database_is_away_the_answer_is_503_and_when_to_try_again(
    stranded: Client, method: str, path: str, sent: dict[str, str | None] | None
) -> None:
    if path == "/signup":
        sent = {"first_name": "A", "last_name": "B", "email": "a@clinic.test", "password": "a-secret-that-is-fine"}
    refused = stranded.send(method, path, sent)
    assert_refused(refused, 503)
    assert int(refused.headers["Retry-After"]) > 0
    assert refused.headers["X-Request-ID"]
    for secret in SECRETS:
        assert secret not in refused.text


@pytest.mark.parametrize(
    "command",
    [
        "audit verify",
        "audit head",
        "purge",
        "seed --patients 1",
        "reset-link ada@clinic.test",
        "db upgrade",
        "db current",
    ],
)
def test_while_the_database_is_away_a_command_ends_with_a_sentence(
    stranded: Client, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    code, said = run_cli(stranded.app, *command.split())
    assert code == 1
    assert "The database" in said + caplog.text
    assert "Traceback" not in said + caplog.text
    assert "a-secret" not in said + caplog.text


def test_the_process_lives_while_the_database_is_away(stranded: Client) -> None:
    assert stranded.get("/healthz").json == {"status": "ok"}


def test_bad_input_is_seen_before_the_database_is_asked(stranded: Client) -> None:
    assert_refused(stranded.post("/login", {"email": "ada@clinic.test"}), 422, "password")


def keys_of(app: Flask) -> dict[str, Any]:
    """Return the settings by which another application takes this one's tokens."""
    return {name: app.config[name] for name in ("SECRET_KEY", "JWT_SECRET_KEY", "AUDIT_KEY")}


@pytest.fixture
def make_clinic(tmp_path: Path) -> Iterator[MakeApp]:
    made: list[Flask] = []

    def make(**settings: Any) -> Flask:
        made.append(create_app({**USUAL, "INSTANCE_PATH": tmp_path / "instance", **settings}))
        return made[-1]

    yield make
    for app in made:
        engine_of(app).dispose()


@pytest.fixture
def ada(own_app: Flask) -> Client:
    sign_up(own_app, "Ada", "admin")
    return sign_in(own_app, "Ada")


def rename(app: Flask, old: str, new: str) -> None:
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_fault_of_ours_is_told_by_its_request_id_alone(
    ada: Client, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    rename(ada.app, "patients", "lost")
    with caplog.at_level(logging.ERROR):
        failed = ada.send(method, "/patients", PATIENT if method == "POST" else None)
    assert_refused(failed, 500)
    request_id = failed.headers["X-Request-ID"]
    assert request_id in failed.json["msg"]
    for trace in ("patients", "SELECT", "INSERT", "Error", "Traceback", ".py", "no such", "relation", "/"):
        assert trace not in failed.text.replace("application/json", "")
    assert request_id in caplog.text
    assert "patients" in caplog.text
    assert PATIENT["last_name"] not in caplog.text


def test_after_a_fault_of_ours_the_next_request_is_well(ada: Client) -> None:
    rename(ada.app, "patients", "lost")
    before = {**snapshot_without_patients(ada.app)}
    assert_refused(ada.post("/patients", PATIENT), 500)
    assert snapshot_without_patients(ada.app) == before
    rename(ada.app, "lost", "patients")
    assert ada.get("/patients").json == []
    assert make_patient(ada)["version"] == 1


def snapshot_without_patients(app: Flask) -> dict[str, list[object]]:
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        return {
            table: [tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY 1")]
            for table in ("users", "appointments", "reports", "images", "lost")
        }


def test_a_browser_may_read_a_fault_of_ours(ada: Client) -> None:
    rename(ada.app, "patients", "lost")
    failed = ada.get("/patients", headers={"Origin": "http://localhost:3000"})
    assert failed.status_code == 500
    assert failed.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert failed.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
def test_cut_connections_cost_no_request(ada: Client, empty_database: str) -> None:
    run_sql(
        empty_database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    with contextlib.closing(psycopg2.connect(empty_database)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        left = 2
        while left > 1:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
            [left] = cursor.fetchone()
    assert ada.post("/patients", PATIENT).status_code == 201
    assert len(ada.get("/patients").json) == 1


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
def test_a_connection_that_is_cut_between_two_reads_costs_that_request_alone(
    ada: Client, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_and_read(statement: Select[Any], values: Any) -> Any:
        monkeypatch.undo()
        connection = g.reading.connection.driver_connection
        run_sql(empty_database, f"SELECT pg_terminate_backend({connection.info.backend_pid}, 5000)")
        return read(statement, values)

    monkeypatch.setattr(collections, "read", cut_and_read)
    assert ada.get("/patients?limit=5").status_code == 503
    assert [ada.get("/patients?limit=5").status_code for _ in range(3)] == [200] * 3


# --- The log of an outage ---


@contextlib.contextmanager
def away(app: Flask, url: str, postgresql: str) -> Iterator[None]:
    """Take the database away for the time of the block."""
    engine_of(app).dispose()
    if url.startswith("sqlite"):
        file = Path(url.removeprefix("sqlite:///"))
        file.rename(file.with_suffix(".kept"))
        file.mkdir()
        yield
        file.rmdir()
        file.with_suffix(".kept").rename(file)
    else:
        name = parse_dsn(url)["dbname"]
        run_sql(postgresql, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        yield
        run_sql(postgresql, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def engine_of(app: Flask) -> Engine:
    with app.app_context():
        engine: Engine = app.extensions["sqlalchemy"].engine
    return engine


def failures(caplog: pytest.LogCaptureFixture) -> list[bool]:
    """Return for each logged failure of the database whether it has a traceback, and forget them."""
    found = [bool(record.exc_info) for record in caplog.records if "did not answer" in record.getMessage()]
    assert all("\n" not in record.getMessage() for record in caplog.records)
    caplog.clear()
    return found


def test_an_outage_has_one_traceback_in_the_log_and_a_line_for_each_other_failure(
    ada: Client, empty_database: str, postgresql: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ada.get("/patients").status_code == 200
    with away(ada.app, empty_database, postgresql):
        for ask in (lambda: ada.get("/patients"), lambda: ada.post("/patients", PATIENT), lambda: ada.get("/readyz")):
            assert_refused(ask(), 503)
        assert failures(caplog) == [True, False, False]
        monkeypatch.setattr(outage, "QUIET", 0)  # as if a minute had passed
        assert_refused(ada.get("/patients"), 503)
        assert failures(caplog) == [True]
        monkeypatch.undo()
        assert_refused(ada.get("/patients"), 503)
        assert failures(caplog) == [False]
    assert ada.get("/patients").status_code == 200
    assert "the database answers again" in caplog.text
    with away(ada.app, empty_database, postgresql):
        assert_refused(ada.get("/patients"), 503)
        assert failures(caplog) == [True]


def test_in_an_outage_no_request_waits_for_the_database_twice(
    ada: Client, empty_database: str, postgresql: str
) -> None:
    """Neither `/readyz` nor the requests after it look for the zone in a database that is away."""
    tries: list[object] = []
    event.listen(engine_of(ada.app), "do_connect", lambda *_: tries.append(_) and None)
    assert ada.get("/readyz").status_code == 200
    with away(ada.app, empty_database, postgresql):
        for path in ("/readyz", "/patients", "/readyz"):
            tries.clear()
            assert_refused(ada.get(path), 503)
            assert len(tries) == 1, path
    assert ada.get("/patients").status_code == 200


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
def test_statements_that_take_too_long_are_a_row_of_failures_too(
    ada: Client, empty_database: str, make_clinic: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    hurried = Client(make_clinic(DATABASE_URL=empty_database, STATEMENT_TIMEOUT=1, **keys_of(ada.app)), ada.token)
    with contextlib.closing(psycopg2.connect(empty_database)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE patients IN ACCESS EXCLUSIVE MODE")
        for _ in range(3):
            assert_refused(hurried.get("/patient/1"), 503)
    assert failures(caplog) == [True, False, False]


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
def test_a_command_may_take_longer_than_a_request(ada: Client, empty_database: str, make_clinic: MakeApp) -> None:
    hurried = make_clinic(DATABASE_URL=empty_database, STATEMENT_TIMEOUT=1, **keys_of(ada.app))
    line = run_cli(hurried, "audit", "verify", "--checkpoint")[1].splitlines()[-1]
    for command in ["audit", "verify", "--since", line], ["purge"]:
        with contextlib.closing(psycopg2.connect(empty_database)) as connection, connection.cursor() as cursor:
            cursor.execute("LOCK TABLE audit_entries, login_sessions IN ACCESS EXCLUSIVE MODE")
            unlock = threading.Timer(1.3, connection.rollback)
            unlock.start()
            assert run_cli(hurried, *command)[0] == 0
            assert not unlock.is_alive()  # the command did wait
            unlock.join()


# --- A database that can only be read ---


def only_readable(app: Flask, url: str, make_clinic: MakeApp) -> Flask:
    """Return the same clinic, whose database can only be read."""
    engine_of(app).dispose()
    if url.startswith("sqlite"):
        return make_clinic(
            DATABASE_URL=f"sqlite:///file:{url.removeprefix('sqlite:///')}?mode=ro&uri=true", **keys_of(app)
        )
    run_sql(url, f"ALTER DATABASE {parse_dsn(url)['dbname']} SET default_transaction_read_only = on")
    return app


def test_a_database_that_can_only_be_read_is_not_ready_and_serves_readers(
    ada: Client, empty_database: str, make_clinic: MakeApp
) -> None:
    patient = make_patient(ada)
    reader = Client(only_readable(ada.app, empty_database, make_clinic), ada.token)
    assert_refused(reader.get("/readyz"), 503)
    assert reader.get("/readyz").json["msg"].startswith("The database can only be read")
    assert reader.get("/patients").json == [patient]
    refused = reader.patch("/patient/1", {"first_name": "Zawadi"})
    assert_refused(refused, 503)
    assert refused.json["msg"].startswith("The database can only be read")


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)
def test_a_connection_to_a_server_that_became_a_standby_is_given_up(
    ada: Client, empty_database: str, postgresql: str
) -> None:
    name = parse_dsn(empty_database)["dbname"]
    run_sql(postgresql, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    engine_of(ada.app).dispose()
    assert_refused(ada.post("/patients", PATIENT), 503)
    run_sql(postgresql, f"ALTER DATABASE {name} SET default_transaction_read_only = off")
    assert ada.post("/patients", PATIENT).status_code == 201  # by a new connection: an old one keeps the old setting


@pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
def test_a_database_in_which_somebody_writes_is_ready(ada: Client) -> None:
    with engine_of(ada.app).begin() as connection:
        connection.exec_driver_sql("UPDATE users SET version = version")
        assert ada.get("/readyz").status_code == 200
