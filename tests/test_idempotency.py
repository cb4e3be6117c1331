"""Idempotency-Key: a repeated request makes no second record."""

import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from client import Client, assert_refused, at_once, run_cli
from factories import files, make_appointment, make_patient, picture
from flask import Flask
from sql import as_stored, count, sql, stored_files
from werkzeug.test import TestResponse

from testing.cloudinary_double import CloudinaryDouble

KEY = {"Idempotency-Key": "3f1c7f0e-1d7e-4f57-9b8a-0d7a4c1c2b11"}
AMINA = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712345678"}


def admit(client: Client, key: str = KEY["Idempotency-Key"], **fields: Any) -> TestResponse:
    return client.post("/patients", {**AMINA, **fields}, headers={"Idempotency-Key": key})


def report(client: Client, *contents: bytes, **fields: Any) -> TestResponse:
    """A form with a boundary of its own each time."""
    form = {"patient_id": 1, **fields, "images": files(*(contents or (picture(),)))}
    return client.post("/reports", data=form, headers=KEY)


def age_keys(app: Flask, ago: timedelta) -> None:
    sql(app, "UPDATE idempotency_keys SET claimed_at = :at", at=as_stored(app, datetime.now(UTC) - ago))


def test_a_retry_is_answered_with_the_record_that_was_made(app: Flask, doctor: Client) -> None:
    first, second = admit(doctor), admit(doctor)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json == second.json
    assert first.headers["Location"] == second.headers["Location"]
    assert count(app, "patients") == 1


def test_without_a_key_two_are_made(app: Flask, doctor: Client) -> None:
    for _ in range(2):
        doctor.post("/patients", AMINA)
    assert count(app, "patients") == 2


def test_a_retry_shows_the_record_as_it_is_now(doctor: Client) -> None:
    admit(doctor)
    doctor.patch("/patient/1", {"diagnosis": "Malaria"})
    again = admit(doctor)
    assert (again.json["diagnosis"], again.headers["ETag"]) == ("Malaria", '"2"')


def test_a_retry_for_a_record_archived_meanwhile_makes_none(app: Flask, admin: Client, doctor: Client) -> None:
    admit(doctor)
    admin.delete("/patient/1")
    refused = admit(doctor)
    assert_refused(refused, 409)
    assert refused.json["msg"] == "Patient 1, made under this key, is archived or erased."
    assert count(app, "patients") == 1
    run_cli(app, "purge", "--older-than", "0h")
    assert admit(doctor).json == refused.json
    assert count(app, "patients") == 0


def test_other_content_under_the_same_key_is_refused(app: Flask, doctor: Client) -> None:
    admit(doctor)
    assert_refused(admit(doctor, first_name="Halima"), 422, "Idempotency-Key")
    assert count(app, "patients") == 1


def test_content_is_compared_by_what_it_means(doctor: Client) -> None:
    first = admit(doctor, admitted_at="2026-03-01T10:00:00Z", status="Critical")
    second = admit(doctor, status="critical", admitted_at="2026-03-01T13:00:00+03:00", diagnosis="")
    assert first.json == second.json


def test_a_key_is_good_for_one_route(doctor: Client) -> None:
    admit(doctor)
    body = {"patient_id": 1, "appointment_datetime": "2030-03-01T10:00"}
    assert_refused(doctor.post("/appointment", body, headers=KEY), 422, "Idempotency-Key")


def test_everybody_has_keys_of_their_own(doctor: Client, other_doctor: Client) -> None:
    assert admit(doctor).json["id"] != admit(other_doctor).json["id"]


def test_after_a_day_the_key_is_forgotten(app: Flask, doctor: Client) -> None:
    admit(doctor)
    age_keys(app, timedelta(hours=23, minutes=59))
    assert admit(doctor).json["id"] == 1
    age_keys(app, timedelta(hours=24, seconds=1))
    assert admit(doctor, first_name="Halima").json["id"] == 2


def test_a_purge_forgets_the_keys_that_are_older_than_a_day(app: Flask, doctor: Client) -> None:
    admit(doctor)
    age_keys(app, timedelta(hours=23, minutes=59))
    assert " 0 idempotency keys." in run_cli(app, "purge")[1]
    assert admit(doctor).json["id"] == 1
    age_keys(app, timedelta(hours=24, seconds=1))
    assert " 1 idempotency keys." in run_cli(app, "purge")[1]
    assert count(app, "idempotency_keys") == 0


