"""`flask audit verify --since`, by several processes, and `flask audit head --kept`."""

import multiprocessing
import re

import pytest
from client import WHOLE, Client, run_cli, verify
from factories import PASSWORD, make_patient, sign_in
from flask import Flask
from sql import sql
from sqlalchemy import Connection

from clinic.history import chain, snapshots, verification

SINCE = (0, "The history since the checkpoint is whole.\n")


def checkpoint(app: Flask) -> str:
    code, said = run_cli(app, "audit", "verify", "--checkpoint")
    whole, line = said.splitlines()
    assert (code, f"{whole}\n") == WHOLE
    return line


def refused(app: Flask, line: str) -> str:
    code, said = run_cli(app, "audit", "verify", "--since", line)
    assert code == 1
    assert said.endswith("Nothing was verified.\n")
    return said


@pytest.fixture
def lived(app: Flask, admin: Client, doctor: Client) -> Flask:
    """An application with two patients, and five entries of sign-ins."""
    for _ in range(2):
        make_patient(doctor)
    for password in (PASSWORD, "not the right one", PASSWORD):
        Client(app).post("/login", {"email": "dora@clinic.test", "password": password})
    return app


@pytest.fixture
def kept(lived: Flask, doctor: Client) -> str:
    """A checkpoint, after which the history has grown."""
    line = checkpoint(lived)
    doctor.patch("/patient/1", {"diagnosis": "Malaria"})
    make_patient(doctor)
    sign_in(lived, "Dora")
    Client(lived).post("/login", {"email": "nobody@clinic.test", "password": "not the right one"})
    return line


def test_what_was_written_since_a_checkpoint_is_whole(lived: Flask, kept: str) -> None:
    assert run_cli(lived, "audit", "verify", "--since", kept) == SINCE
    assert run_cli(lived, "audit", "verify", "--since", checkpoint(lived)) == SINCE


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE audit_entries SET action = 'archive' WHERE {patient} AND seq = 2", "patient 1: entry 2 was changed"),
        ("UPDATE audit_entries SET action = 'archive' WHERE {patient} AND seq = 1", "patient 1: entry 1 was changed"),
        ("UPDATE audit_entries SET changes = NULL WHERE {patient} AND seq = 2", "patient 1: values were removed"),
        ("DELETE FROM audit_entries WHERE {patient} AND seq = 2", "The heads tell of"),
        ("DELETE FROM audit_entries WHERE kind = 'patient' AND record_id = 2", "The heads tell of"),
        ("UPDATE patients SET version = 9 WHERE id = 1", "patient 1: it is at version 9"),
        ("UPDATE audit_heads SET mac = 'x' WHERE {patient}", "patient 1: its head was changed"),
        ("DELETE FROM audit_heads WHERE kind = 'patient' AND record_id = 3", "patient 3: its head was removed"),
        ("UPDATE audit_entries SET record_id = 9 WHERE {patient} AND seq = 2", "patient 9: entry 1 was removed"),
        ("UPDATE audit_entries SET actor_id = 9 WHERE {newest_sign_in}", "sign-ins: entry"),
        ("DELETE FROM audit_entries WHERE {newest_sign_in}", "sign-ins: it ends at entry"),
        ("DELETE FROM audit_heads WHERE kind = 'sign-in' AND record_id = 60", "sign-ins: its history was removed."),
    ],
)
def test_what_was_tampered_with_since_a_checkpoint_is_found(
    lived: Flask, kept: str, statement: str, fault: str
) -> None:
    newest = "id = (SELECT max(id) FROM audit_entries WHERE kind = 'sign-in')"
    sql(lived, statement.format(patient="kind = 'patient' AND record_id = 1", newest_sign_in=newest))
    assert fault in verify_since(lived, kept)
    assert verify(lived) != WHOLE[1]


def verify_since(app: Flask, line: str) -> str:
    code, said = run_cli(app, "audit", "verify", "--since", line)
    assert code == (said != SINCE[1])
    return said


def test_a_value_of_another_chain_that_was_changed_since_is_seen_by_a_whole_verification_only(
    lived: Flask, kept: str
) -> None:
    sql(lived, "UPDATE audit_entries SET changes = '{}' WHERE kind = 'patient' AND record_id = 2")
    assert run_cli(lived, "audit", "verify", "--since", kept) == SINCE
    assert "patient 2: entry 1 has other values than were written." in verify(lived)


