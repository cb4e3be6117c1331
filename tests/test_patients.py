"""Patients: admitting, changing and discharging them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from client import Client, assert_refused
from factories import hours_ago, make_appointment, make_patient, make_report
from flask import Flask
from sql import snapshot

from testing.statements import counted_statements


def test_a_patient_is_created_read_changed_and_archived(admin: Client, doctor: Client) -> None:
    made = doctor.post("/patients", {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712 345 678"})
    assert made.status_code == 201
    assert made.headers["Location"] == f"/patient/{made.json['id']}"
    assert made.headers["ETag"] == '"1"'

    address = f"/patient/{made.json['id']}"
    assert doctor.get(address).json == made.json

    changed = doctor.patch(address, {"status": "Critical", "diagnosis": "Malaria"})
    assert changed.status_code == 200
    assert (changed.json["status"], changed.json["diagnosis"], changed.json["version"]) == ("critical", "Malaria", 2)

    assert admin.delete(address).status_code == 200
    assert doctor.get(address).status_code == 404
    assert doctor.get("/patients").json == []


def test_what_is_not_said_of_a_patient_has_its_default(doctor: Client) -> None:
    patient = make_patient(doctor)
    assert patient["status"] == "admitted"
    assert (patient["doctor_summary"], patient["diagnosis"]) == ("", "")
    assert datetime.now(UTC) - datetime.fromisoformat(patient["admitted_at"]) < timedelta(minutes=1)
    for unknown in ("discharged_at", "date_of_birth", "sex"):
        assert patient[unknown] is None
    assert make_patient(doctor, status="outpatient")["admitted_at"] is None


def test_everything_that_is_said_of_a_patient_is_kept(doctor: Client) -> None:
    said = {
        "first_name": "Núria",
        "last_name": "O’Connor-Ὀδυσσεύς",
        "phone_number": "+34 (600) 12.34-56 ext. 7",
        "status": "outpatient",
        "doctor_summary": "Sees well.\nWants a letter. 👓",
        "diagnosis": 'H52.1 — myopia; O\'Brien "test" %s {0} \\',
        "admitted_at": "2026-03-01T10:00:00+00:00",
        "discharged_at": "2026-03-02T11:30:00+00:00",
        "date_of_birth": "1984-02-29",
        "sex": "female",
    }
    patient = make_patient(doctor, **said)
    read = doctor.get(f"/patient/{patient['id']}").json
    assert {name: read[name] for name in said} == said


def test_spaces_around_a_text_are_dropped(doctor: Client) -> None:
    assert make_patient(doctor, first_name="  Amina \n")["first_name"] == "Amina"


def test_texts_as_long_as_they_may_be_are_kept(doctor: Client) -> None:
    patient = make_patient(doctor, first_name="é" * 100, diagnosis="é" * 20_000)
    assert doctor.get(f"/patient/{patient['id']}").json["diagnosis"] == "é" * 20_000


def test_every_patient_has_a_medical_record_number_with_a_check_digit(doctor: Client) -> None:
    numbers = {make_patient(doctor)["mrn"] for _ in range(5)}
    assert len(numbers) == 5
    for number in numbers:
        assert len(number) == 10
        assert is_iso_7064_mod_11_10(number)


def is_iso_7064_mod_11_10(digits: str) -> bool:
    """ISO 7064 section 7, as the standard says how a string is checked: the sum ends at 1, modulo 10."""
    product = 10
    for digit in digits[:-1]:
        product = ((product + int(digit)) % 10 or 10) * 2 % 11
    return (product + int(digits[-1])) % 10 == 1


def test_two_patients_may_share_a_phone(doctor: Client) -> None:
    mother, child = make_patient(doctor), make_patient(doctor, first_name="Baraka")
    assert mother["phone_number"] == child["phone_number"]
    assert mother["id"] != child["id"]


@pytest.mark.parametrize("word", ["Admitted", " ADMITTED ", "admitted"])
def test_a_status_is_read_whatever_its_case(doctor: Client, word: str) -> None:
    assert make_patient(doctor, status=word)["status"] == "admitted"


def test_a_patient_born_today_is_welcome(doctor: Client) -> None:
    today = datetime.now(UTC).date().isoformat()
    assert make_patient(doctor, date_of_birth=today)["date_of_birth"] == today


def test_a_birthday_may_come_as_a_browser_writes_it(doctor: Client) -> None:
    assert make_patient(doctor, date_of_birth="1984-02-29T00:00:00.000Z")["date_of_birth"] == "1984-02-29"


def test_a_birthday_as_a_browser_at_the_clinic_writes_its_midnight_is_read(
    doctor: Client, at_home: Callable[[Client, str], Client]
) -> None:
    there = at_home(doctor, "Africa/Nairobi")
    assert make_patient(there, date_of_birth="1984-02-28T21:00:00.000Z")["date_of_birth"] == "1984-02-29"
    assert_refused(there.patch("/patient/1", {"date_of_birth": "1984-02-28T20:00:00.000Z"}), 422, "date_of_birth")


def test_what_was_not_filled_in_in_a_form_is_null(doctor: Client) -> None:
    blank = {"admitted_at": "", "discharged_at": "", "date_of_birth": "", "sex": ""}
    patient = make_patient(doctor, **blank, status="outpatient")
    assert {name: patient[name] for name in blank} == dict.fromkeys(blank)
    doctor.patch("/patient/1", {"sex": "female"})
    assert doctor.patch("/patient/1", {"sex": ""}).json["sex"] is None


def test_a_discharge_at_the_minute_of_admission_is_possible(doctor: Client) -> None:
    patient = make_patient(doctor, admitted_at="2026-03-01T10:00Z", discharged_at="2026-03-01T13:00+03:00")
    assert patient["discharged_at"] == patient["admitted_at"] == "2026-03-01T10:00:00+00:00"


def test_a_discharge_before_admission_is_refused_whatever_offsets_they_are_written_in(doctor: Client) -> None:
    stay = {"admitted_at": "2026-03-01T10:00:00Z", "discharged_at": "2026-03-01T12:59:00+03:00"}
    refused = doctor.post("/patients", {"first_name": "A", "last_name": "B", "phone_number": "0712", **stay})
    assert_refused(refused, 422, "discharged_at")


def test_a_stay_may_be_moved_as_a_whole_past_its_old_end(doctor: Client) -> None:
    patient = make_patient(doctor, admitted_at="2026-03-01", discharged_at="2026-03-02")
    moved = doctor.patch(f"/patient/{patient['id']}", {"admitted_at": "2026-04-01", "discharged_at": "2026-04-02"})
    assert moved.status_code == 200


def test_what_may_be_unknown_can_be_made_unknown_again(doctor: Client) -> None:
    patient = make_patient(doctor, sex="male", date_of_birth="1984-02-29", admitted_at="2026-03-01")
    unknown = {"sex": None, "date_of_birth": None, "admitted_at": None}
    changed = doctor.patch(f"/patient/{patient['id']}", unknown).json
    assert {name: changed[name] for name in unknown} == unknown


def test_a_whole_record_changed_may_be_sent_back(doctor: Client) -> None:
    patient = make_patient(doctor)
    response = doctor.patch(f"/patient/{patient['id']}", {**patient, "last_name": "Kamau"})
    assert response.status_code == 200
    assert response.json["last_name"] == "Kamau"


def test_what_the_server_owns_is_ignored_in_a_change(doctor: Client) -> None:
    patient = make_patient(doctor)
    forged = {"id": 9, "mrn": "1", "version": 9, "created_at": "2001-01-01", "updated_at": None, "last_name": "Kamau"}
    changed = doctor.patch(f"/patient/{patient['id']}", forged).json
    owned = ("id", "mrn", "created_at")
    assert [changed[name] for name in owned] == [patient[name] for name in owned]
    assert (changed["version"], changed["last_name"]) == (2, "Kamau")
    assert datetime.fromisoformat(changed["updated_at"]) > datetime.fromisoformat(patient["updated_at"])


def test_a_change_of_nothing_makes_no_new_version(doctor: Client) -> None:
    patient = make_patient(doctor)
    response = doctor.patch(f"/patient/{patient['id']}", {"first_name": patient["first_name"]})
    assert response.json == patient
    assert response.headers["ETag"] == '"1"'


def test_an_archived_patient_is_nowhere(app: Flask, admin: Client, doctor: Client) -> None:
    patient, stays = make_patient(doctor), make_patient(doctor, first_name="Baraka")
    admin.delete(f"/patient/{patient['id']}")
    before = snapshot(app)
    for client in (doctor, admin):
        assert_refused(client.get(f"/patient/{patient['id']}"), 404)
        assert_refused(client.patch(f"/patient/{patient['id']}", {"diagnosis": "x"}), 404)
        assert [one["id"] for one in client.get("/patients").json] == [stays["id"]]
    assert_refused(admin.delete(f"/patient/{patient['id']}"), 404)
    booking = {"patient_id": patient["id"], "appointment_datetime": "2031-01-01T10:00"}
    assert_refused(doctor.post("/appointment", booking), 422, "patient_id")
    assert snapshot(app) == before


def test_reports_and_appointments_are_archived_with_their_patient(admin: Client, doctor: Client) -> None:
    patient, stays = make_patient(doctor), make_patient(doctor, first_name="Baraka")
    gone = [f"/appointment/{make_appointment(doctor, patient['id'])['id']}"]
    gone += [f"/reports/{make_report(doctor, patient['id'])['id']}"]
    appointment = make_appointment(doctor, stays["id"], "2030-03-02T10:00")
    report = make_report(doctor, stays["id"])

    admin.delete(f"/patient/{patient['id']}")

    for address in gone:
        assert_refused(doctor.get(address), 404)
    assert [one["id"] for one in doctor.get("/appointment").json] == [appointment["id"]]
    assert [one["id"] for one in doctor.get("/reports").json] == [report["id"]]


def test_the_future_appointments_of_an_archived_patient_are_cancelled(
    app: Flask, admin: Client, doctor: Client
) -> None:
    patient = make_patient(doctor)
    yesterday = hours_ago(23)
    for at, status in [
        (yesterday, "scheduled"),
        ("2030-03-01T10:00", "confirmed"),
        ("2030-03-02T10:00", "cancelled"),
    ]:
        make_appointment(doctor, patient["id"], at, status=status)

    admin.delete(f"/patient/{patient['id']}")

    with app.app_context(), app.extensions["sqlalchemy"].engine.begin() as connection:
        kept = connection.exec_driver_sql("SELECT status FROM appointments ORDER BY id").scalars().all()
    assert kept == ["scheduled", "cancelled", "cancelled"]


def test_an_archived_patient_takes_no_doctors_future_with_it(admin: Client, doctor: Client) -> None:
    """Its cancelled appointments no longer keep the doctor's account open."""
    patient = make_patient(doctor)
    make_appointment(doctor, patient["id"])
    admin.delete(f"/patient/{patient['id']}")
    assert admin.delete(f"/user/{doctor.user['id']}").status_code == 200


