"""`flask audit verify` finds history that was changed, removed or put in by hand."""

import hmac
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from client import WHOLE, Client, run_cli, verify
from factories import make_appointment, make_patient, make_report, sign_in
from flask import Flask
from sql import sql
from sqlalchemy import insert, select
from sqlalchemy.exc import OperationalError

from clinic.history import chain, heads, verification
from models import AuditEntry, AuditHead, Patient
from server.database import db


@pytest.fixture
def lived(app: Flask, admin: Client, doctor: Client) -> Flask:
    """An application with a little history: patient 1 has three entries, report 1 two."""
    patient = make_patient(doctor)["id"]
    for diagnosis in ("Malaria", "Malaria, cured"):
        doctor.patch(f"/patient/{patient}", {"diagnosis": diagnosis})
    report = make_report(doctor, patient)
    doctor.patch(f"/reports/{report['id']}", {"diagnosis": "Fracture"})
    make_appointment(doctor, patient)
    assert verify(app) == WHOLE[1]
    return app


def rows(app: Flask, table: Any, *where: Any) -> list[dict[str, Any]]:
    with app.app_context(), app.extensions["sqlalchemy"].engine.connect() as connection:
        return [dict(row) for row in connection.execute(select(table.__table__).where(*where)).mappings()]


def put(app: Flask, table: Any, *new: dict[str, Any]) -> None:
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        connection.execute(insert(table.__table__), list(new))


@contextmanager
def tampered(app: Flask, statement: str) -> Iterator[None]:
    """With this done to the history, and undone afterwards."""
    kept = [(table, rows(app, table)) for table in (AuditEntry, AuditHead)]
    sql(app, statement)
    yield
    for table, right in kept:
        sql(app, f"DELETE FROM {table.__tablename__}")
        put(app, table, *right)


ENTRY = "kind = 'patient' AND record_id = 1 AND seq = 2"


def test_a_changed_column_of_an_entry_is_found(lived: Flask) -> None:
    for change in (
        "id = id + 1000",
        "kind = 'another'",
        "record_id = 7",
        "seq = 9",
        "at = '2030-01-01 00:00:00.000000'",
        "actor_id = 1",
        "actor_id = NULL",
        "action = 'archive'",
        "version = 3",
        "version = NULL",
        "request_id = 'another'",
        "changes = replace(changes, 'Malaria', 'Measles')",
        "changes = NULL",
        "digest = mac",
        "mac = digest",
    ):
        with tampered(lived, f"UPDATE audit_entries SET {change} WHERE {ENTRY}"):
            assert "patient 1: " in verify(lived), change
    assert verify(lived) == WHOLE[1]


def test_a_changed_column_of_a_head_is_found(lived: Flask) -> None:
    for change in ("kind = 'another'", "record_id = 7", "seq = 2", "entry_mac = mac", "mac = entry_mac"):
        with tampered(lived, f"UPDATE audit_heads SET {change} WHERE kind = 'patient' AND record_id = 1"):
            assert "patient 1: " in verify(lived), change


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "value", ["'é'", "x'ff'", "-1.5", "CAST(x'ff' AS TEXT)"], ids=["text", "bytes", "number", "no UTF-8"]
)
def test_sqlite_takes_any_value_in_any_column_and_it_is_found(lived: Flask, value: str) -> None:
    sql(lived, "UPDATE reports SET version = 7")  # a fault elsewhere, not to be hidden
    places = {AuditEntry: ENTRY, AuditHead: "kind = 'patient' AND record_id = 1"}
    for table, where in places.items():
        for column in {column.name for column in table.__table__.columns} - {"id"}:
            with tampered(lived, f"UPDATE {table.__tablename__} SET {column} = {value} WHERE {where}"):
                said = verify(lived)
            assert "patient 1: " in said, (table, column)
            assert "report 1: it is at version 7, its history at 2." in said, (table, column)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_history_of_a_kind_that_is_no_text_is_told(lived: Flask) -> None:
    entry = rows(lived, AuditEntry, AuditEntry.kind == "patient", AuditEntry.seq == 3)[0]
    put(lived, AuditEntry, {**entry, "id": entry["id"] + 1000, "seq": 4})
    sql(lived, "UPDATE audit_entries SET kind = CAST(x'ff' AS TEXT) WHERE seq = 4")
    assert verify(lived) == "There is history of a kind that is none: '\\udcff'.\nError: 1 found.\n"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_version_that_is_no_text_is_found_and_printed(lived: Flask) -> None:
    sql(lived, "UPDATE patients SET version = CAST(x'1bff' AS TEXT)")
    assert r"patient 1: it is at version '\x1b\udcff', its history at 3." in verify(lived)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_head_is_still_told_of_a_history_with_what_is_no_text(lived: Flask) -> None:
    head = run_cli(lived, "audit", "head")[1].strip()
    with tampered(lived, f"UPDATE audit_entries SET mac = CAST(x'ff' AS TEXT) WHERE {ENTRY}"):
        assert run_cli(lived, "audit", "head")[1].strip() != head
        assert "an older copy of it was put back" in verify(lived, "--head", head)
    assert verify(lived, "--head", head) == WHOLE[1]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_after_the_verifying_what_is_no_text_is_read_for_none_again(lived: Flask) -> None:
    assert verify(lived) == WHOLE[1]
    with pytest.raises(OperationalError):
        sql(lived, "SELECT CAST(x'ff' AS TEXT)")


