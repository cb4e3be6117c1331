"""Two records of one patient become one, and two again."""

import itertools
from typing import Any

import pytest
from client import WHOLE, Client, all_pages, assert_refused, at_once, ids, run_cli, verify
from factories import make_appointment, make_patient, make_report
from flask import Flask
from sql import snapshot, sql

from clinic.merging import MOVED
from models import Appointment, Report
from server.database import db

AMINA = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712 345 678", "date_of_birth": "1990-05-31"}
TWICE = {**AMINA, "first_name": "Aminah", "phone_number": "0733 111 222", "diagnosis": "Malaria, long ago"}


class Pair:
    """Amina, who was written down twice: the second time with two appointments and a report."""

    def __init__(self, admin: Client, doctor: Client) -> None:
        self.admin = admin
        self.kept, self.other = make_patient(doctor, **AMINA), make_patient(doctor, **TWICE)
        self.into, self.old = self.kept["id"], self.other["id"]
        self.own = make_appointment(doctor, self.into, "2030-03-01T08:00")["id"]
        self.moved = [make_appointment(doctor, self.old, f"2030-03-0{day}T10:00")["id"] for day in (1, 2)]
        self.report = make_report(doctor, self.old, diagnosis="Malaria")["id"]

    def merge(self, **kwargs: Any) -> dict[str, Any]:
        response = self.admin.post(f"/patient/{self.old}/merge", {"into": self.into}, **kwargs)
        assert response.status_code == 200, response.json
        return dict(response.json)

    def undo(self) -> dict[str, Any]:
        response = self.admin.post(f"/patient/{self.old}/restore")
        assert response.status_code == 200, response.json
        return dict(response.json)

    def appointments(self, patient: int) -> list[int]:
        return sorted(ids(self.admin.get(f"/appointment?patient_id={patient}")))

    def reports(self, patient: int) -> list[int]:
        return ids(self.admin.get(f"/reports?patient_id={patient}"))


@pytest.fixture
def pair(admin: Client, doctor: Client) -> Pair:
    return Pair(admin, doctor)


def refused(admin: Client, patient: int, into: int, status: int, *fields: str) -> dict[str, Any]:
    response = admin.post(f"/patient/{patient}/merge", {"into": into})
    assert_refused(response, status, *fields)
    return dict(response.json)


# --- Merging ---


def test_the_records_move_and_the_answer_says_what_differs(pair: Pair) -> None:
    told = pair.merge()
    assert told["moved"] == {"appointments": 2, "reports": 1}
    assert told["differing"] == ["first_name", "phone_number", "diagnosis", "admitted_at"]
    merged = [{"id": pair.old, "mrn": pair.other["mrn"]}]
    assert told["patient"] == {**pair.kept, **told["patient"], "merged": merged, "version": 2}
    assert pair.admin.get(f"/patient/{pair.into}").json == told["patient"]
    assert pair.appointments(pair.into) == [pair.own, *pair.moved]
    assert pair.reports(pair.into) == [pair.report]
    appointment = pair.admin.get(f"/appointment/{pair.moved[0]}").json
    assert (appointment["patient_name"], appointment["version"]) == ("Amina Wanjiru", 2)
    assert pair.admin.get(f"/reports/{pair.report}").json["patient"]["id"] == pair.into


def test_the_merged_patient_is_found_nowhere_but_says_where_they_are_now(pair: Pair, doctor: Client) -> None:
    pair.merge()
    for path in ("", "/timeline", "/duplicates", "/history"):
        response = doctor.get(f"/patient/{pair.old}{path}")
        assert_refused(response, 404)
        assert response.json["merged_into"] == pair.into
    refusal = doctor.patch(f"/patient/{pair.old}", {"first_name": "Anna"})
    assert (refusal.status_code, refusal.json["merged_into"]) == (404, pair.into)
    assert all_pages(doctor, "/patients?limit=10") == [pair.into]
    assert_refused(doctor.post("/reports", data={"patient_id": pair.old, "diagnosis": "x"}), 422, "patient_id")
    assert "merged_into" not in doctor.get("/patient/999").json