def test_a_checkpoint_that_is_none_or_forged_is_told(lived: Flask, kept: str) -> None:
    assert "is no checkpoint" in refused(lived, "yesterday")
    entry, _, rest = kept.partition("-")
    assert "The checkpoint is forged" in refused(lived, f"{int(entry) - 1}-{rest}")
    assert "The checkpoint is forged" in refused(lived, kept[:-1] + ("0" if kept[-1] != "0" else "1"))


def test_a_checkpoint_of_another_database_is_told(lived: Flask, kept: str) -> None:
    foreign = re.sub(r"Z-[0-9a-f]{16}-", "Z-0123456789abcdef-", kept)
    assert "is of another database: it was signed with another AUDIT_KEY" in refused(lived, foreign)
    entry = kept.partition("-")[0]
    sql(lived, f"UPDATE audit_entries SET mac = '{'0' * 64}' WHERE id = {entry}")
    assert "is of another database, or its entry" in refused(lived, kept)


def test_a_checkpoint_that_is_newer_than_the_database_is_told(lived: Flask, doctor: Client) -> None:
    newest = sql(lived, "SELECT max(id) FROM audit_entries")[0][0]
    doctor.patch("/patient/1", {"diagnosis": "Malaria"})
    line = checkpoint(lived)
    sql(lived, f"DELETE FROM audit_entries WHERE id > {newest}")  # as on a copy of yesterday
    assert f"made at entry {newest + 1}, and the database ends at entry {newest}." in refused(lived, line)


def test_a_history_with_a_fault_gets_no_checkpoint(lived: Flask) -> None:
    sql(lived, "UPDATE patients SET version = 7 WHERE id = 1")
    code, said = run_cli(lived, "audit", "verify", "--checkpoint")
    assert (code, said) == (1, "patient 1: it is at version 7, its history at 1.\nError: 1 found.\n")
    assert run_cli(lived, "audit", "verify", "--since", "x", "--checkpoint")[0] == 2


# --- Several processes ---


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "CHAINS", 1)


def test_several_processes_find_what_one_finds(lived: Flask, kept: str, small_ranges: None) -> None:
    assert run_cli(lived, "audit", "verify", "--processes", "2") == WHOLE
    for statement in (
        "UPDATE audit_entries SET action = 'archive' WHERE kind = 'patient' AND record_id = 2",
        "DELETE FROM audit_heads WHERE kind = 'patient' AND record_id = 3",
        "UPDATE audit_entries SET actor_id = 9 WHERE kind = 'sign-in' AND seq = 2",
    ):
        sql(lived, statement)
    alone, together = verify(lived, "--processes", "1"), verify(lived, "--processes", "2")
    assert sorted(alone.splitlines()) == sorted(together.splitlines())
    assert "Error: 3 found." in alone


def test_processes_see_the_state_that_the_verification_began_with(lived: Flask, doctor: Client) -> None:
    with lived.app_context(), verification.reading(2) as (connection, ring, team):
        assert len(team.pipes) == 2
        assert doctor.patch("/patient/1", {"diagnosis": "Written meanwhile"}).status_code == 200
        sql(lived, "UPDATE patients SET version = 9 WHERE id = 2")
        assert list(verification.faults(connection, ring, team)) == []
    assert "patient 2: it is at version 9" in verify(lived, "--processes", "2")