def test_times_are_shown_in_the_clinics_offset(doctor: Client, at_home: Callable[[Client, str], Client]) -> None:
    nairobi = at_home(doctor, "Africa/Nairobi")
    patient = make_patient(nairobi, admitted_at="2027-03-01T07:00:00Z")
    assert patient["admitted_at"] == "2027-03-01T10:00:00+03:00"
    assert patient["created_at"].endswith("+03:00")
    assert doctor.get(f"/patient/{patient['id']}").json["admitted_at"] == "2027-03-01T07:00:00+00:00"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("2027-03-01T10:00", "2027-03-01T10:00:00+03:00"),
        ("2027-03-01", "2027-03-01T00:00:00+03:00"),
        ("2027-03-01T10:00:00.250Z", "2027-03-01T13:00:00.250000+03:00"),
        ("2027-03-01T10:00:00-05:00", "2027-03-01T18:00:00+03:00"),
        ("20270301T100000+0300", "2027-03-01T10:00:00+03:00"),
    ],
)
def test_a_time_without_an_offset_is_the_clinics(
    doctor: Client, at_home: Callable[[Client, str], Client], written: str, shown: str
) -> None:
    patient = make_patient(at_home(doctor, "Africa/Nairobi"), admitted_at=written)
    assert patient["admitted_at"] == shown


