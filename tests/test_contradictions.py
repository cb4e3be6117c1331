"""Records that contradict themselves are refused with a sentence. Values that were stored earlier stay."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from client import Client, assert_refused, at_once
from factories import PASSWORD, hours_ago, make_appointment, make_patient, sign_up
from flask import Flask
from sql import snapshot, sql

STAY = {"admitted_at": "2026-03-01T10:00Z", "discharged_at": "2026-03-05T10:00Z"}


def days_ahead(days: int) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="minutes")


def is_now(time: str) -> bool:
    return abs(datetime.now(UTC) - datetime.fromisoformat(time)) < timedelta(minutes=1)


# --- Patients ---


@pytest.mark.parametrize("status", ["admitted", "ongoing", "critical"])
def test_a_discharged_patient_who_comes_back_is_admitted_anew(doctor: Client, status: str) -> None:
    patient = make_patient(doctor, **STAY, status="discharged")["id"]
    back = doctor.patch(f"/patient/{patient}", {"status": status}).json
    assert is_now(back["admitted_at"])
    assert back["discharged_at"] is None


def test_a_status_with_its_dates_is_taken_as_it_is(doctor: Client) -> None:
    patient = make_patient(doctor, **STAY, status="discharged")
    back = doctor.patch(f"/patient/{patient['id']}", {**patient, "status": "admitted"}).json
    assert (back["admitted_at"], back["discharged_at"]) == (patient["admitted_at"], patient["discharged_at"])
    again = doctor.patch(f"/patient/{patient['id']}", {"status": "ongoing"}).json
    assert again["discharged_at"] == patient["discharged_at"]  # the patient was in the ward already


def test_a_discharge_is_taken_beside_any_status(doctor: Client) -> None:
    for status in ("admitted", "outpatient", "critical"):
        patient = make_patient(doctor, status=status, discharged_at="2026-03-05T10:00Z")
        assert (patient["status"], patient["admitted_at"]) == (status, None)


@pytest.mark.parametrize(
    ("fields", "blamed"),
    [
        ({"admitted_at": days_ahead(400)}, "admitted_at"),
        ({"admitted_at": "2026-01-01", "discharged_at": days_ahead(400)}, "discharged_at"),
        ({"admitted_at": "1989-05-30", "date_of_birth": "1990-05-31"}, "admitted_at"),
        ({"discharged_at": "1989-05-30", "date_of_birth": "1990-05-31"}, "discharged_at"),
        ({"date_of_birth": "1890-01-01"}, "date_of_birth"),
    ],
    ids=["admitted late", "discharged late", "admitted early", "discharged early", "born early"],
)
def test_dates_that_cannot_be_are_refused(app: Flask, doctor: Client, fields: dict[str, Any], blamed: str) -> None:
    patient = make_patient(doctor, status="outpatient")
    before = snapshot(app)
    body = {"first_name": "A", "last_name": "B", "phone_number": "0712 345 678", **fields}
    assert_refused(doctor.post("/patients", body), 422, blamed)
    assert_refused(doctor.patch(f"/patient/{patient['id']}", fields), 422, blamed)
    assert snapshot(app) == before


def test_a_birth_that_is_changed_to_after_the_admission_is_refused(doctor: Client) -> None:
    patient = make_patient(doctor, admitted_at="2026-03-01")["id"]
    assert_refused(doctor.patch(f"/patient/{patient}", {"date_of_birth": "2026-03-02"}), 422, "admitted_at")
    assert doctor.patch(f"/patient/{patient}", {"date_of_birth": "2026-03-01"}).status_code == 200


def test_a_date_that_was_stored_before_the_rule_may_be_sent_back(app: Flask, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    sql(app, "UPDATE patients SET date_of_birth = '1880-01-01'")
    whole = doctor.get(f"/patient/{patient}").json
    assert doctor.patch(f"/patient/{patient}", {**whole, "diagnosis": "Gout"}).status_code == 200


def test_a_death_cancels_what_is_to_come_and_nothing_is_booked_any_more(doctor: Client) -> None:
    patient, other = make_patient(doctor)["id"], make_patient(doctor)["id"]
    past = make_appointment(doctor, patient, hours_ago(3))["id"]
    coming = make_appointment(doctor, patient)["id"]
    cancelled = make_appointment(doctor, patient, "2030-03-02T10:00", status="cancelled")["id"]
    others = make_appointment(doctor, other, "2030-03-03T10:00")["id"]
    assert doctor.patch(f"/patient/{patient}", {"status": "deceased"}).status_code == 200
    assert doctor.get(f"/appointment/{coming}").json["status"] == "cancelled"
    assert doctor.get(f"/appointment/{past}").json["status"] == "scheduled"
    assert doctor.patch(f"/appointment/{past}", {"status": "completed"}).status_code == 200
    booking = {"patient_id": patient, "appointment_datetime": "2030-03-04T10:00"}
    assert_refused(doctor.post("/appointment", booking), 409)
    assert_refused(doctor.patch(f"/appointment/{cancelled}", {"status": "scheduled"}), 409)
    assert_refused(doctor.patch(f"/appointment/{others}", {"patient_id": patient}), 409)
    entries = [entry["action"] for entry in doctor.get(f"/appointment/{coming}/history").json]
    assert entries == ["create", "change"]


# --- Appointments ---


@pytest.mark.parametrize("time", [hours_ago(25), days_ahead(3700)], ids=["long ago", "far ahead"])
def test_a_slot_is_not_taken_long_ago_or_far_ahead(app: Flask, doctor: Client, time: str) -> None:
    patient = make_patient(doctor)["id"]
    appointment = make_appointment(doctor, patient)["id"]
    before = snapshot(app)
    booking = {"patient_id": patient, "appointment_datetime": time}
    assert_refused(doctor.post("/appointment", booking), 422, "appointment_datetime")
    assert_refused(doctor.patch(f"/appointment/{appointment}", booking), 422, "appointment_datetime")
    assert snapshot(app) == before


def test_what_took_place_long_ago_may_be_written_down_but_not_taken_up_again(doctor: Client) -> None:
    appointment = make_appointment(doctor, make_patient(doctor)["id"], "2025-03-01T10:00", status="completed")["id"]
    assert doctor.patch(f"/appointment/{appointment}", {"reason": "Check-up"}).status_code == 200
    assert_refused(doctor.patch(f"/appointment/{appointment}", {"status": "scheduled"}), 422, "appointment_datetime")


@pytest.mark.parametrize("status", ["completed", "no_show"])
def test_what_came_of_an_appointment_is_known_on_its_day(doctor: Client, status: str) -> None:
    patient = make_patient(doctor)["id"]
    coming = make_appointment(doctor, patient)["id"]
    assert_refused(doctor.patch(f"/appointment/{coming}", {"status": status}), 422, "status")
    done = make_appointment(doctor, patient, hours_ago(0), status=status)["id"]
    assert_refused(doctor.patch(f"/appointment/{done}", {"appointment_datetime": "2030-03-02T10:00"}), 422, "status")


# --- Doctors ---


def test_a_doctor_with_appointments_to_come_is_not_deactivated_unless_they_are_kept(
    app: Flask, admin: Client, doctor: Client
) -> None:
    appointment = make_appointment(doctor, make_patient(doctor)["id"])["id"]
    account, before = f"/user/{doctor.user['id']}", snapshot(app)
    refused = admin.patch(account, {"is_active": False})
    assert_refused(refused, 409)
    assert "still has 1 appointment to come" in refused.json["msg"]
    assert snapshot(app) == before
    closed = admin.patch(account, {"is_active": False, "keep_appointments": True})
    assert (closed.status_code, closed.json["is_active"]) == (200, False)
    assert "keep_appointments" not in closed.json
    assert admin.get(f"/appointment/{appointment}").json["status"] == "scheduled"


@pytest.mark.parametrize(
    "change",
    [
        {"appointment_datetime": "2030-03-01T11:00"},
        {"status": "confirmed"},
        {"duration_minutes": 60},
        {"patient_id": 2},
    ],
)
def test_nothing_newly_takes_a_slot_of_an_inactive_doctor(
    app: Flask, admin: Client, doctor: Client, change: dict[str, Any]
) -> None:
    patient = make_patient(doctor)["id"]
    make_patient(doctor)
    appointment = f"/appointment/{make_appointment(doctor, patient)['id']}"
    cancelled = f"/appointment/{make_appointment(doctor, patient, '2030-03-02T10:00', status='cancelled')['id']}"
    archived = f"/appointment/{make_appointment(doctor, patient, '2030-03-03T10:00')['id']}"
    doctor.delete(archived)
    admin.patch(f"/user/{doctor.user['id']}", {"is_active": False, "keep_appointments": True})
    before = snapshot(app)
    assert_refused(admin.patch(appointment, change), 409)
    assert_refused(admin.patch(cancelled, {"status": "scheduled"}), 409)
    assert_refused(admin.post(f"{archived}/restore"), 409)
    assert snapshot(app) == before
    for change in ({"reason": "Call them"}, {"status": "checked_in"}, {"status": "cancelled"}):
        assert admin.patch(appointment, change).status_code == 200


# --- Two appointments change places ---


def times(client: Client, *ids: int) -> list[str]:
    return [client.get(f"/appointment/{one}").json["appointment_datetime"][11:16] for one in ids]


@pytest.mark.parametrize("same", ["patient", "doctor", "neither"])
def test_two_appointments_change_places(admin: Client, doctor: Client, other_doctor: Client, same: str) -> None:
    patient = make_patient(doctor)["id"]
    other_patient = patient if same == "patient" else make_patient(doctor)["id"]
    other = doctor if same == "doctor" else other_doctor
    first = make_appointment(doctor, patient, "2030-03-01T10:00")["id"]
    second = make_appointment(other, other_patient, "2030-03-01T10:30")["id"]
    swapped = admin.post("/appointment/swap", {"first": first, "second": second})
    assert swapped.status_code == 200, swapped.json
    assert times(admin, first, second) == ["10:30", "10:00"]
    assert [swapped.json[one]["version"] for one in ("first", "second")] == [2, 2]
    history = admin.get(f"/appointment/{first}/history").json
    assert [list(entry["changes"]) for entry in history[1:]] == [["appointment_datetime"]]
    assert admin.post("/appointment/swap", {"first": first, "second": second}).status_code == 200
    assert times(admin, first, second) == ["10:00", "10:30"]


def test_a_swap_into_a_slot_that_is_taken_changes_nothing(app: Flask, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    long = make_appointment(doctor, patient, "2030-03-01T10:00", duration_minutes=60)["id"]
    short = make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T12:00")["id"]
    third = make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T12:30")["id"]
    before = snapshot(app)
    refused = doctor.post("/appointment/swap", {"first": long, "second": short})
    assert_refused(refused, 409, "appointment_datetime")
    assert f"appointment {third}" in refused.json["msg"]
    assert snapshot(app) == before


def test_who_may_not_change_both_swaps_neither(app: Flask, doctor: Client, other_doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    mine = make_appointment(doctor, patient, "2030-03-01T10:00")["id"]
    theirs = make_appointment(other_doctor, patient, "2030-03-01T11:00")["id"]
    before = snapshot(app)
    for first, second in ((mine, theirs), (theirs, mine)):
        assert_refused(doctor.post("/appointment/swap", {"first": first, "second": second}), 403)
    assert_refused(doctor.post("/appointment/swap", {"first": mine, "second": 99}), 404)
    assert_refused(doctor.post("/appointment/swap", {"first": mine, "second": mine}), 422, "second")
    assert snapshot(app) == before


def test_swaps_and_their_opposites_at_once_all_end(app: Flask, admin: Client, doctor: Client) -> None:
    sign_up(app, "Olga", password=PASSWORD)
    patients = [make_patient(doctor)["id"] for _ in range(3)]
    made = [make_appointment(doctor, patient, f"2030-03-01T1{n}:00")["id"] for n, patient in enumerate(patients)]
    pairs = [(made[n % 3], made[(n + 1) % 3]) for n in range(6)]
    statuses = at_once(
        *(
            lambda a=a, b=b: Client(app, admin.token).post("/appointment/swap", {"first": a, "second": b})
            for a, b in [*pairs, *((b, a) for a, b in pairs)]
        )
    )
    assert {one.status_code for one in statuses} == {200}
    assert sorted(times(admin, *made)) == ["10:00", "11:00", "12:00"]