def test_the_surviving_patient_is_found_by_the_old_number_name_and_phone(pair: Pair, doctor: Client) -> None:
    pair.merge()
    for q in (pair.other["mrn"], "aminah", "0733111222", "0733 111", "amina", pair.kept["mrn"]):
        assert ids(doctor.get("/patients", query_string={"q": q})) == [pair.into], q
    doctor.patch(f"/patient/{pair.into}", {"last_name": "Otieno"})
    assert ids(doctor.get("/patients?q=aminah")) == [pair.into]
    assert run_cli(doctor.app, "reindex")[0] == 0
    assert ids(doctor.get(f"/patients?q={pair.other['mrn']}")) == [pair.into]


def test_a_client_may_send_the_surviving_patient_back(pair: Pair, doctor: Client) -> None:
    whole = pair.merge()["patient"]
    changed = doctor.patch(f"/patient/{pair.into}", {**whole, "diagnosis": "Typhoid"})
    assert changed.status_code == 200, changed.json
    assert (changed.json["diagnosis"], changed.json["merged"]) == ("Typhoid", whole["merged"])
    assert doctor.patch(f"/patient/{pair.into}", {"merged": [], "merged_into": 1}).status_code == 422
    untouched = doctor.patch(f"/patient/{pair.into}", {"merged": []})
    assert untouched.json["merged"] == whole["merged"]
    assert doctor.get("/patients").json[0]["merged"] == whole["merged"]
    assert pair.other["merged"] == []


def test_every_record_has_the_merge_in_its_history(pair: Pair, app: Flask, doctor: Client) -> None:
    pair.merge()
    entries = {(one["action"], one["record_id"]): one for one in doctor.get(f"/patient/{pair.into}/history").json}
    assert entries.keys() == {("create", pair.into), ("create", pair.old), ("archive", pair.old), ("change", pair.into)}
    assert entries["create", pair.old]["changes"]["diagnosis"]["to"] == "Malaria, long ago"  # for doctors to read
    assert entries["archive", pair.old]["changes"] == {"merged_into_id": {"from": None, "to": pair.into}}
    moved = pair.admin.get(f"/appointment/{pair.moved[0]}/history").json[-1]
    assert (moved["action"], moved["changes"]) == ("change", {"patient_id": {"from": pair.old, "to": pair.into}})
    assert pair.admin.get(f"/reports/{pair.report}/history").json[-1]["actor_id"] == pair.admin.user["id"]
    pair.undo()
    assert verify(app) == WHOLE[1]


def test_archived_records_move_too_and_can_be_restored(pair: Pair, doctor: Client) -> None:
    doctor.delete(f"/appointment/{pair.moved[0]}")
    assert pair.merge()["moved"] == {"appointments": 2, "reports": 1}
    assert pair.admin.post(f"/appointment/{pair.moved[0]}/restore").json["patient_id"] == pair.into


def test_a_chain_leads_to_the_last(pair: Pair, doctor: Client) -> None:
    third = make_patient(doctor, **{**AMINA, "first_name": "Ameena"})
    pair.merge()
    last = pair.admin.post(f"/patient/{pair.into}/merge", {"into": third["id"]}).json
    assert [one["id"] for one in last["patient"]["merged"]] == [pair.old, pair.into]
    assert last["moved"] == {"appointments": 3, "reports": 1}
    for number in (pair.old, pair.into):
        assert doctor.get(f"/patient/{number}").json["merged_into"] == third["id"]
    assert ids(doctor.get("/patients?q=aminah")) == [third["id"]]
    assert refused(pair.admin, third["id"], pair.into, 409)["code"] == "archived"


# --- What is refused ---


def test_hours_at_which_both_are_booked_are_listed(app: Flask, pair: Pair, other_doctor: Client) -> None:
    mine = make_appointment(other_doctor, pair.into, "2030-03-01T10:15")["id"]
    make_appointment(other_doctor, pair.into, "2030-03-02T10:30")  # begins when the other one ends
    cancelled = make_appointment(other_doctor, pair.into, "2030-03-02T10:00")["id"]
    other_doctor.patch(f"/appointment/{cancelled}", {"status": "cancelled"})
    before = snapshot(app)
    told = refused(pair.admin, pair.old, pair.into, 409, "into")
    assert told["code"] == "slot_taken"
    assert told["errors"]["into"] == [
        f"Both are booked on 1 March 2030, from 10:15 to 10:30: appointments {pair.moved[0]} and {mine}."
    ]
    assert snapshot(app) == before