def test_what_a_process_fails_to_do_is_done_here(
    lived: Flask, small_ranges: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql(lived, "UPDATE patients SET version = 9 WHERE id = 2")
    with lived.app_context(), verification.reading(2) as (connection, ring, team):
        for process in multiprocessing.active_children():
            process.kill()
        assert len(team.pipes) == 2
        found = list(verification.faults(connection, ring, team))
    assert found == ["patient 2: it is at version 9, its history at 1."]


def test_the_entries_are_counted_here_if_a_second_connection_is_refused(
    lived: Flask, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "address", lambda: ("postgresql+psycopg2://127.0.0.1:1/none", {}))
    assert run_cli(lived, "audit", "verify", "--since", kept) == SINCE
    sql(lived, "DELETE FROM audit_entries WHERE kind = 'patient' AND record_id = 2")
    assert "The heads tell of" in verify_since(lived, kept)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_count_that_nobody_wants_any_more_is_stopped(app: Flask) -> None:
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as holder:
        holder.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")

        def never(other: Connection) -> None:
            other.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")

        interrupted = pytest.raises(KeyboardInterrupt)
        with interrupted, snapshots.snapshot() as connection, snapshots.meanwhile(connection, never):
            raise KeyboardInterrupt


# --- Chains of sign-ins ---


def test_the_sign_ins_of_an_earlier_release_stay_in_their_chain(app: Flask, admin: Client, doctor: Client) -> None:
    assert verify(app) == WHOLE[1]
    numbers = {row[0] for row in sql(app, "SELECT record_id FROM audit_entries WHERE kind = 'sign-in'")}
    assert numbers == {0, chain.sign_in_chain(doctor.user["id"])}
    assert {entry["record_id"] for entry in admin.get("/audit?kind=sign-in").json} == {0}
    assert {entry["version"] for entry in admin.get("/audit?kind=sign-in").json} == {None}


@pytest.mark.parametrize("number", [0, 7])
def test_a_chain_of_sign_ins_that_is_removed_is_found(lived: Flask, number: int) -> None:
    for table in ("audit_entries", "audit_heads"):
        sql(lived, f"DELETE FROM {table} WHERE kind = 'sign-in' AND record_id = {number}")
    assert "sign-ins: its history was removed." in verify(lived)


def test_all_new_chains_of_sign_ins_that_are_removed_are_found(lived: Flask) -> None:
    sql(lived, "DELETE FROM login_sessions")
    for table in ("audit_entries", "audit_heads"):
        sql(lived, f"DELETE FROM {table} WHERE kind = 'sign-in' AND record_id > 0")
    assert "sign-ins: its history was removed." in verify(lived)


# --- Heads ---


def head(app: Flask, *options: str) -> str:
    code, said = run_cli(app, "audit", "head", *options)
    assert code == 0, said
    return said.strip()


def test_heads_in_a_row_tell_that_the_tail_is_there(lived: Flask, doctor: Client) -> None:
    first = head(lived)
    doctor.patch("/patient/1", {"diagnosis": "Malaria"})
    second = head(lived, "--kept", first)
    assert second != first
    assert head(lived, "--kept", second) == second


@pytest.mark.parametrize("command", [("head", "--kept"), ("verify", "--head")])
def test_a_database_that_is_older_than_a_head_is_told_at_once(
    lived: Flask, doctor: Client, command: tuple[str, str]
) -> None:
    newest = sql(lived, "SELECT max(id) FROM audit_entries")[0][0]
    for diagnosis in ("Malaria", "Malaria, cured"):
        doctor.patch("/patient/1", {"diagnosis": diagnosis})
    line = head(lived)
    sql(lived, f"DELETE FROM audit_entries WHERE id > {newest}")  # as a standby that lacks the tail
    told = f"2 of the {newest + 2} entries up to entry {newest + 2} are missing."
    code, said = run_cli(lived, "audit", *command, line)
    assert (code, told in said) == (1, True), said
    earlier = "-".join(line.split("-")[:2])  # a head of an earlier release has no count
    code, said = run_cli(lived, "audit", *command, earlier)
    assert (code, f"entries up to {newest + 2} are missing" in said) == (1, True), said
    doctor.patch("/patient/2", {"diagnosis": "Written after the failover"})
    doctor.patch("/patient/2", {"diagnosis": "Written after the failover, too"})
    assert run_cli(lived, "audit", *command, line)[0] == 1
    assert run_cli(lived, "audit", *command, earlier)[0] == 1


@pytest.mark.parametrize("line", ["", "yesterday"])
def test_what_is_no_checkpoint_is_told(lived: Flask, line: str) -> None:
    """The empty one is what an empty file gives."""
    assert "is no checkpoint" in refused(lived, line)


def test_what_is_no_head_is_told(lived: Flask) -> None:
    code, said = run_cli(lived, "audit", "head", "--kept", "yesterday")
    assert (code, "is no head" in said) == (1, True)
