"""The keys of the record history: a wrong key writes nothing, and the key can be changed."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from client import Client, assert_refused, migrate, run_cli
from factories import AUDIT_KEY, USUAL, make_patient, sign_in, sign_up
from flask import Flask
from sql import sql

import cli
from app import create_app
from clinic.history import rotation

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
        if command.name not in ("audit", "images", "timezone"):  # they only read, or look at the key when they write
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


ZONE_IS_SAID = "INSERT INTO clinic (id, timezone) VALUES (1, 'UTC')"


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
    sql(landed, ZONE_IS_SAID)
    sign_up(landed, "Ada", "admin")
    sign_in(landed, "Ada").patch("/patient/1", {"diagnosis": "Measles"})
    assert {row[2:] for row in history(landed)} == {(1, 1), (2, 1)}
    assert run_cli(landed, "audit", "verify", "--head", line) == WHOLE
    earlier = f"2-{hashlib.sha256(macs).hexdigest()}"  # as the earlier release prints it
    assert line.startswith(f"{earlier}-2-")
    assert run_cli(landed, "audit", "verify", "--head", earlier) == WHOLE
    assert run_cli(landed, "audit", "head", "--kept", earlier)[0] == 0


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
    sql(landed, ZONE_IS_SAID)
    sign_up(landed, "Ada", "admin")
    write_as_landed(landed, 3, "change")
    sign_in(landed, "Ada").patch("/patient/1", {"diagnosis": "Measles"})
    write_as_landed(landed, 5, "change")
    assert run_cli(landed, "audit", "verify") == WHOLE


# --- Changing the key ---


@pytest.fixture
def lived(own_app: Flask) -> Flask:
    sign_up(own_app, "Ada", "admin")
    make_patient(sign_in(own_app, "Ada"))
    return own_app


@pytest.fixture
def rotated(lived: Flask) -> Iterator[Flask]:
    """The clinic with a new key, which has written an entry about patient 1."""
    with with_settings(lived, AUDIT_KEY=NEW, AUDIT_KEY_PREVIOUS=[AUDIT_KEY]) as app:
        printed(app, "audit", "rotate")
        sign_in(app, "Ada").patch("/patient/1", {"diagnosis": "Measles"})
        assert run_cli(app, "audit", "verify") == WHOLE
        yield app


def test_a_new_key_writes_new_entries_and_leaves_the_old_ones(lived: Flask) -> None:
    old, line = history(lived), printed(lived, "audit", "head").strip()
    with with_settings(lived, AUDIT_KEY=NEW, AUDIT_KEY_PREVIOUS=[AUDIT_KEY]) as app:
        assert "key number 2" in printed(app, "audit", "rotate")
        sign_in(app, "Ada").patch("/patient/1", {"diagnosis": "Measles"})
        assert history(app)[: len(old)] == old
        assert {key for *_, key in history(app)[len(old) :]} == {2}
        assert run_cli(app, "audit", "verify", "--head", line) == WHOLE


def test_a_key_is_changed_again(rotated: Flask) -> None:
    with with_settings(rotated, AUDIT_KEY=LATER, AUDIT_KEY_PREVIOUS=[AUDIT_KEY, NEW]) as app:
        printed(app, "audit", "rotate")
        sign_in(app, "Ada").patch("/patient/1", {"diagnosis": "Nothing"})
        assert run_cli(app, "audit", "verify") == WHOLE
        assert sorted({key for *_, key in history(app)}) == [1, 2, 3]


def test_a_server_with_the_old_key_writes_nothing_more(lived: Flask) -> None:
    ada = sign_in(lived, "Ada")
    with with_settings(lived, AUDIT_KEY=NEW, AUDIT_KEY_PREVIOUS=[AUDIT_KEY]) as app:
        printed(app, "audit", "rotate")
    before = history(lived)
    assert_refused(ada.patch("/patient/1", {"diagnosis": "Measles"}), 503)
    assert ada.get("/patient/1").json["diagnosis"] == ""
    assert history(lived) == before


@pytest.mark.parametrize(
    ("key", "previous", "says"),
    [
        (NEW, [AUDIT_KEY], "Run `flask audit rotate` to change to it"),
        (AUDIT_KEY, [NEW], ""),
        (NEW, [], IS_WRONG),
        (NEW, [WRONG], IS_WRONG),
    ],
)
def test_before_the_change_only_the_key_in_use_serves(lived: Flask, key: str, previous: list[str], says: str) -> None:
    with with_settings(lived, AUDIT_KEY=key, AUDIT_KEY_PREVIOUS=previous) as app:
        assert says in run_cli(app, "audit", "check-key")[1]
        assert Client(app).get("/readyz").status_code == (503 if says else 200)
        assert (run_cli(app, "audit", "verify") == WHOLE) is not bool(says)


@pytest.mark.parametrize(
    ("key", "previous", "says"),
    [
        (AUDIT_KEY, [], "AUDIT_KEY is an earlier key of the record history."),
        (AUDIT_KEY, [NEW], "AUDIT_KEY is an earlier key of the record history."),
        (NEW, [], "AUDIT_KEY_PREVIOUS lacks key number 1"),
        (NEW, [WRONG], "AUDIT_KEY_PREVIOUS lacks key number 1"),
        (WRONG, [NEW, AUDIT_KEY], "AUDIT_KEY is a new key"),
    ],
)
def test_after_the_change_verify_says_which_key_is_wrong(
    rotated: Flask, key: str, previous: list[str], says: str
) -> None:
    with with_settings(rotated, AUDIT_KEY=key, AUDIT_KEY_PREVIOUS=previous) as app:
        code, said = run_cli(app, "audit", "verify")
        assert (code, said.endswith("Nothing was verified.\n")) == (1, True)
        assert says in said


@pytest.mark.parametrize(
    ("key", "previous", "says"),
    [
        (NEW, [AUDIT_KEY], "AUDIT_KEY has been a key of this history already."),
        (LATER, [AUDIT_KEY], IS_WRONG),
        (LATER, [NEW], "AUDIT_KEY_PREVIOUS lacks key number 1"),
        (AUDIT_KEY, [NEW], "AUDIT_KEY has been a key of this history already."),
    ],
)
def test_a_change_of_key_takes_a_new_key_and_all_earlier_ones(
    rotated: Flask, key: str, previous: list[str], says: str
) -> None:
    with with_settings(rotated, AUDIT_KEY=key, AUDIT_KEY_PREVIOUS=previous) as app:
        code, said = run_cli(app, "audit", "rotate")
        assert (code, says in said) == (1, True), said
    assert run_cli(rotated, "audit", "verify") == WHOLE


def test_a_history_that_is_not_whole_keeps_its_key(lived: Flask) -> None:
    sql(lived, "UPDATE patients SET version = 2")
    with with_settings(lived, AUDIT_KEY=NEW, AUDIT_KEY_PREVIOUS=[AUDIT_KEY]) as app:
        code, said = run_cli(app, "audit", "rotate")
        assert (code, "patient 1: it is at version 2" in said) == (1, True)
    sql(lived, "UPDATE patients SET version = 1")
    assert run_cli(lived, "audit", "verify") == WHOLE


def test_whoever_has_the_old_key_cannot_rewrite_old_entries(rotated: Flask) -> None:
    names = "id, kind, record_id, seq, at, actor_id, action, version, request_id, digest, spelling, key_number"
    [covered] = map(list, sql(rotated, f"SELECT {names} FROM audit_entries WHERE kind = 'user'"))
    covered[4], covered[8] = str(covered[4])[:26], "forged"
    mac = spelled(AUDIT_KEY, "", *covered)
    sql(rotated, f"UPDATE audit_entries SET request_id = 'forged', mac = '{mac}' WHERE kind = 'user'")
    head = spelled(AUDIT_KEY, "head", "user", 1, 1, mac)
    sql(rotated, f"UPDATE audit_heads SET entry_mac = '{mac}', mac = '{head}' WHERE kind = 'user'")
    code, said = run_cli(rotated, "audit", "verify")
    assert code == 1
    assert "are not those that key number 2 sealed" in said


def test_whoever_has_the_old_key_cannot_add_entries(rotated: Flask) -> None:
    write_as_landed(rotated, 3, "change")
    assert "patient 1: entry 3 was changed, or put in." in run_cli(rotated, "audit", "verify")[1]


@pytest.mark.parametrize("change", ["spelling = 1", "spelling = 3", "key_number = 1", "key_number = 3"])
def test_an_entry_says_neither_another_spelling_nor_another_key(rotated: Flask, change: str) -> None:
    sql(rotated, f"UPDATE audit_entries SET {change} WHERE kind = 'patient' AND seq = 2")
    assert "patient 1: entry 2 was changed, or put in." in run_cli(rotated, "audit", "verify")[1]


# --- Nobody waits for it ---


@pytest.mark.parametrize("empty_database", ["postgresql"], indirect=True)  # SQLite has no such lock
def test_beside_a_vacuum_a_change_of_key_gives_up_and_nobody_waits_long(
    lived: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "TRIES", 2)
    ada, waits = sign_in(lived, "Ada"), []
    with (
        with_settings(lived, AUDIT_KEY=NEW, AUDIT_KEY_PREVIOUS=[AUDIT_KEY]) as app,
        ThreadPoolExecutor(1) as apart,
        lived.app_context(),
        lived.extensions["sqlalchemy"].engine.begin() as vacuum,
    ):
        vacuum.exec_driver_sql("LOCK TABLE audit_entries IN SHARE UPDATE EXCLUSIVE MODE")
        command = apart.submit(run_cli, app, "audit", "rotate")
        while not command.done():
            began = time.monotonic()
            assert ada.patch("/patient/1", {"diagnosis": f"Malaria {began}"}).status_code == 200
            waits.append(time.monotonic() - began)
        assert command.result() == (
            1,
            "Error: The table audit_entries is locked, by a VACUUM perhaps. Run this again later. "
            "The key was not changed.\n",
        )
    assert max(waits) < 3
