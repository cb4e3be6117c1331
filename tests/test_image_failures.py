"""Uploads that fail: nothing is kept, in the database and in the store."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from client import Client, assert_refused, wait_until
from factories import files, make_patient, make_report, picture, reported
from flask import Flask
from sql import rows, snapshot
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from testing.cloudinary_double import CloudinaryDouble, How


def answer(url: Any) -> bytes:
    return json.dumps({"secure_url": url, "version": 1}).encode()


ODD_ANSWERS: dict[str, bytes] = {
    "no URL": answer(None),
    "no object": b"[]",
    "no JSON": b"<html>",
    "no UTF-8": b'{"secure_url": "https://\xff"}',
    "brackets 100,000 deep": b"[" * 100_000,
    "a number of 6,000 digits": b'{"version": %s}' % (b"9" * 6_000),
    "an error that is a text": b'{"error": "sorry"}',
    "an error that is an object": b'{"error": {"message": {"code": 7}}}',
    "an error of 3 MB": json.dumps({"error": {"message": "a" * 3_000_000}}).encode(),
    "a number for a URL": answer(7),
    "a list for a URL": answer(["https://res.cloudinary.com/a.png"]),
    "a URL of another kind": answer("javascript:alert(1)"),
    "a URL with NUL": answer("https://res.cloudinary.com/a\0.png"),
    "a URL with a lone surrogate": answer("https://res.cloudinary.com/a\ud800.png"),
    "a URL with a newline": answer("https://res.cloudinary.com/a.png\n"),
    "a URL with a blank": answer("https://res.cloudinary.com/a b.png"),
    "a URL with an accent": answer("https://res.cloudinary.com/é.png"),
    "a URL of 3 MB": answer("https://res.cloudinary.com/" + "a" * 3_000_000),
    "a URL and nothing else": answer("https://"),
}


WAYS_TO_FAIL: dict[str, How] = {
    "an error": "500",
    "a cut": "drop",
    "a cut afterwards": "drop_after_store",
    **ODD_ANSWERS,
}


@pytest.mark.parametrize("how", WAYS_TO_FAIL.values(), ids=WAYS_TO_FAIL)
def test_when_the_third_of_five_images_fails_none_stays(
    app: Flask, cloud: CloudinaryDouble, clouded: Client, how: How
) -> None:
    patient = make_patient(clouded)
    before = snapshot(app)
    cloud.fail(3, how)
    assert_refused(clouded.post("/reports", **reported(patient["id"], *[picture()] * 5)), 502)
    assert cloud.stored == {}
    assert snapshot(app) == before
    assert before["uploads"] == []


@pytest.mark.parametrize("how", ["500", "drop", "drop_after_store"])
def test_when_an_added_image_fails_the_report_keeps_its_old_ones(
    app: Flask, cloud: CloudinaryDouble, clouded: Client, how: How
) -> None:
    report = make_report(clouded, make_patient(clouded)["id"])
    before, kept = snapshot(app), dict(cloud.stored)
    cloud.fail(2, how)
    sent = {"images": files(*[picture()] * 3), "replace_images": "true", "diagnosis": "New"}
    assert_refused(clouded.patch(f"/reports/{report['id']}", data=sent), 502)
    assert cloud.stored == kept
    assert snapshot(app) == before


def test_what_could_not_be_taken_back_is_swept_by_purge(app: Flask, cloud: CloudinaryDouble, clouded: Client) -> None:
    patient = make_patient(clouded)
    cloud.fail(2, "500")
    cloud.fail(1, "drop", action="destroy")
    assert_refused(clouded.post("/reports", **reported(patient["id"], *[picture()] * 3)), 502)
    assert cloud.stored
    assert {public_id for (public_id,) in rows(app, "SELECT public_id FROM uploads")} >= set(cloud.stored)

    result = clouded.app.test_cli_runner().invoke(args=["purge"])
    assert result.exit_code == 0, result.output
    assert cloud.stored == {}
    assert rows(app, "SELECT * FROM uploads") == []


def test_a_purge_spares_the_images_of_reports(app: Flask, cloud: CloudinaryDouble, clouded: Client) -> None:
    make_report(clouded, make_patient(clouded)["id"])
    assert clouded.app.test_cli_runner().invoke(args=["purge"]).exit_code == 0
    assert len(cloud.stored) == 1


def test_a_report_can_be_filed_again_after_the_store_failed(cloud: CloudinaryDouble, clouded: Client) -> None:
    patient = make_patient(clouded)
    cloud.fail(1, "500")
    assert_refused(clouded.post("/reports", **reported(patient["id"], picture())), 502)
    assert make_report(clouded, patient["id"])["id"]


def test_a_502_tells_nothing_of_the_store(cloud: CloudinaryDouble, clouded: Client) -> None:
    patient = make_patient(clouded)
    cloud.fail(1, "500")
    refused = clouded.post("/reports", **reported(patient["id"], picture()))
    for secret in (cloud.api_key, cloud.api_secret, cloud.url, "Cloudinary", "Internal"):
        assert secret not in refused.text


@pytest.mark.parametrize("said", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
def test_an_odd_answer_of_the_store_is_a_short_line_in_the_log(
    cloud: CloudinaryDouble, clouded: Client, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    patient = make_patient(clouded)
    cloud.fail(1, said)
    assert_refused(clouded.post("/reports", **reported(patient["id"], picture())), 502)
    [record] = [record for record in caplog.records if record.name == "hosi.media" and record.levelname == "ERROR"]
    assert (len(record.getMessage()) < 1_000, record.exc_info) == (True, None)


def test_a_patient_archived_meanwhile_gets_no_report_and_no_image_stays(
    app: Flask, admin: Client, cloud: CloudinaryDouble, clouded: Client
) -> None:
    patient = make_patient(clouded)
    cloud.delay = 0.5
    with ThreadPoolExecutor(1) as person:
        sent = person.submit(clouded.post, "/reports", **reported(patient["id"], picture()))
        wait_until(lambda: len(cloud.requests) == 1)
        assert admin.delete(f"/patient/{patient['id']}").status_code == 200
        assert_refused(sent.result(), 422, "patient_id")
    assert cloud.stored == {}
    assert rows(app, "SELECT id FROM images") == rows(app, "SELECT * FROM uploads") == []


def test_a_commit_that_only_looked_failed_loses_no_image(app: Flask, cloud: CloudinaryDouble, clouded: Client) -> None:
    """The database has committed, but its answer is lost on the way."""
    patient = make_patient(clouded)
    with clouded.app.app_context():
        engine = clouded.app.extensions["sqlalchemy"].engine
    lost: list[Connection] = []

    def lose_the_answer(connection: Connection) -> None:
        if cloud.stored and not lost:
            lost.append(connection)
            connection.connection.commit()
            raise OperationalError("COMMIT", None, Exception("the connection was cut"))

    event.listen(engine, "commit", lose_the_answer)
    try:
        assert_refused(clouded.post("/reports", **reported(patient["id"], picture())), 503)
    finally:
        event.remove(engine, "commit", lose_the_answer)
    [(public_id,)] = rows(app, "SELECT public_id FROM images")
    assert set(cloud.stored) == {public_id}
    assert len(clouded.get("/reports").json) == 1


def test_a_disk_that_cannot_be_written_is_a_502(app: Flask, doctor: Client) -> None:
    patient = make_patient(doctor)
    before = snapshot(app)
    folder = app.config["INSTANCE_PATH"] / "images"
    folder.write_text("a file where a folder should be")
    try:
        refused = doctor.post("/reports", **reported(patient["id"], picture()))
    finally:
        folder.unlink()
    assert_refused(refused, 502)
    assert str(app.config["INSTANCE_PATH"]) not in refused.text
    assert {**snapshot(app), "uploads": []} == before  # what could not be taken back is left to the sweep
