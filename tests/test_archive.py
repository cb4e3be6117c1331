"""DELETE archives records, which can be restored. Only `flask purge` erases records, with all that belongs to them."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from client import Client, assert_refused, at_once, run_cli
from factories import files, hours_ago, make_appointment, make_patient, make_report, picture
from flask import Flask
from sql import as_stored, sql, stored_files

from clinic.archive import erasable, erase
from models import Patient
from server.database import db, in_transaction
from testing.cloudinary_double import CloudinaryDouble

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


def age(app: Flask, table: str, days: int = 100) -> None:
    """As if what is archived had been so for longer; by the same for all, so that what went together stays together."""
    for (moment,) in sql(app, f"SELECT DISTINCT deleted_at FROM {table} WHERE deleted_at IS NOT NULL"):
        given = datetime.fromisoformat(moment).replace(tzinfo=UTC) if isinstance(moment, str) else moment
        then = given - timedelta(days=days)
        sql(
            app,
            f"UPDATE {table} SET deleted_at = :then WHERE deleted_at = :given",
            then=as_stored(app, then),
            given=as_stored(app, given),
        )


def age_all(app: Flask, days: int = 100) -> None:
    for table in ("users", "patients", "appointments", "reports", "images"):
        age(app, table, days)


def count(app: Flask, table: str) -> int:
    return int(sql(app, f"SELECT count(*) FROM {table}")[0][0])


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


# --- Purge ---


def test_a_purge_erases_what_was_archived_long_ago_and_nothing_else(app: Flask, admin: Client, doctor: Client) -> None:
    old, recent, live = (make_patient(doctor)["id"] for _ in range(3))
    for patient in (old, recent, live):
        make_report(doctor, patient)
        make_appointment(doctor, patient, f"2030-03-01T{10 + patient}:00")
    admin.delete(f"/patient/{old}")
    age_all(app)
    admin.delete(f"/patient/{recent}")
    said = purge(app, "--older-than", "90d")
    assert "1 patients, each with reports and appointments, erased." in said
    assert "1 images destroyed" in said
    assert [row[0] for row in sql(app, "SELECT id FROM patients ORDER BY id")] == [recent, live]
    assert (count(app, "reports"), count(app, "appointments"), count(app, "images")) == (2, 2, 2)
    assert len(stored_files(app)) == 2
    assert admin.post(f"/patient/{recent}/restore").status_code == 200
    assert admin.post(f"/patient/{old}/restore").status_code == 404


def test_a_dry_run_says_what_would_be_erased_and_erases_nothing(app: Flask, admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    make_report(doctor, patient)
    doctor.delete(f"/reports/{make_report(doctor, make_patient(doctor)['id'])['id']}")
    admin.delete(f"/patient/{patient}")
    age_all(app)
    said = purge(app, "--older-than", "90d", "--dry-run")
    assert said.splitlines() == [
        "1 patients, each with reports and appointments, would be erased: 1",
        "1 other reports, each with images, would be erased: 2",
        "0 other appointments would be erased: none",
        "0 replaced images would be erased: none",
        "0 users would be erased: none",
    ]
    assert (count(app, "patients"), count(app, "reports"), len(stored_files(app))) == (2, 2, 2)


def test_a_dry_run_counts_a_replaced_image_with_its_report_alone(app: Flask, doctor: Client) -> None:
    address = f"/reports/{make_report(doctor, make_patient(doctor)['id'])['id']}"
    doctor.patch(address, data={"images": files(picture("JPEG")), "replace_images": "true"})
    doctor.delete(address)
    age_all(app)
    said = purge(app, "--older-than", "90d", "--dry-run")
    assert "1 other reports, each with images, would be erased: 1\n" in said
    assert "0 replaced images would be erased: none\n" in said


@pytest.mark.parametrize("age", ["90", "d", "1y", "-1d", "99999w", "1.5d"])
def test_a_length_of_time_that_is_none_is_refused(app: Flask, age: str) -> None:
    code, said = run_cli(app, "purge", "--older-than", age)
    assert code == 2
    assert "90d" in said


def test_a_replaced_image_is_erased_and_its_report_stays(app: Flask, admin: Client, doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    doctor.patch(f"/reports/{report['id']}", data={"images": files(picture("JPEG")), "replace_images": "true"})
    assert len(stored_files(app)) == 2
    age_all(app)
    purge(app, "--older-than", "90d")
    assert [path.suffix for path in stored_files(app)] == [".jpeg"]
    assert len(doctor.get(f"/reports/{report['id']}").json["images"]) == 1


def test_an_erased_records_history_stays_without_its_values(app: Flask, admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor, last_name="Secretname")["id"]
    doctor.patch(f"/patient/{patient}", {"diagnosis": "Secretdiagnosis"})
    make_report(doctor, patient, diagnosis="Secretfinding")
    admin.delete(f"/patient/{patient}")
    age_all(app)
    purge(app, "--older-than", "90d")
    told = admin.get("/audit?kind=patient").json
    assert [(entry["action"], entry["changes"]) for entry in told] == [
        ("purge", None),
        ("archive", None),
        ("change", None),
        ("create", None),
    ]
    assert admin.get(f"/patient/{patient}/history").status_code == 404
    everything = "".join(str(row) for row in sql(app, "SELECT * FROM audit_entries"))
    assert "Secret" not in everything
    assert run_cli(app, "audit", "verify") == (0, "The history is whole.\n")


def test_an_erased_users_sign_ins_keep_no_email(app: Flask, admin: Client, doctor: Client) -> None:
    Client(app).post("/login", {"email": doctor.user["email"], "password": "not the right one"})
    admin.delete(f"/user/{doctor.user['id']}")
    Client(app).post("/login", {"email": doctor.user["email"], "password": "the account is archived"})
    age_all(app)
    purge(app, "--older-than", "90d")
    assert count(app, "users") == 1
    assert "dora@clinic.test" not in "".join(str(row) for row in sql(app, "SELECT * FROM audit_entries"))
    assert "ada@clinic.test" in str(admin.get("/audit?kind=sign-in").json)
    assert run_cli(app, "audit", "verify") == (0, "The history is whole.\n")


def test_a_user_who_is_referred_to_stays(app: Flask, admin: Client, doctor: Client, other_doctor: Client) -> None:
    make_report(doctor, make_patient(doctor)["id"])
    admin.delete(f"/user/{doctor.user['id']}")
    admin.delete(f"/user/{other_doctor.user['id']}")
    age_all(app)
    assert "1 users erased." in purge(app, "--older-than", "90d")
    assert [row[0] for row in sql(app, "SELECT id FROM users ORDER BY id")] == [admin.user["id"], doctor.user["id"]]
    assert admin.get("/reports/1").json["doctor_name"] == "Dora Otieno"


def test_a_user_whose_records_were_archived_of_late_stays(app: Flask, admin: Client, doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    doctor.delete(f"/reports/{report['id']}")
    admin.delete(f"/user/{doctor.user['id']}")
    age(app, "users", 100)
    age(app, "reports", 10)
    said = purge(app, "--older-than", "90d")
    assert "0 users erased." in said
    assert (count(app, "users"), count(app, "reports")) == (2, 1)


def test_a_user_who_has_an_idempotency_key_is_erased_with_it(app: Flask, admin: Client, doctor: Client) -> None:
    body = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712345678"}
    assert doctor.post("/patients", body, headers={"Idempotency-Key": "a-key-of-hers"}).status_code == 201
    admin.delete(f"/user/{doctor.user['id']}")
    age_all(app)
    assert "1 users erased." in purge(app, "--older-than", "90d")
    assert count(app, "idempotency_keys") == 0


def test_a_user_whose_last_records_are_erased_goes_with_the_same_purge(
    app: Flask, admin: Client, doctor: Client
) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    doctor.delete(f"/reports/{report['id']}")
    admin.delete(f"/user/{doctor.user['id']}")
    age_all(app)
    assert "1 users erased." in purge(app, "--older-than", "90d")


def test_no_id_is_given_again_after_a_purge(app: Flask, admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    admin.delete(f"/patient/{patient}")
    age_all(app)
    purge(app, "--older-than", "90d")
    assert make_patient(doctor)["id"] == patient + 1


def test_images_on_cloudinary_are_destroyed_there(
    app: Flask, cloud_app: Flask, cloud: CloudinaryDouble, admin: Client, doctor: Client
) -> None:
    there = Client(cloud_app, doctor.token, doctor.user)
    gone, stays = (make_report(there, make_patient(doctor)["id"]) for _ in range(2))
    there.delete(f"/reports/{gone['id']}")
    age_all(app)
    assert "1 images destroyed" in purge(cloud_app, "--older-than", "90d")
    (kept,) = sql(app, "SELECT public_id, report_id FROM images")
    assert set(cloud.stored) == {kept.public_id}
    assert kept.report_id == stays["id"]


def test_a_purge_whose_image_store_fails_is_completed_by_the_next(
    app: Flask, cloud_app: Flask, cloud: CloudinaryDouble, admin: Client, doctor: Client
) -> None:
    there = Client(cloud_app, doctor.token, doctor.user)
    report = make_report(there, make_patient(doctor)["id"], picture(), picture("JPEG"))
    there.delete(f"/reports/{report['id']}")
    age_all(app)
    cloud.fail(2, "500", "destroy")
    code, said = run_cli(cloud_app, "purge", "--older-than", "90d")
    assert code == 1
    assert "Run this again later." in said
    assert len(cloud.stored) == 1
    assert "1 images destroyed" in purge(cloud_app)
    assert (len(cloud.stored), count(app, "uploads")) == (0, 0)


def run_apart(app: Flask, *arguments: str, cloud: CloudinaryDouble) -> subprocess.Popen[bytes]:
    """A `flask` command in a process of its own."""
    settings: dict[str, Any] = {
        name: app.config[name]
        for name in ("SECRET_KEY", "JWT_SECRET_KEY", "AUDIT_KEY", "DATABASE_URL", "INSTANCE_PATH")
    }
    account = f"{cloud.api_key}:{cloud.api_secret}@{cloud.cloud_name}"
    settings |= {"CLOUDINARY_URL": f"cloudinary://{account}", "CLOUDINARY_UPLOAD_PREFIX": cloud.url}
    environment = {**os.environ, "FLASK_APP": "app.py", "FLASK_ENV": "development"}
    return subprocess.Popen(
        [sys.executable, "-m", "flask", *arguments],
        env=environment | {name: str(value) for name, value in settings.items()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_purge_that_is_killed_half_way_is_completed_by_the_next(
    app: Flask, cloud_app: Flask, cloud: CloudinaryDouble, admin: Client, doctor: Client
) -> None:
    there = Client(cloud_app, doctor.token, doctor.user)
    for _ in range(2):
        patient = make_patient(doctor)["id"]
        make_report(there, patient, picture(), picture("JPEG"))
        admin.delete(f"/patient/{patient}")
    age_all(app)
    cloud.fail(2, "hang", "destroy")
    process = run_apart(cloud_app, "purge", "--older-than", "90d", cloud=cloud)
    until = time.monotonic() + 30
    while sum(call.action == "destroy" for call in cloud.requests) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(cloud.stored) == 3
    assert "3 images destroyed" in purge(cloud_app, "--older-than", "90d")
    assert (len(cloud.stored), count(app, "patients"), count(app, "images"), count(app, "uploads")) == (0, 0, 0, 0)
    assert run_cli(app, "audit", "verify") == (0, "The history is whole.\n")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_patient_whose_records_others_hold_for_long_is_archived_another_time(
    app: Flask, admin: Client, doctor: Client
) -> None:
    patient = make_patient(doctor)["id"]
    make_appointment(doctor, patient)
    with app.app_context(), db.engine.begin() as other:
        other.exec_driver_sql("SELECT * FROM appointments FOR UPDATE")
        refused = admin.delete(f"/patient/{patient}")
    assert_refused(refused, 409)
    assert int(refused.headers["Retry-After"]) > 0
    assert admin.delete(f"/patient/{patient}").status_code == 200


def test_what_is_restored_while_a_purge_runs_is_not_erased(app: Flask, admin: Client, doctor: Client) -> None:
    """The purge has its list already when the patient comes back, whole; the other one is erased, whole."""
    patients = [make_patient(doctor)["id"] for _ in range(2)]
    for patient in patients:
        make_report(doctor, patient)
        admin.delete(f"/patient/{patient}")
    age_all(app)
    with app.app_context():
        before = datetime.now(UTC) - timedelta(days=90)
        assert list(db.session.scalars(erasable(Patient, before))) == patients
        db.session.rollback()
        assert admin.post(f"/patient/{patients[0]}/restore").status_code == 200
        erased = [in_transaction(lambda one=one: erase(Patient, one, before)) for one in patients]
    assert erased == [False, True]
    assert [one["patient_id"] for one in doctor.get("/reports").json] == patients[:1]


def test_what_a_crash_left_in_the_store_is_swept_after_an_hour(app: Flask, doctor: Client) -> None:
    make_report(doctor, make_patient(doctor)["id"])
    left = stored_files(app)[0].with_name(f"{'0' * 40}.png")
    left.parent.parent.joinpath("00").mkdir()
    left = left.parent.parent / "00" / left.name
    left.write_bytes(picture())
    sql(
        app,
        "INSERT INTO uploads (public_id, store, started_at) VALUES (:id, 'the local disk', :at)",
        id="0" * 40,
        at=as_stored(app, datetime.now(UTC) - timedelta(minutes=59)),
    )
    assert "0 images destroyed" in purge(app)
    sql(app, "UPDATE uploads SET started_at = :at", at=as_stored(app, datetime.now(UTC) - timedelta(minutes=61)))
    assert "1 images destroyed" in purge(app)
    assert not left.exists()
    assert len(stored_files(app)) == 1


def test_a_report_whose_images_were_swept_while_they_were_sent_is_not_filed(
    app: Flask, cloud_app: Flask, cloud: CloudinaryDouble, doctor: Client
) -> None:
    there = Client(cloud_app, doctor.token, doctor.user)
    patient = make_patient(doctor)["id"]
    cloud.delay = 2

    def file() -> int:
        return there.post("/reports", data={"patient_id": patient, "images": files(picture())}).status_code

    def sweep() -> int:
        while not any(call.action == "upload" for call in cloud.requests):
            time.sleep(0.01)
        sql(app, "UPDATE uploads SET started_at = :at", at=as_stored(app, datetime.now(UTC) - timedelta(hours=2)))
        purge(cloud_app)
        return 0

    assert sorted(at_once(file, sweep)) == [0, 502]
    assert (len(cloud.stored), count(app, "reports"), count(app, "uploads")) == (0, 0, 0)


def test_a_report_whose_images_a_sweep_has_just_claimed_is_not_filed(
    app: Flask, cloud_app: Flask, cloud: CloudinaryDouble, doctor: Client
) -> None:
    """The sweep is about to destroy them: had the report them, it would be left without."""
    there = Client(cloud_app, doctor.token, doctor.user)
    patient = make_patient(doctor)["id"]
    cloud.delay = 1

    def file() -> int:
        return there.post("/reports", data={"patient_id": patient, "images": files(picture())}).status_code

    def claim() -> int:
        while not any(call.action == "upload" for call in cloud.requests):
            time.sleep(0.01)
        sql(app, "UPDATE uploads SET claimed_at = started_at")
        return 0

    assert sorted(at_once(file, claim)) == [0, 502]
    assert (len(cloud.stored), count(app, "reports"), count(app, "uploads")) == (0, 0, 0)
