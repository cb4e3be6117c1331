"""The keys of the record history: a wrong one writes nothing, and a key can be changed."""

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from client import Client, assert_refused, migrate, run_cli
from factories import AUDIT_KEY, USUAL, sign_in, sign_up
from flask import Flask
from sql import sql

import cli
from app import create_app

WHOLE = (0, "The history is whole.\n")
WRONG = "a wrong key of thirty-two bytes and more"
NEW = "the next key of thirty-two bytes and more"
LATER = "a third key of thirty-two bytes and more"
IS_WRONG = "AUDIT_KEY is not the key that the record history in this database was written with."


def history(app: Flask) -> list[Any]:
    return [tuple(row) for row in sql(app, "SELECT id, mac, spelling, key_number FROM audit_entries ORDER BY id")]


def printed(app: Flask, *arguments: str) -> str:
    code, output = run_cli(app, *arguments)
    assert code == 0, output
    return output


# --- A wrong key ---


def test_the_database_keeps_a_check_value_and_not_the_key(app: Flask, admin: Client) -> None:
    [[kept]] = sql(app, "SELECT audit_keys FROM clinic")
    check = hmac.digest(AUDIT_KEY.encode(), b'["key"]', "sha256").hex()
    assert json.loads(kept) == [[check, 0, ""]]


def test_with_a_wrong_key_a_first_request_is_503_and_writes_nothing(
    app: Flask, admin: Client, make_app: Callable[..., Flask]
) -> None:
    before = history(app)
    for method, path in (("POST", "/login"), ("POST", "/patients"), ("GET", "/patients"), ("GET", "/readyz")):
        wrong = make_app(AUDIT_KEY=WRONG)
        refused = Client(wrong, admin.token).send(method, path, {} if method == "POST" else None)
        assert_refused(refused, 503)
        assert IS_WRONG in refused.json["msg"]
        assert Client(wrong).get("/healthz").status_code == 200
    assert history(app) == before


def test_with_a_wrong_key_every_writing_command_stops_with_a_sentence(
    app: Flask, admin: Client, make_app: Callable[..., Flask]
) -> None:
    before, wrong = history(app), make_app(AUDIT_KEY=WRONG)
    arguments = {
        "create-admin": ["--email=a@b.test", "--first-name=A", "--last-name=B", "--password=correct horse battery"],
        "reset-link": ["ada@clinic.test"],
    }
    for command in cli.COMMANDS:
        if command.name != "audit":
            code, said = run_cli(wrong, str(command.name), *arguments.get(str(command.name), []))
            assert (code, said.startswith(IS_WRONG)) == (1, True), (command.name, said)
    assert history(app) == before


def test_the_key_can_be_compared_by_a_command(app: Flask, admin: Client, make_app: Callable[..., Flask]) -> None:
    assert run_cli(app, "audit", "check-key") == (0, "")
    code, said = run_cli(make_app(AUDIT_KEY=WRONG), "audit", "check-key")
    assert (code, said.startswith(IS_WRONG)) == (1, True)


