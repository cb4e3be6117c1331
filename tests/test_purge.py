"""`flask purge` erases what was archived long ago, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from client import Client, assert_refused, at_once, run_cli
from factories import files, make_appointment, make_patient, make_report, picture
from flask import Flask
from sql import as_stored, count, sql, stored_files

from clinic.archive import erasable, erase
from models import Patient
from server.database import db, in_transaction
from testing.cloudinary_double import CloudinaryDouble


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


def purge(app: Flask, *options: str) -> str:
    code, said = run_cli(app, "purge", *options)
    assert code == 0, said
    return said


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
        "0 images that were replaced or taken away would be erased: none",
        "0 absences would be erased: none",
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
    assert "0 images that were replaced or taken away would be erased: none\n" in said


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