def test_of_many_such_hours_twenty_are_listed(app: Flask, pair: Pair, doctor: Client, other_doctor: Client) -> None:
    for day in range(3, 26):
        make_appointment(doctor, pair.old, f"2030-03-{day:02}T10:00")
        make_appointment(other_doctor, pair.into, f"2030-03-{day:02}T10:00")
    told = refused(pair.admin, pair.old, pair.into, 409, "into")
    assert len(told["errors"]["into"]) == 20
    assert "And 3 more." in told["msg"]


def test_an_overbooked_appointment_is_in_nobodys_way(pair: Pair) -> None:
    overbooked = {"overbooked": True, "reason": "urgent", "user_id": pair.admin.user["id"]}
    make_appointment(pair.admin, pair.into, "2030-03-01T10:00", **overbooked)
    assert pair.merge()["moved"]["appointments"] == 2


def test_oneself_and_patients_who_are_archived_deceased_or_unknown_are_refused(pair: Pair, doctor: Client) -> None:
    assert refused(pair.admin, pair.old, pair.old, 409)["code"] == "conflict"
    refused(pair.admin, pair.old, 999, 422, "into")
    refused(pair.admin, 999, pair.into, 404)
    gone, dead = make_patient(doctor)["id"], make_patient(doctor, status="deceased")["id"]
    pair.admin.delete(f"/patient/{gone}")
    assert refused(pair.admin, pair.old, gone, 409)["code"] == "archived"
    assert refused(pair.admin, pair.old, dead, 409)["code"] == "deceased"
    refused(pair.admin, gone, pair.into, 404)
    pair.merge()
    assert refused(pair.admin, pair.old, pair.into, 404)["merged_into"] == pair.into


@pytest.mark.parametrize("body", [{}, {"into": None}, {"into": "x"}, {"into": 0}, {"into": 2, "from": 1}])
def test_a_body_that_names_no_patient_is_refused(pair: Pair, body: dict[str, Any]) -> None:
    assert pair.admin.post(f"/patient/{pair.old}/merge", body).status_code == 422


def test_who_has_read_an_older_version_merges_nothing(pair: Pair, doctor: Client) -> None:
    doctor.patch(f"/patient/{pair.old}", {"diagnosis": "Typhoid"})
    response = pair.admin.post(f"/patient/{pair.old}/merge", {"into": pair.into}, headers={"If-Match": '"1"'})
    assert_refused(response, 412)
    assert response.json["current"]["diagnosis"] == "Typhoid"
    pair.merge(headers={"If-Match": '"2"'})


def test_the_same_request_sent_again_answers_the_same(pair: Pair) -> None:
    key = {"Idempotency-Key": "merge-1"}
    assert pair.merge(headers=key) == pair.merge(headers=key)
    other = pair.admin.post(f"/patient/{pair.old}/merge", {"into": 99}, headers=key)
    assert_refused(other, 422, "Idempotency-Key")
    pair.undo()
    again = pair.admin.post(f"/patient/{pair.old}/merge", {"into": pair.into}, headers=key)
    assert_refused(again, 409)


def test_a_patient_without_records_is_merged_too(pair: Pair, doctor: Client) -> None:
    empty = make_patient(doctor)["id"]
    told = pair.admin.post(f"/patient/{empty}/merge", {"into": pair.into}).json
    assert told["moved"] == {"appointments": 0, "reports": 0}
    assert pair.admin.post(f"/patient/{empty}/restore").json["unmerged"]["moved"] == told["moved"]


def test_ids_may_be_texts(pair: Pair) -> None:
    assert pair.admin.post(f"/patient/{pair.old}/merge", {"into": str(pair.into)}).status_code == 200


# --- Undoing ---


def test_undoing_gives_each_their_own_back(pair: Pair) -> None:
    pair.merge()
    told = pair.undo()
    assert told["unmerged"] == {
        "from": pair.into,
        "moved": {"appointments": 2, "reports": 1},
        "staying": {"appointments": [], "reports": []},
    }
    assert told == {**pair.other, **told}
    assert pair.appointments(pair.old) == pair.moved
    assert pair.appointments(pair.into) == [pair.own]
    assert pair.reports(pair.old) == [pair.report]
    assert pair.admin.get(f"/patient/{pair.into}").json["merged"] == []
    assert ids(pair.admin.get("/patients?q=aminah")) == [pair.old]
    assert ids(pair.admin.get(f"/patients?q={pair.other['mrn']}")) == [pair.old]