def test_only_successes_are_kept(app: Flask, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    taken = make_appointment(doctor, patient)["id"]
    body = {"patient_id": patient, "appointment_datetime": "2030-03-01T10:00"}
    assert doctor.post("/appointment", body, headers=KEY).status_code == 409
    assert count(app, "idempotency_keys") == 0
    doctor.delete(f"/appointment/{taken}")
    assert doctor.post("/appointment", body, headers=KEY).status_code == 201


@pytest.mark.parametrize("key", ["", " ", "two words", "ключ", "x" * 256, "tab\there"])
def test_a_key_that_is_none_is_refused(app: Flask, doctor: Client, key: str) -> None:
    environ = {"HTTP_IDEMPOTENCY_KEY": key.encode().decode("latin-1")}
    assert_refused(doctor.post("/patients", AMINA, environ_overrides=environ), 400)
    assert count(app, "patients") == 0


def test_the_longest_key_is_taken(doctor: Client) -> None:
    assert admit(doctor, key="x" * 255).json["id"] == admit(doctor, key="x" * 255).json["id"]


def test_a_booking_that_is_retried_is_no_clash_with_itself(doctor: Client) -> None:
    body = {"patient_id": make_patient(doctor)["id"], "appointment_datetime": "2030-03-01T10:00"}
    answers = [doctor.post("/appointment", body, headers=KEY) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json == answers[1].json


def test_of_the_same_sent_many_times_at_once_one_is_made(app: Flask, doctor: Client) -> None:
    assert sorted(at_once(*[lambda: admit(Client(app, doctor.token)).status_code] * 6)) == [201] * 6
    assert count(app, "patients") == 1


# --- Reports ---


def test_a_retried_report_is_filed_once_though_its_boundary_is_new(app: Flask, doctor: Client) -> None:
    make_patient(doctor)
    first, second = report(doctor, picture(), picture("JPEG")), report(doctor, picture(), picture("JPEG"))
    assert (first.status_code, second.status_code) == (201, 201)
    assert [image["id"] for image in first.json["images"]] == [image["id"] for image in second.json["images"]]
    assert (count(app, "reports"), len(stored_files(app))) == (1, 2)


def test_a_report_with_another_image_is_other_content(doctor: Client) -> None:
    make_patient(doctor)
    report(doctor, picture(colour="red"))
    assert_refused(report(doctor, picture(colour="blue")), 422, "Idempotency-Key")


def test_a_report_whose_first_request_is_running_is_refused_for_now(
    cloud_app: Flask, cloud: CloudinaryDouble, app: Flask, doctor: Client
) -> None:
    make_patient(doctor)
    cloud.delay = 1
    answers: list[TestResponse] = []
    first = threading.Thread(target=lambda: answers.append(report(Client(cloud_app, doctor.token))))
    first.start()
    while not cloud.requests:
        time.sleep(0.01)
    second = report(Client(cloud_app, doctor.token))
    first.join()
    assert_refused(second, 409)
    assert second.headers["Retry-After"] == "2"
    assert answers[0].status_code == 201
    assert report(Client(cloud_app, doctor.token)).json["id"] == answers[0].json["id"]
    assert (count(app, "reports"), len(cloud.stored)) == (1, 1)


def test_a_report_that_the_image_store_refused_may_be_retried_at_once(
    cloud_app: Flask, cloud: CloudinaryDouble, app: Flask, doctor: Client
) -> None:
    make_patient(doctor)
    cloud.fail(1, "500")
    assert report(Client(cloud_app, doctor.token)).status_code == 502
    assert report(Client(cloud_app, doctor.token)).status_code == 201
    assert (count(app, "reports"), len(cloud.stored)) == (1, 1)


def test_after_a_crash_a_report_may_be_retried_within_ten_minutes(app: Flask, doctor: Client) -> None:
    """What the crashed request left is its key, claimed, and no report."""
    make_patient(doctor)
    report(doctor)
    sql(app, "UPDATE idempotency_keys SET record_id = NULL")
    age_keys(app, timedelta(minutes=9, seconds=50))
    assert_refused(report(doctor), 409)
    age_keys(app, timedelta(minutes=10, seconds=1))
    assert report(doctor).status_code == 201
    assert report(doctor).json["id"] == 2


def test_a_report_that_took_longer_than_its_lease_gives_way_to_its_retry(
    cloud_app: Flask, cloud: CloudinaryDouble, app: Flask, doctor: Client
) -> None:
    make_patient(doctor)
    cloud.delay = 1.5
    answers: list[TestResponse] = []
    slow = threading.Thread(target=lambda: answers.append(report(Client(cloud_app, doctor.token))))
    slow.start()
    while not cloud.requests:
        time.sleep(0.01)
    age_keys(app, timedelta(minutes=11))
    cloud.delay = 0
    retried = report(Client(cloud_app, doctor.token))
    slow.join()
    assert (retried.status_code, answers[0].status_code) == (201, 409)
    assert (count(app, "reports"), len(cloud.stored), count(app, "uploads")) == (1, 1, 0)


SENDER = """
import json, sys
from app import create_app
settings, token, key = json.loads(sys.argv[1])
client = create_app(settings).test_client()
print("ready", flush=True)
input()
body = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712345678"}
headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key}
print(client.post("/patients", json=body, headers=headers).json["id"])
"""


def test_of_the_same_sent_to_two_processes_at_once_one_is_made(app: Flask, doctor: Client) -> None:
    names = ("SECRET_KEY", "JWT_SECRET_KEY", "AUDIT_KEY", "DATABASE_URL", "INSTANCE_PATH")
    settings = {"FLASK_ENV": "testing", **{name: str(app.config[name]) for name in names}}
    given = json.dumps([settings, doctor.token, KEY["Idempotency-Key"]])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SENDER, given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in processes]
    assert said == ["1\n", "1\n"]
    assert count(app, "patients") == 1
