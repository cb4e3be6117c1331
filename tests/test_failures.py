"""When something of ours breaks: the database is away, its schema is broken, a connection is cut."""

import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
from client import Client, assert_refused, migrate
from factories import USUAL, make_patient, sign_in, sign_up
from flask import Flask
from flask_jwt_extended import create_access_token

from app import create_app
from testing.postgresql import run_sql

PATIENT = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712 345 678"}
NOBODY = "postgresql://ward:a-secret@127.0.0.1:1/clinic"  # a port on which nothing listens


@pytest.fixture(params=[NOBODY, "sqlite:////nowhere/at/all/hosi.db"], ids=["postgresql", "sqlite"])
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
    for secret in ("a-secret", "127.0.0.1", "nowhere", "sqlite", "psycopg", "ward"):
        assert secret not in refused.text


def test_the_process_lives_while_the_database_is_away(stranded: Client) -> None:
    assert stranded.get("/healthz").json == {"status": "ok"}


def test_bad_input_is_seen_before_the_database_is_asked(stranded: Client) -> None:
    assert_refused(stranded.post("/login", {"email": "ada@clinic.test"}), 422, "password")


@pytest.fixture
def ada(bare_app: Flask) -> Client:
    migrate(bare_app, "upgrade")
    sign_up(bare_app, "Ada", "admin")
    return sign_in(bare_app, "Ada")


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


def test_who_reads_nothing_of_an_answer_keeps_no_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLASK_ENV", "development")
    monkeypatch.setenv("INSTANCE_PATH", str(tmp_path))
    conf: dict[str, Any] = {}
    exec((Path(__file__).parent.parent / "gunicorn.conf.py").read_text(), conf)  # as gunicorn does
    conf["UNREAD"] = 1
    with socket.create_server(("127.0.0.1", 0)) as listener:
        conf["when_ready"](SimpleNamespace(LISTENERS=[SimpleNamespace(sock=listener)]))
        with (
            socket.create_connection(listener.getsockname()),
            listener.accept()[0] as served,
            pytest.raises(BlockingIOError),
        ):
            served.sendall(bytes(50_000_000))