def test_what_was_corrected_or_completed_meanwhile_goes_back_too(app: Flask, pair: Pair, doctor: Client) -> None:
    pair.merge()
    doctor.patch(f"/appointment/{pair.moved[0]}", {"status": "cancelled", "reason": "Fever"})
    sql(app, f"UPDATE appointments SET status = 'completed' WHERE id = {pair.moved[1]}")  # its day is still to come
    doctor.patch(f"/reports/{pair.report}", {"diagnosis": "Typhoid"})
    pair.undo()
    assert pair.appointments(pair.old) == pair.moved
    assert pair.admin.get(f"/appointment/{pair.moved[0]}").json["reason"] == "Fever"
    assert pair.admin.get(f"/reports/{pair.report}").json["diagnosis"] == "Typhoid"


def test_what_was_newly_made_stays_and_is_named(pair: Pair, doctor: Client) -> None:
    pair.merge()
    appointment = make_appointment(doctor, pair.into, "2030-04-01T10:00")["id"]
    report = make_report(doctor, pair.into)["id"]
    assert pair.undo()["unmerged"]["staying"] == {"appointments": [appointment], "reports": [report]}
    assert pair.appointments(pair.into) == [pair.own, appointment]
    assert pair.reports(pair.into) == [report]


def test_what_was_given_to_a_third_patient_stays_there(pair: Pair, doctor: Client) -> None:
    third = make_patient(doctor, first_name="Brian")["id"]
    pair.merge()
    doctor.patch(f"/appointment/{pair.moved[0]}", {"patient_id": third})
    assert pair.undo()["unmerged"]["moved"] == {"appointments": 1, "reports": 1}
    assert pair.appointments(third) == [pair.moved[0]]


def test_nothing_is_undone_while_the_surviving_patient_is_archived(app: Flask, pair: Pair) -> None:
    pair.merge()
    pair.admin.delete(f"/patient/{pair.into}")
    before = snapshot(app)
    response = pair.admin.post(f"/patient/{pair.old}/restore")
    assert_refused(response, 409)
    assert response.json["code"] == "archived"
    assert snapshot(app) == before
    pair.admin.post(f"/patient/{pair.into}/restore")
    assert pair.undo()["unmerged"]["moved"] == {"appointments": 2, "reports": 1}


def test_a_chain_is_undone_from_its_end(pair: Pair, doctor: Client) -> None:
    third = make_patient(doctor, **{**AMINA, "first_name": "Ameena"})["id"]
    own = make_appointment(doctor, third, "2030-05-01T10:00")["id"]
    pair.merge()
    pair.admin.post(f"/patient/{pair.into}/merge", {"into": third})
    assert pair.admin.post(f"/patient/{pair.old}/restore").status_code == 409
    pair.admin.post(f"/patient/{pair.into}/restore")
    assert [one["id"] for one in pair.admin.get(f"/patient/{pair.into}").json["merged"]] == [pair.old]
    assert pair.admin.get(f"/patient/{third}").json["merged"] == []
    assert pair.admin.get(f"/patient/{pair.old}").json["merged_into"] == pair.into
    pair.undo()
    assert [pair.appointments(number) for number in (pair.old, pair.into, third)] == [pair.moved, [pair.own], [own]]


def test_a_merge_can_be_undone_and_made_again(pair: Pair) -> None:
    for _ in range(2):
        pair.merge()
        pair.undo()
    assert pair.merge()["moved"] == {"appointments": 2, "reports": 1}


def test_a_patient_who_was_only_archived_is_restored_as_before(pair: Pair) -> None:
    pair.admin.delete(f"/patient/{pair.old}")
    told = pair.undo()
    assert "unmerged" not in told
    assert pair.admin.patch(f"/patient/{pair.old}", told).status_code == 200
    assert pair.appointments(pair.old) == pair.moved


# --- At once, and much ---


def test_of_two_who_merge_each_into_the_other_one_succeeds(pair: Pair) -> None:
    first, second = pair.old, pair.into
    answers = at_once(
        lambda: pair.admin.post(f"/patient/{first}/merge", {"into": second}).status_code,
        lambda: Client(pair.admin.app, pair.admin.token).post(f"/patient/{second}/merge", {"into": first}).status_code,
    )
    assert sorted(answers) in ([200, 404], [200, 409])