def test_the_macs_are_spelled_as_ever(app: Flask, doctor: Client) -> None:
    """Else all history that an earlier version wrote would be accused."""
    make_patient(doctor)
    columns = "id, kind, record_id, seq, at, actor_id, action, version, request_id, digest, spelling, key_number"
    [[*covered, changes, mac]] = sql(app, f"SELECT {columns}, changes, mac FROM audit_entries WHERE kind = 'patient'")
    covered[4] = str(covered[4])[:26]  # on PostgreSQL a time, in UTC

    def spelled(*parts: Any) -> str:
        return hmac.digest(app.config["AUDIT_KEY"].encode(), json.dumps(parts).encode(), "sha256").hex()

    assert covered[9:] == [spelled("changes", "patient", 1, changes), 2, 1]
    assert mac == spelled("", *covered)
    [[head]] = sql(app, "SELECT mac FROM audit_heads WHERE kind = 'patient'")
    assert head == spelled("head", "patient", 1, 1, mac)


def test_an_entry_that_is_taken_out_is_found(lived: Flask) -> None:
    for seq in (1, 2, 3):
        with tampered(lived, f"DELETE FROM audit_entries WHERE kind = 'patient' AND seq = {seq}"):
            assert "patient 1: " in verify(lived), seq


def test_two_entries_that_change_places_are_found(lived: Flask) -> None:
    for before, after in ((2, 9), (3, 2), (9, 3)):
        sql(lived, f"UPDATE audit_entries SET seq = {after} WHERE kind = 'patient' AND seq = {before}")
    assert "patient 1: entry 2 was changed, or put in." in verify(lived)


def test_a_tail_that_is_cut_off_is_found(lived: Flask) -> None:
    sql(lived, "DELETE FROM audit_entries WHERE kind = 'patient' AND seq > 1")
    assert "patient 1: it ends at entry 1 where 3 were written." in verify(lived)


def test_a_tail_that_is_cut_off_is_found_though_an_older_head_is_put_back(lived: Flask, doctor: Client) -> None:
    older = rows(lived, AuditHead, AuditHead.kind == "patient")
    doctor.patch("/patient/1", {"diagnosis": "Nothing at all"})
    sql(lived, "DELETE FROM audit_entries WHERE kind = 'patient' AND seq = 4")
    sql(lived, "DELETE FROM audit_heads WHERE kind = 'patient'")
    put(lived, AuditHead, *older)
    assert "patient 1: it is at version 4, its history at 3." in verify(lived)


def test_sign_ins_that_are_cut_off_are_found_though_an_older_head_is_put_back(lived: Flask) -> None:
    older = {head["record_id"]: head for head in rows(lived, AuditHead, AuditHead.kind == "sign-in")}
    sign_in(lived, "Dora")
    newer = {head["record_id"]: head["seq"] for head in rows(lived, AuditHead, AuditHead.kind == "sign-in")}
    [(chain, before)] = [(chain, head["seq"]) for chain, head in older.items() if head["seq"] != newer[chain]]
    sql(lived, f"DELETE FROM audit_entries WHERE kind = 'sign-in' AND record_id = {chain} AND seq > {before}")
    sql(lived, "DELETE FROM audit_heads WHERE kind = 'sign-in'")
    put(lived, AuditHead, *older.values())
    assert verify(lived) == "sign-ins: its newest entries were removed.\nError: 1 found.\n"