def test_of_two_first_keys_one_is_right(app: Flask, make_app: Callable[..., Flask]) -> None:
    other = make_app(AUDIT_KEY=WRONG, JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"])
    for one in (app, other):  # neither has been compared with anything yet
        assert Client(one).get("/readyz").status_code == 200
    sign_up(app, "Ada", "admin")
    body = {"first_name": "Otto", "last_name": "Otieno", "email": "otto@clinic.test", "password": "correct horse"}
    assert_refused(Client(other).post("/signup", body), 503)
    assert run_cli(app, "audit", "verify") == WHOLE


def test_check_values_that_are_no_check_values_are_said_to_be_changed(app: Flask, admin: Client) -> None:
    for value in ("", "{}", "[]", "[1]", "[[1]]", "9"):
        sql(app, "UPDATE clinic SET audit_keys = :value", value=value)
        assert "table clinic were changed by hand" in run_cli(app, "audit", "verify")[1], value


@pytest.mark.parametrize("empty_database", ["sqlite"], indirect=True)
def test_a_database_without_its_schema_has_no_wrong_key(bare_app: Flask) -> None:
    assert run_cli(bare_app, "audit", "check-key") == (0, "")
    assert Client(bare_app).get("/").status_code == 200


def test_a_database_that_is_away_has_no_wrong_key(tmp_path: Path) -> None:
    """A server starts beside a database that does not, and compares the key at its first request."""
    away = create_app({**USUAL, "DATABASE_URL": "postgresql://127.0.0.1:1/none", "INSTANCE_PATH": tmp_path})
    assert run_cli(away, "audit", "check-key") == (0, "")
    assert_refused(Client(away).get("/readyz"), 503)


# --- A database of an earlier release ---


def spelled(key: str, *parts: Any) -> str:
    return hmac.digest(key.encode(), json.dumps(parts).encode(), "sha256").hex()


def write_as_landed(app: Flask, seq: int = 1, action: str = "create") -> None:
    """Patient 1 and an entry about it, written as the release before keys had numbers writes them."""
    at, changes = "2026-03-01 10:00:00.000000", '{"diagnosis":[null,"Malaria"]}'
    last = [tuple(row) for row in sql(app, f"SELECT mac FROM audit_entries WHERE kind = 'patient' AND seq = {seq - 1}")]
    entry_id = (sql(app, "SELECT max(id) FROM audit_entries")[0][0] or 0) + 1
    digest = spelled(AUDIT_KEY, "changes", "patient", 1, changes)
    before = last[0][0] if last else ""
    mac = spelled(AUDIT_KEY, before, entry_id, "patient", 1, seq, at, None, action, seq, None, digest)
    head = spelled(AUDIT_KEY, "head", "patient", 1, seq, mac)
    utc = "" if app.config["DATABASE_URL"].startswith("sqlite") else "+00"
    if seq == 1:
        sql(
            app,
            "INSERT INTO patients (id, mrn, first_name, last_name, phone_number, status, doctor_summary, diagnosis, "
            f"created_at, updated_at, version) VALUES (1, '1', 'A', 'W', '0712', 'admitted', '', '', '{at}{utc}', "
            f"'{at}{utc}', 1)",
        )
        sql(app, "INSERT INTO audit_heads (kind, record_id, seq, entry_mac, mac) VALUES ('patient', 1, 0, '', '')")
    sql(app, f"UPDATE patients SET version = {seq}")
    sql(
        app,
        "INSERT INTO audit_entries (id, kind, record_id, seq, at, action, version, changes, digest, mac) "
        f"VALUES ({entry_id}, 'patient', 1, {seq}, '{at}{utc}', '{action}', {seq}, :changes, '{digest}', '{mac}')",
        changes=changes,
    )
    sql(app, f"UPDATE audit_heads SET seq = {seq}, entry_mac = '{mac}', mac = '{head}' WHERE kind = 'patient'")
    if utc:
        sql(app, f"SELECT setval('audit_entries_id_seq', {entry_id}), setval('patients_id_seq', 1)")


@pytest.fixture
def landed(bare_app: Flask) -> Flask:
    """A database with a patient and two entries, upgraded from the schema of the earlier release."""
    migrate(bare_app, "upgrade", "0008")
    write_as_landed(bare_app)
    write_as_landed(bare_app, 2, "change")
    migrate(bare_app, "upgrade")
    return bare_app


@contextmanager
def with_settings(app: Flask, **settings: Any) -> Iterator[Flask]:
    """The same clinic with other settings."""
    same = {name: app.config[name] for name in ("DATABASE_URL", "INSTANCE_PATH", "JWT_SECRET_KEY", "SECRET_KEY")}
    other = create_app({**USUAL, **same, **settings})
    yield other
    with other.app_context():
        other.extensions["sqlalchemy"].engine.dispose()


def test_a_history_of_an_earlier_release_is_whole_and_grows(landed: Flask) -> None:
    assert run_cli(landed, "audit", "verify") == WHOLE
    macs = "".join(f"{row[0]}:{row[1]}\n" for row in history(landed)).encode()
    line = printed(landed, "audit", "head").strip()
    sign_up(landed, "Ada", "admin")
    sign_in(landed, "Ada").patch("/patient/1", {"diagnosis": "Measles"})
    assert {row[2:] for row in history(landed)} == {(1, 1), (2, 1)}
    assert run_cli(landed, "audit", "verify", "--head", line) == WHOLE
    assert line == f"2-{hashlib.sha256(macs).hexdigest()}"


def test_the_right_key_for_an_earlier_releases_history_is_that_of_its_oldest_entry(landed: Flask) -> None:
    with with_settings(landed, AUDIT_KEY=WRONG) as wrong:
        assert run_cli(wrong, "seed")[1].startswith(IS_WRONG)
        assert IS_WRONG in run_cli(wrong, "audit", "verify")[1]
        body = {"first_name": "A", "last_name": "B", "email": "ada@clinic.test", "password": "correct horse battery"}
        assert_refused(Client(wrong).post("/signup", body), 503)
    assert len(history(landed)) == 2
    assert sql(landed, "SELECT * FROM clinic") == []


def test_a_server_that_was_there_before_the_first_entry_still_writes_nothing_with_a_wrong_key(bare_app: Flask) -> None:
    migrate(bare_app, "upgrade")
    body = {"first_name": "A", "last_name": "B", "email": "ada@clinic.test", "password": "correct horse battery"}
    with with_settings(bare_app, AUDIT_KEY=WRONG) as wrong:
        assert Client(wrong).get("/readyz").status_code == 200
        write_as_landed(bare_app)
        assert_refused(Client(wrong).post("/signup", body), 503)
    assert len(history(bare_app)) == 1


def test_an_earlier_release_goes_on_writing_beside_this_one(landed: Flask) -> None:
    sign_up(landed, "Ada", "admin")
    write_as_landed(landed, 3, "change")
    sign_in(landed, "Ada").patch("/patient/1", {"diagnosis": "Measles"})
    write_as_landed(landed, 5, "change")
    assert run_cli(landed, "audit", "verify") == WHOLE