def test_a_time_that_the_clocks_jump_over_is_refused(doctor: Client, at_home: Callable[[Client, str], Client]) -> None:
    berlin = at_home(doctor, "Europe/Berlin")  # on 28 March 2027 two o'clock is followed by three
    patient = make_patient(berlin)
    refused = berlin.patch(f"/patient/{patient['id']}", {"admitted_at": "2027-03-28T02:30"})
    assert_refused(refused, 422, "admitted_at")
    assert make_patient(berlin, admitted_at="2027-03-28T03:00")["admitted_at"] == "2027-03-28T03:00:00+02:00"


def test_a_day_whose_midnight_the_clocks_jump_over_begins_at_one(
    doctor: Client, at_home: Callable[[Client, str], Client]
) -> None:
    cairo = at_home(doctor, "Africa/Cairo")  # on 30 April 2027 midnight is one o'clock
    patient = make_patient(cairo, admitted_at="2027-04-30")
    assert patient["admitted_at"] == "2027-04-30T01:00:00+03:00"
    assert len(cairo.get("/patients?admitted_from=2027-04-30&admitted_to=2027-04-30").json) == 1
    assert_refused(cairo.patch(f"/patient/{patient['id']}", {"admitted_at": "2027-04-30T00:00"}), 422, "admitted_at")


