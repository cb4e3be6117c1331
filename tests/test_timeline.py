"""The timeline of a patient: appointments and reports, the newest first."""

from typing import Any

import pytest
from client import Client, assert_refused, next_of, pages
from factories import hours_ago, make_appointment, make_patient, make_report
from flask import Flask
from sql import as_stored, connections_in_use, sql
from sqlalchemy import insert

from models import Appointment, Report
from server.times import now
from testing.statements import counted_statements


def names(entries: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(entry["kind"], entry["id"]) for entry in entries]


@pytest.fixture
def patient(doctor: Client) -> int:
    """A patient with three appointments and two reports, and beside them another patient with one of each."""
    patient, other = make_patient(doctor)["id"], make_patient(doctor, first_name="Brian")["id"]
    for day in (3, 1, 2):
        make_appointment(doctor, patient, f"2030-03-0{day}T10:00")
    make_appointment(doctor, other, "2030-03-04T10:00")
    make_report(doctor, patient, diagnosis="Malaria")
    make_report(doctor, other)
    make_report(doctor, patient)
    return int(patient)


NEWEST_FIRST = [("appointment", 1), ("appointment", 3), ("appointment", 2), ("report", 3), ("report", 1)]


def test_the_newest_entry_comes_first(doctor: Client, patient: int) -> None:
    entries = doctor.get(f"/patient/{patient}/timeline").json
    assert names(entries) == NEWEST_FIRST
    assert [entry["at"][:10] for entry in entries[:3]] == ["2030-03-03", "2030-03-02", "2030-03-01"]


def test_an_entry_is_the_record_as_its_own_address_answers_it(doctor: Client, patient: int) -> None:
    for entry in doctor.get(f"/patient/{patient}/timeline").json:
        kind, at = entry.pop("kind"), entry.pop("at")
        address = {"appointment": "appointment", "report": "reports"}[kind]
        record = doctor.get(f"/{address}/{entry['id']}").json
        assert entry == record
        assert at == record["appointment_datetime" if kind == "appointment" else "created_at"]


def test_an_entry_may_be_sent_back_as_its_record(doctor: Client, patient: int) -> None:
    for entry in doctor.get(f"/patient/{patient}/timeline").json:
        address = {"appointment": "appointment", "report": "reports"}[entry["kind"]]
        changed = doctor.patch(f"/{address}/{entry['id']}", entry)
        assert (changed.status_code, changed.json["version"]) == (200, 1)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
def test_pages_lead_on_through_the_whole_timeline(doctor: Client, patient: int, limit: int) -> None:
    found = list(pages(doctor, f"/patient/{patient}/timeline?limit={limit}"))
    assert [entry for page in found for entry in page] == doctor.get(f"/patient/{patient}/timeline").json
    assert {len(page) for page in found[:-1]} <= {limit}


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_no_entry_is_lost_or_shown_twice_among_those_of_one_instant(
    app: Flask, doctor: Client, patient: int, limit: int
) -> None:
    moment = as_stored(app, now().replace(microsecond=0))
    moment = f"{moment}.000000" if isinstance(moment, str) else moment
    sql(app, "UPDATE appointments SET status = 'cancelled'")
    sql(app, "UPDATE appointments SET appointment_datetime = :at", at=moment)
    sql(app, "UPDATE reports SET created_at = :at", at=moment)
    found = [entry for page in pages(doctor, f"/patient/{patient}/timeline?limit={limit}") for entry in page]
    assert names(found) == [("appointment", 3), ("appointment", 2), ("appointment", 1), ("report", 3), ("report", 1)]


def test_what_is_new_since_the_first_page_moves_no_later_page(doctor: Client, patient: int) -> None:
    following = next_of(doctor.get(f"/patient/{patient}/timeline?limit=2"))
    make_appointment(doctor, patient, "2031-03-03T10:00")
    assert names(doctor.get(str(following)).json) == NEWEST_FIRST[2:4]