def test_a_booking_meanwhile_is_moved_or_refused(app: Flask, pair: Pair, doctor: Client) -> None:
    booking = {"patient_id": pair.old, "appointment_datetime": "2030-06-01T10:00"}
    merged, booked = at_once(
        lambda: pair.admin.post(f"/patient/{pair.old}/merge", {"into": pair.into}).status_code,
        lambda: doctor.post("/appointment", booking).status_code,
    )
    assert merged == 200
    assert booked in (201, 422)
    assert sql(app, f"SELECT count(*) FROM appointments WHERE patient_id = {pair.old}")[0][0] == 0


def test_two_thousand_records_move_and_come_back(app: Flask, pair: Pair, doctor: Client) -> None:
    sql(
        app,
        "INSERT INTO reports (diagnosis, patient_id, user_id, created_at, updated_at, version) "
        f"SELECT 'Malaria', {pair.old}, {doctor.user['id']}, p.created_at, p.updated_at, 1 FROM patients p, "
        f"({' UNION ALL '.join(f'SELECT {n}' for n in range(400))}) AS n, "
        f"({' UNION ALL '.join(f'SELECT {n}' for n in range(5))}) AS m WHERE p.id = {pair.old}",
    )
    assert pair.merge()["moved"]["reports"] == 2_001
    assert pair.undo()["unmerged"]["moved"]["reports"] == 2_001


# --- Purging ---


def purge(app: Flask) -> str:
    for table in ("patients", "appointments", "reports", "images"):
        sql(app, f"UPDATE {table} SET deleted_at = '2020-01-01 00:00:00.000000' WHERE deleted_at IS NOT NULL")
    code, said = run_cli(app, "purge", "--older-than", "90d")
    assert code == 0, said
    return said


def test_a_purge_keeps_what_leads_to_the_surviving_patient(app: Flask, pair: Pair) -> None:
    pair.merge()
    assert "0 patients, each with reports and appointments, erased." in purge(app)
    assert pair.admin.get(f"/patient/{pair.old}").json["merged_into"] == pair.into
    assert ids(pair.admin.get("/patients?q=aminah")) == [pair.into]
    assert pair.undo()["unmerged"]["moved"] == {"appointments": 2, "reports": 1}


def test_a_purged_record_was_moved_and_does_not_come_back(app: Flask, pair: Pair, doctor: Client) -> None:
    pair.merge()
    doctor.delete(f"/appointment/{pair.moved[0]}")
    doctor.delete(f"/reports/{pair.report}")
    purge(app)
    assert pair.undo()["unmerged"]["moved"] == {"appointments": 1, "reports": 0}


def test_with_the_surviving_patient_all_merged_into_them_are_erased(app: Flask, pair: Pair, doctor: Client) -> None:
    third = make_patient(doctor)["id"]
    pair.merge()
    pair.admin.post(f"/patient/{pair.into}/merge", {"into": third})
    pair.admin.delete(f"/patient/{third}")
    purge(app)
    for table in ("patients", "patient_words", "moved_records", "appointments", "reports"):
        assert sql(app, f"SELECT count(*) FROM {table}")[0][0] == 0, table
    assert "merged_into" not in pair.admin.get(f"/patient/{pair.old}").json
    assert "Aminah" not in "".join(str(row) for row in sql(app, "SELECT * FROM audit_entries"))
    assert verify(app) == WHOLE[1]


# --- What a merge must know ---

REFERRING = {
    "appointments.patient_id": "moves",
    "reports.patient_id": "moves",
    "moved_records.patient_id": "says whence the merge moved them",
    "patients.merged_into_id": "says into whom",
    "patient_words.record_id": "the survivor gets the words of the merged",
}


def test_every_reference_to_a_patient_is_known_to_the_merge() -> None:
    """A new table that refers to patients fails here until the merge, its undoing and the purge know it."""
    tables = db.metadata.tables.values()
    keys = itertools.chain.from_iterable(table.foreign_keys for table in tables)
    found = {f"{key.parent.table.name}.{key.parent.name}" for key in keys if key.column.table.name == "patients"}
    assert found == set(REFERRING)
    moving = {f"{kind.__tablename__}.patient_id" for kind in MOVED}
    assert moving == {column for column, what in REFERRING.items() if what == "moves"}
    assert set(MOVED) == {Appointment, Report}