def test_a_whole_history_that_is_taken_out_is_found(lived: Flask) -> None:
    for kind in ("user", "patient", "appointment", "report", "image", "sign-in"):
        heads = rows(lived, AuditHead, AuditHead.kind == kind)
        sql(lived, f"DELETE FROM audit_heads WHERE kind = '{kind}'")
        with tampered(lived, f"DELETE FROM audit_entries WHERE kind = '{kind}'"):
            assert f"{'sign-ins' if kind == 'sign-in' else f'{kind} 1'}: its history was removed." in verify(lived)
        put(lived, AuditHead, *heads)


def test_a_history_that_is_begun_anew_is_found(lived: Flask, doctor: Client) -> None:
    for table in ("audit_entries", "audit_heads"):
        sql(lived, f"DELETE FROM {table} WHERE kind = 'patient'")
    doctor.patch("/patient/1", {"diagnosis": "Something else"})
    assert "patient 1: its history was removed, and begun anew." in verify(lived)


@pytest.mark.parametrize("kind", ["patient", "sign-in", "unheard-of"])
def test_a_forged_entry_is_found(lived: Flask, kind: str) -> None:
    entry = rows(lived, AuditEntry, AuditEntry.kind == "patient", AuditEntry.seq == 3)[0]
    forged = {**entry, "id": entry["id"] + 1000, "seq": 4, "version": 4}
    if kind != "patient":
        forged |= {"kind": kind, "record_id": 0, "seq": 1000}
    put(lived, AuditEntry, forged)
    assert {"patient": "patient 1: ", "sign-in": "sign-ins: "}.get(kind, "unheard-of 0: ") in verify(lived)


@pytest.mark.parametrize("kind", ["patient", "sign-in"])
def test_values_that_are_blanked_by_no_purge_are_found(lived: Flask, kind: str) -> None:
    sign_in(lived, "Dora")
    sql(lived, f"UPDATE audit_entries SET changes = NULL WHERE kind = '{kind}' AND seq = 1 AND record_id > 0")
    name = "sign-ins" if kind == "sign-in" else f"{kind} 1"
    assert f"{name}: values were removed from its history, but by no purge." in verify(lived)


def test_a_record_that_is_erased_by_no_purge_is_found(lived: Flask) -> None:
    sql(lived, "DELETE FROM appointments")
    assert "appointment 1: the record was removed, but by no purge." in verify(lived)


def test_a_record_whose_version_is_changed_is_found(lived: Flask) -> None:
    sql(lived, "UPDATE patients SET version = 2")
    assert "patient 1: it is at version 2, its history at 3." in verify(lived)


@pytest.fixture
def erased(lived: Flask, admin: Client) -> dict[type[Any], list[dict[str, Any]]]:
    """The row and the history of patient 1 as they were before a purge."""
    admin.delete("/patient/1")
    was = {Patient: rows(lived, Patient), AuditEntry: rows(lived, AuditEntry, AuditEntry.kind == "patient")}
    run_cli(lived, "purge", "--older-than", "0h")
    assert rows(lived, Patient) == []
    assert verify(lived) == WHOLE[1]
    return was


def test_a_purged_record_that_is_put_back_is_found(lived: Flask, erased: dict[type[Any], list[dict[str, Any]]]) -> None:
    put(lived, Patient, *erased[Patient])
    assert "patient 1: it is there though its history says that it was purged." in verify(lived)


def test_values_that_are_put_back_into_a_purged_history_are_found(
    lived: Flask, erased: dict[type[Any], list[dict[str, Any]]]
) -> None:
    entry = erased[AuditEntry][1]
    sql(lived, "UPDATE audit_entries SET changes = :changes WHERE id = :id", changes=entry["changes"], id=entry["id"])
    assert "patient 1: values are in its history though it was purged." in verify(lived)


def test_with_another_key_no_record_is_accused(lived: Flask, make_app: Callable[..., Flask]) -> None:
    said = verify(make_app(AUDIT_KEY="another key of thirty-two bytes and more"))
    assert said.startswith("Error: AUDIT_KEY is not the key that the record history in this database was written with.")
    assert "patient 1" not in said


