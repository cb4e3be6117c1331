"""Appointments: booking, moving and cancelling them."""

from collections.abc import Callable
from typing import Any

import pytest
from client import Client, assert_refused
from factories import hours_ago, make_appointment, make_patient, sign_up
from flask import Flask
from sql import snapshot

from testing.statements import counted_statements


def test_an_appointment_is_booked_read_moved_and_archived(doctor: Client) -> None:
    patient = make_patient(doctor)
    made = doctor.post("/appointment", {"patient_id": patient["id"], "appointment_datetime": "2030-03-01T10:00"})
    assert made.status_code == 201
    assert made.headers["Location"] == f"/appointment/{made.json['id']}"
    address = made.headers["Location"]
    assert doctor.get(address).json == made.json

    moved = doctor.patch(address, {"appointment_datetime": "2030-03-02T11:15", "duration_minutes": "45"})
    assert moved.status_code == 200
    assert moved.json["appointment_datetime"] == "2030-03-02T11:15:00+00:00"
    assert (moved.json["duration_minutes"], moved.json["version"]) == (45, 2)

    assert doctor.delete(address).status_code == 200
    for gone in (doctor.get(address), doctor.patch(address, {"reason": "x"}), doctor.delete(address)):
        assert_refused(gone, 404)
    assert doctor.get("/appointment").json == []


def test_what_is_not_said_of_an_appointment_has_its_default(doctor: Client) -> None:
    appointment = make_appointment(doctor, make_patient(doctor)["id"])
    assert appointment["duration_minutes"] == 30
    assert appointment["status"] == "scheduled"
    assert appointment["reason"] == ""
    assert appointment["user_id"] == doctor.user["id"]
    assert appointment["overbooked"] is False


def test_an_appointment_names_its_patient_and_its_doctor(doctor: Client) -> None:
    patient = make_patient(doctor)
    appointment = make_appointment(doctor, patient["id"])
    for shown in (appointment, doctor.get("/appointment").json[0]):
        assert shown["patient_name"] == "Amina Wanjiru"
        assert shown["doctor_name"] == "Dora Otieno"
        assert shown["patient"] == {
            name: patient[name] for name in ("id", "first_name", "last_name", "mrn", "phone_number", "date_of_birth")
        }
        assert shown["doctor"] == {"id": doctor.user["id"], "first_name": "Dora", "last_name": "Otieno"}


def test_an_appointment_shows_the_name_that_its_patient_has_now(doctor: Client) -> None:
    patient = make_patient(doctor)
    appointment = make_appointment(doctor, patient["id"])
    doctor.patch(f"/patient/{patient['id']}", {"last_name": "Kamau"})
    assert doctor.get(f"/appointment/{appointment['id']}").json["patient_name"] == "Amina Kamau"


def test_an_appointment_given_to_another_patient_has_that_name_at_once(doctor: Client) -> None:
    appointment = make_appointment(doctor, make_patient(doctor)["id"])
    other = make_patient(doctor, first_name="Baraka")
    changed = doctor.patch(f"/appointment/{appointment['id']}", {"patient_id": other["id"]})
    assert changed.json["patient_name"] == "Baraka Wanjiru"


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("No Show", "no_show"),
        ("no-show", "no_show"),
        ("CHECKED IN", "checked_in"),
        ("canceled", "cancelled"),
        ("Cancelled", "cancelled"),
        ("Pending", "pending"),
    ],
)
def test_a_status_is_read_in_the_spellings_that_people_use(doctor: Client, word: str, read: str) -> None:
    appointment = make_appointment(doctor, make_patient(doctor)["id"], hours_ago(0), status=word)
    assert appointment["status"] == read


def test_ids_may_come_as_texts(doctor: Client) -> None:
    patient = make_patient(doctor)
    appointment = make_appointment(doctor, f" {patient['id']} ", user_id=str(doctor.user["id"]), duration_minutes="15")  # type: ignore[arg-type]
    assert (appointment["patient_id"], appointment["duration_minutes"]) == (patient["id"], 15)


def test_a_whole_appointment_changed_may_be_sent_back(doctor: Client) -> None:
    appointment = make_appointment(doctor, make_patient(doctor)["id"])
    response = doctor.patch(f"/appointment/{appointment['id']}", {**appointment, "reason": "Check-up"})
    assert response.status_code == 200, response.json
    assert response.json["reason"] == "Check-up"