@pytest.mark.parametrize("sign", ["\0", "é", "_", "TT"])
def test_date_and_time_are_told_apart_as_iso_8601_has_it(doctor: Client, sign: str) -> None:
    patient = make_patient(doctor)
    for field in ("admitted_at", "date_of_birth"):
        for written in (f"1990-05-31{sign}00:00", f"1990-05-31T00:00{sign}"):
            assert_refused(doctor.patch(f"/patient/{patient['id']}", {field: written}), 422, field)


def test_an_hour_that_comes_twice_is_read_as_its_first(
    doctor: Client, at_home: Callable[[Client, str], Client]
) -> None:
    berlin = at_home(doctor, "Europe/Berlin")  # on 25 October 2026 half past two comes twice
    assert make_patient(berlin, admitted_at="2026-10-25T02:30")["admitted_at"] == "2026-10-25T02:30:00+02:00"
    assert make_patient(berlin, admitted_at="2026-10-25T02:30+01:00")["admitted_at"] == "2026-10-25T02:30:00+01:00"


def test_a_list_of_patients_takes_as_many_statements_however_long_it_is(app: Flask, doctor: Client) -> None:
    make_patient(doctor)
    with counted_statements(app) as for_one:
        assert len(doctor.get("/patients").json) == 1
    for _ in range(11):
        make_patient(doctor)
    with counted_statements(app) as for_twelve:
        assert len(doctor.get("/patients").json) == 12
    assert len(for_twelve) == len(for_one)


def test_archiving_a_patient_of_many_appointments_reads_them_at_once(app: Flask, admin: Client, doctor: Client) -> None:
    def selects(appointments: int) -> int:
        patient = make_patient(doctor)
        for hour in range(appointments):
            make_appointment(doctor, patient["id"], f"2030-0{appointments}-02T{10 + hour}:00")
        with counted_statements(app) as statements:
            assert admin.delete(f"/patient/{patient['id']}").status_code == 200
        return sum(statement.startswith("SELECT") for statement in statements)

    assert selects(1) == selects(5)


def test_a_time_that_is_taken_may_be_sent_back(doctor: Client) -> None:
    """The year counts as it is answered, at the clinic, not only as it was typed."""
    body = {"first_name": "A", "last_name": "B", "phone_number": "0712345678"}
    assert doctor.post("/patients", {**body, "admitted_at": "2199-12-31T23:59:00-12:00"}).status_code == 422
    assert doctor.post("/patients", {**body, "admitted_at": "1850-01-01T00:00:00+14:00"}).status_code == 422