def test_a_database_put_back_to_yesterdays_copy_is_found_by_the_head_kept_elsewhere(
    lived: Flask, doctor: Client
) -> None:
    tables = ("patients", "audit_entries", "audit_heads")
    yesterday = {name: sql(lived, f"SELECT * FROM {name}") for name in tables}
    doctor.patch("/patient/1", {"diagnosis": "A mistake of ours"})
    head = run_cli(lived, "audit", "head")[1].strip()
    assert verify(lived, "--head", head) == WHOLE[1]
    sql(lived, "DELETE FROM audit_entries WHERE kind = 'patient' AND seq = 4")
    sql(lived, "UPDATE patients SET version = 3, diagnosis = 'Malaria, cured'")
    old = next(row._mapping for row in yesterday["audit_heads"] if row.kind == "patient")
    sql(
        lived,
        "UPDATE audit_heads SET seq = :seq, entry_mac = :entry_mac, mac = :mac WHERE kind = 'patient'",
        **{name: old[name] for name in ("seq", "entry_mac", "mac")},
    )
    assert verify(lived) == WHOLE[1]
    assert "an older copy of it was put back" in verify(lived, "--head", head)


def test_a_head_kept_elsewhere_still_holds_when_the_history_has_grown(lived: Flask, doctor: Client) -> None:
    head = run_cli(lived, "audit", "head")[1].strip()
    doctor.patch("/patient/1", {"diagnosis": "Something else"})
    assert verify(lived, "--head", head) == WHOLE[1]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_head_waits_for_whoever_has_an_id_but_has_not_written_it_yet(lived: Flask, doctor: Client) -> None:
    """Ids are drawn in one order and committed in another; a head of entries still to come would be a false alarm."""
    with lived.app_context(), ThreadPoolExecutor(1) as apart:
        with db.engine.begin() as writer:
            chain.draw_ids(writer, 1)
            assert doctor.patch("/patient/1", {"diagnosis": "Written meanwhile"}).status_code == 200
            head = apart.submit(run_cli, lived, "audit", "head")
            with pytest.raises(TimeoutError):
                head.result(0.5)
        assert verify(lived, "--head", head.result(10)[1].strip()) == WHOLE[1]


@pytest.mark.parametrize("head", ["", "yesterday", "12", "12-ab", "99999999999999999999-" + "0" * 64])
def test_what_is_no_head_is_said_to_be_none(lived: Flask, head: str) -> None:
    assert "is no head" in verify(lived, "--head", head)


def test_verifying_keeps_nobody_from_writing(lived: Flask, doctor: Client) -> None:
    with lived.app_context(), verification.snapshot() as connection:
        before = connection.scalar(select(AuditEntry.id).order_by(AuditEntry.id.desc()).limit(1))
        assert doctor.patch("/patient/1", {"diagnosis": "Written meanwhile"}).status_code == 200
        assert connection.scalar(select(AuditEntry.id).order_by(AuditEntry.id.desc()).limit(1)) == before


@pytest.fixture
def vacuum(lived: Flask) -> Iterator[None]:
    """A lock as a VACUUM of the history holds it. SQLite has no such lock."""
    with lived.app_context(), lived.extensions["sqlalchemy"].engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE audit_entries IN SHARE UPDATE EXCLUSIVE MODE")
        yield


def slowest_write_during(app: Flask, doctor: Client, *arguments: str) -> tuple[float, tuple[int, str]]:
    """The seconds that the slowest write takes while a command runs, and what the command says."""
    slowest = 0.0
    with ThreadPoolExecutor(1) as apart:
        command = apart.submit(run_cli, app, "audit", *arguments)
        while True:
            began, done = time.monotonic(), command.done()
            assert doctor.patch("/patient/1", {"diagnosis": f"Malaria {began}"}).status_code == 200
            slowest = max(slowest, time.monotonic() - began)
            if done:
                return slowest, command.result()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("command", ["head", "verify"])
def test_beside_a_vacuum_the_history_is_verified_and_nobody_waits(
    lived: Flask, doctor: Client, vacuum: None, command: str
) -> None:
    slowest, (code, said) = slowest_write_during(lived, doctor, command)
    assert code == 0, said
    assert slowest < 1


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_a_head_is_not_told_while_a_transaction_writes_for_long(lived: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LONGEST_WAIT", 0.3)
    with lived.app_context(), lived.extensions["sqlalchemy"].engine.begin() as writer:
        writer.exec_driver_sql("UPDATE patients SET phone_number = '0712'")
        code, said = run_cli(lived, "audit", "head")
        assert (code, "Run this again later" in said) == (1, True)
        assert verify(lived) == WHOLE[1]
    monkeypatch.undo()  # other tests write to the same PostgreSQL
    assert run_cli(lived, "audit", "head")[0] == 0
