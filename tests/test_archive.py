"""DELETE archives records, which can be restored. Only `flask purge` erases records, with all that belongs to them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from client import Client, assert_refused, at_once, run_cli
from factories import hours_ago, make_appointment, make_patient, make_report, picture
from flask import Flask
from sql import count, sql

from server.database import db

KINDS = ("user", "patient", "appointment", "reports")


def make(kind: str, doctor: Client) -> str:
    """The address of a new record of this kind; for a user, of the doctor."""
    if kind == "user":
        return f"/user/{doctor.user['id']}"
    patient = make_patient(doctor)["id"]
    if kind == "patient":
        return f"/patient/{patient}"
    made = (make_appointment if kind == "appointment" else make_report)(doctor, patient)
    return f"/{kind}/{made['id']}"


def purge(app: Flask, *options: str) -> str:
    code, said = run_cli(app, "purge", *options)
    assert code == 0, said
    return said


# --- Archive and restore ---


@pytest.mark.parametrize("kind", KINDS)
def test_an_archived_record_is_none_until_it_is_restored(admin: Client, doctor: Client, kind: str) -> None:
    address = make(kind, doctor)
    before = admin.get(address).json
    assert admin.delete(address).status_code == 200
    assert admin.get(address).status_code == 404
    assert admin.delete(address).status_code == 404
    assert admin.patch(address, {}).status_code == 404
    restored = admin.post(f"{address}/restore")
    assert restored.status_code == 200
    own = {"version", "updated_at", "images"}  # links are made anew
    assert {k: v for k, v in restored.json.items() if k not in own} == {k: v for k, v in before.items() if k not in own}
    assert admin.get(address).status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_that_is_not_archived_cannot_be_restored(admin: Client, doctor: Client, kind: str) -> None:
    address = make(kind, doctor)
    assert admin.post(f"{address}/restore").status_code == 409
    assert admin.get(address).json["version"] == 1


def test_a_record_that_never_was_cannot_be_restored(admin: Client) -> None:
    assert admin.post("/patient/7/restore").status_code == 404


@pytest.mark.parametrize("kind", KINDS)
def test_a_doctor_cannot_restore(admin: Client, doctor: Client, other_doctor: Client, kind: str) -> None:
    address = make(kind, doctor)
    admin.delete(address)
    assert other_doctor.post(f"{address}/restore").status_code == 403


def test_reports_and_appointments_go_with_their_patient_and_come_back(admin: Client, doctor: Client) -> None:
    patient, other = make_patient(doctor)["id"], make_patient(doctor)["id"]
    report = make_report(doctor, patient, picture(), picture("JPEG"))
    past = make_appointment(doctor, patient, hours_ago(3), status="completed")
    make_report(doctor, other)
    admin.delete(f"/patient/{patient}")
    assert [one["patient_id"] for one in doctor.get("/reports").json] == [other]
    assert doctor.get("/appointment").json == []
    admin.post(f"/patient/{patient}/restore")
    back = doctor.get(f"/reports/{report['id']}").json
    assert [image["id"] for image in back["images"]] == [image["id"] for image in report["images"]]
    assert doctor.get(f"/appointment/{past['id']}").json["status"] == "completed"


def test_only_what_was_archived_with_the_patient_comes_back_with_it(admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    mistake, report = make_report(doctor, patient), make_report(doctor, patient)
    doctor.delete(f"/reports/{mistake['id']}")
    admin.delete(f"/patient/{patient}")
    admin.post(f"/patient/{patient}/restore")
    assert [one["id"] for one in doctor.get("/reports").json] == [report["id"]]
    assert admin.post(f"/reports/{mistake['id']}/restore").status_code == 200


def test_an_archived_patients_appointments_to_come_are_cancelled(admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    coming, past = make_appointment(doctor, patient), make_appointment(doctor, patient, hours_ago(3))
    admin.delete(f"/patient/{patient}")
    make_appointment(doctor, make_patient(doctor)["id"])  # the slot is free
    admin.post(f"/patient/{patient}/restore")
    assert doctor.get(f"/appointment/{coming['id']}").json["status"] == "cancelled"
    assert doctor.get(f"/appointment/{past['id']}").json["status"] == "scheduled"


@pytest.mark.parametrize("kind", ["appointment", "reports"])
def test_what_an_archived_patient_had_cannot_come_back_without_them(admin: Client, doctor: Client, kind: str) -> None:
    address = make(kind, doctor)
    admin.delete(address)
    admin.delete("/patient/1")
    refused = admin.post(f"{address}/restore")
    assert refused.status_code == 409
    assert refused.json["msg"] == "Patient 1 is archived. Restore the patient first."
    assert admin.get(address).status_code == 404


def test_a_patient_whose_past_slot_was_given_away_cannot_come_back_and_it_is_said_why(
    admin: Client, doctor: Client
) -> None:
    patient = make_patient(doctor)["id"]
    make_appointment(doctor, patient, hours_ago(3))
    admin.delete(f"/patient/{patient}")
    taker = make_appointment(doctor, make_patient(doctor)["id"], hours_ago(3))
    refused = admin.post(f"/patient/{patient}/restore")
    assert refused.status_code == 409
    assert f"The doctor has appointment {taker['id']} " in refused.json["msg"]
    assert admin.get(f"/patient/{patient}").status_code == 404


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_who_restores_a_patient_waits_for_their_doctors_first(app: Flask, admin: Client, doctor: Client) -> None:
    """As a booking does. Were the patient locked already, the booking and the restoring would wait for each other."""
    patient = make_patient(doctor)["id"]
    make_appointment(doctor, patient, hours_ago(3))
    admin.delete(f"/patient/{patient}")
    with app.app_context(), ThreadPoolExecutor(1) as apart:
        with db.engine.begin() as booking:
            booking.exec_driver_sql(f"SELECT id FROM users WHERE id = {doctor.user['id']} FOR NO KEY UPDATE")
            restoring = apart.submit(admin.post, f"/patient/{patient}/restore")
            with pytest.raises(TimeoutError):
                restoring.result(0.5)
            booking.exec_driver_sql(f"SELECT id FROM patients WHERE id = {patient} FOR NO KEY UPDATE NOWAIT")
        assert restoring.result(10).status_code == 200


@pytest.mark.parametrize("gone", ["patient", "user"])
def test_nobody_is_booked_whose_archiving_is_under_way(app: Flask, admin: Client, doctor: Client, gone: str) -> None:
    body = {"patient_id": make_patient(doctor)["id"], "user_id": doctor.user["id"]}
    with app.app_context(), ThreadPoolExecutor(1) as apart:
        with db.engine.begin() as archiving:
            archived = f"deleted_at = '2026-01-01 00:00:00.000000' WHERE id = {body[f'{gone}_id']}"
            archiving.exec_driver_sql(f"UPDATE {gone}s SET {archived}")
            booking = apart.submit(admin.post, "/appointment", {**body, "appointment_datetime": "2030-03-01T10:00"})
            with pytest.raises(TimeoutError):
                booking.result(0.5)
        assert_refused(booking.result(10), 422, f"{gone}_id")
    assert count(app, "appointments") == 0


def test_a_user_with_appointments_to_come_cannot_be_archived(admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    make_appointment(doctor, patient, hours_ago(3))
    make_appointment(doctor, patient, "2030-03-01T10:00")
    make_appointment(doctor, patient, "2030-03-01T11:00", status="cancelled")
    make_appointment(doctor, patient, "2030-03-01T12:00", status="pending")
    refused = admin.delete(f"/user/{doctor.user['id']}")
    assert refused.status_code == 409
    assert "still has 2 appointments to come" in refused.json["msg"]
    doctor.patch("/appointment/2", {"status": "cancelled"})
    doctor.delete("/appointment/4")
    assert admin.delete(f"/user/{doctor.user['id']}").status_code == 200


def test_an_archived_doctor_gets_no_appointments_to_come(admin: Client, doctor: Client, other_doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    make_appointment(doctor, patient, status="cancelled")
    doctor.delete(f"/appointment/{make_appointment(doctor, patient, '2030-03-01T11:00')['id']}")
    past = make_appointment(doctor, patient, hours_ago(3))["id"]
    admin.delete(f"/user/{doctor.user['id']}")
    assert admin.patch("/appointment/1", {"status": "scheduled"}).status_code == 409
    assert admin.post("/appointment/2/restore").status_code == 409
    assert admin.patch(f"/appointment/{past}", {"appointment_datetime": "2030-03-01T12:00"}).status_code == 409
    assert admin.patch(f"/appointment/{past}", {"status": "completed"}).status_code == 200
    given = admin.patch("/appointment/1", {"status": "scheduled", "user_id": other_doctor.user["id"]})
    assert given.status_code == 200


def test_a_patient_who_is_archived_while_others_book_keeps_no_appointment(
    app: Flask, admin: Client, doctor: Client
) -> None:
    patient = make_patient(doctor)["id"]

    def book(hour: int) -> int:
        body = {"patient_id": patient, "appointment_datetime": f"2030-03-01T{hour:02}:00"}
        return Client(app, doctor.token).post("/appointment", body).status_code

    def archive() -> int:
        return Client(app, admin.token).delete(f"/patient/{patient}").status_code

    statuses = sorted(at_once(archive, *((lambda hour=hour: book(hour)) for hour in range(8, 16))))
    assert set(statuses) <= {200, 201, 422}
    assert statuses.count(200) == 1
    assert sql(app, "SELECT id FROM appointments WHERE deleted_at IS NULL") == []


def test_a_patient_is_archived_while_their_appointments_are_changed(app: Flask, admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    mine = [make_appointment(doctor, patient, f"2030-03-01T{hour:02}:00")["id"] for hour in range(8, 14)]

    def change(appointment: int) -> int:
        return Client(app, doctor.token).patch(f"/appointment/{appointment}", {"reason": "Fever"}).status_code

    def archive() -> int:
        return Client(app, admin.token).delete(f"/patient/{patient}").status_code

    statuses = sorted(at_once(archive, *((lambda one=one: change(one)) for one in mine)))
    assert set(statuses) <= {200, 404}
    assert sql(app, "SELECT id FROM appointments WHERE deleted_at IS NULL OR status = 'scheduled'") == []