@pytest.mark.parametrize("minutes", [5, 480])
def test_an_appointment_lasts_from_five_minutes_to_eight_hours(doctor: Client, minutes: int) -> None:
    made = make_appointment(doctor, make_patient(doctor)["id"], duration_minutes=minutes)
    assert made["duration_minutes"] == minutes


def test_the_clinics_wall_clock_is_kept_and_shown(doctor: Client, at_home: Callable[[Client, str], Client]) -> None:
    nairobi = at_home(doctor, "Africa/Nairobi")
    appointment = make_appointment(nairobi, make_patient(nairobi)["id"], "2030-03-01T10:00")
    assert appointment["appointment_datetime"] == "2030-03-01T10:00:00+03:00"
    assert nairobi.get("/appointment").json == [appointment]


def test_a_time_that_the_clocks_jump_over_cannot_be_booked(
    doctor: Client, at_home: Callable[[Client, str], Client]
) -> None:
    berlin = at_home(doctor, "Europe/Berlin")
    booking = {"patient_id": make_patient(berlin)["id"], "appointment_datetime": "2030-03-31T02:30"}
    assert_refused(berlin.post("/appointment", booking), 422, "appointment_datetime")


def test_a_doctor_cannot_touch_the_appointment_of_another(app: Flask, doctor: Client, other_doctor: Client) -> None:
    appointment = make_appointment(doctor, make_patient(doctor)["id"])
    address, before = f"/appointment/{appointment['id']}", snapshot(app)
    assert other_doctor.get(address).status_code == 200
    assert_refused(other_doctor.patch(address, {"reason": "mine"}), 403)
    assert_refused(other_doctor.patch(address, {"user_id": other_doctor.user["id"]}), 403)
    assert_refused(other_doctor.delete(address), 403)
    assert_refused(doctor.patch(address, {"user_id": other_doctor.user["id"]}), 403)
    assert snapshot(app) == before


def test_an_administrator_books_and_moves_for_every_doctor(admin: Client, doctor: Client, other_doctor: Client) -> None:
    appointment = make_appointment(admin, make_patient(doctor)["id"], user_id=doctor.user["id"])
    assert appointment["doctor_name"] == "Dora Otieno"
    given = admin.patch(f"/appointment/{appointment['id']}", {"user_id": other_doctor.user["id"]})
    assert given.json["doctor_name"] == "Otto Otieno"


def test_nobody_is_booked_for_a_doctor_who_left(admin: Client, doctor: Client) -> None:
    neema = sign_up(admin.app, "Neema")
    admin.delete(f"/user/{neema['id']}")
    booking: dict[str, Any] = {"patient_id": make_patient(doctor)["id"], "appointment_datetime": "2030-03-01T10:00"}
    assert_refused(admin.post("/appointment", {**booking, "user_id": neema["id"]}), 422, "user_id")


def test_nobody_is_booked_for_a_doctor_whose_account_is_closed(admin: Client, doctor: Client) -> None:
    neema = sign_up(admin.app, "Neema")
    admin.patch(f"/user/{neema['id']}", {"is_active": False})
    booking: dict[str, Any] = {"patient_id": make_patient(doctor)["id"], "appointment_datetime": "2030-03-01T10:00"}
    assert_refused(admin.post("/appointment", {**booking, "user_id": neema["id"]}), 422, "user_id")


def test_the_past_appointment_of_a_doctor_who_left_is_still_read_and_changed(admin: Client, doctor: Client) -> None:
    appointment = make_appointment(doctor, make_patient(doctor)["id"], hours_ago(3))
    admin.delete(f"/user/{doctor.user['id']}")
    assert admin.get("/appointment").json[0]["doctor_name"] == "Dora Otieno"
    changed = admin.patch(f"/appointment/{appointment['id']}", {"status": "completed"})
    assert changed.status_code == 200


def test_a_list_of_appointments_takes_as_many_statements_however_long_it_is(app: Flask, doctor: Client) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T10:00")
    with counted_statements(app) as for_one:
        assert len(doctor.get("/appointment").json) == 1
    for day in range(10, 20):
        make_appointment(doctor, make_patient(doctor)["id"], f"2030-03-{day}T10:00")
    with counted_statements(app) as for_many:
        assert len(doctor.get("/appointment").json) == 11
    assert len(for_many) == len(for_one)