def test_the_total_is_told(doctor: Client, patient: int) -> None:
    assert doctor.get(f"/patient/{patient}/timeline?limit=2&total=true").headers["X-Total-Count"] == "5"


def test_archived_records_are_left_out(doctor: Client, patient: int) -> None:
    doctor.delete("/appointment/3")
    doctor.delete("/reports/1")
    assert names(doctor.get(f"/patient/{patient}/timeline").json) == [
        ("appointment", 1), ("appointment", 2), ("report", 3),
    ]  # fmt: skip


def test_a_timeline_without_entries_is_empty(doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    for asked in ("", "?limit=5"):
        assert doctor.get(f"/patient/{patient}/timeline{asked}").json == []


def test_a_patient_who_is_archived_or_does_not_exist_has_none(admin: Client, patient: int) -> None:
    admin.delete(f"/patient/{patient}")
    for number in (patient, 999):
        assert_refused(admin.get(f"/patient/{number}/timeline"), 404)


def test_a_cursor_is_for_one_timeline(doctor: Client, patient: int) -> None:
    following = str(next_of(doctor.get(f"/patient/{patient}/timeline?limit=2")))
    assert_refused(doctor.get(following.replace(f"/patient/{patient}/", f"/patient/{patient + 1}/")), 422, "cursor")
    assert_refused(doctor.get(f"/patient/{patient}/timeline?limit=2&cursor=nonsense"), 422, "cursor")
    assert_refused(doctor.get(f"/patient/{patient}/timeline?sort=id"), 422, "sort")


def test_the_access_log_names_the_reports(doctor: Client, patient: int, caplog: pytest.LogCaptureFixture) -> None:
    for asked in ("", "?limit=50"):
        caplog.clear()
        doctor.get(f"/patient/{patient}/timeline{asked}")
        assert f"GET /patient/{patient}/timeline: report 3 (images 3), report 1 (images 1)" in caplog.text


def test_a_long_timeline_takes_the_same_statements(app: Flask, doctor: Client, patient: int) -> None:
    """2,000 entries; and what a stream holds is given back."""
    kept = {"patient_id": patient, "user_id": doctor.user["id"], "version": 1}
    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        cancelled = {**kept, "status": "cancelled", "appointment_datetime": now().replace(microsecond=0)}
        connection.execute(insert(Appointment), [cancelled] * 1_000)
        connection.execute(insert(Report), [{**kept, "diagnosis": "Malaria"}] * 1_000)
    with counted_statements(app) as statements:
        assert len(doctor.get(f"/patient/{patient}/timeline?limit=500").json) == 500
    assert len(statements) == 3  # the guard, the patient, the page
    with counted_statements(app) as statements:
        assert len(doctor.get(f"/patient/{patient}/timeline").json) == 2_005
    assert len(statements) == 3
    assert connections_in_use(app) == 0
    everything = [entry for page in pages(doctor, f"/patient/{patient}/timeline?limit=333") for entry in page]
    assert names(everything) == names(doctor.get(f"/patient/{patient}/timeline").json)


def test_a_time_before_now_is_in_its_place(doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    make_report(doctor, patient)
    make_appointment(doctor, patient, hours_ago(2))
    assert names(doctor.get(f"/patient/{patient}/timeline").json) == [("report", 1), ("appointment", 1)]


def test_a_receptionist_is_shown_the_appointments_alone(receptionist: Client, patient: int) -> None:
    appointments = [entry for entry in NEWEST_FIRST if entry[0] == "appointment"]
    first = receptionist.get(f"/patient/{patient}/timeline?limit=2&total=true")
    assert first.headers["X-Total-Count"] == "3"
    rest = receptionist.get(str(next_of(first)))
    assert names([*first.json, *rest.json]) == appointments
    assert names(receptionist.get(f"/patient/{patient}/timeline").json) == appointments
