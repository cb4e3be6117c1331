"""A report has a diagnosis or an image: notes without a picture, and images that are taken away."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from client import Client, assert_refused, at_once, form, run_cli, verify
from factories import files, make_patient, make_report, picture
from flask import Flask
from sql import rows, snapshot, stored_files

from testing.cloudinary_double import CloudinaryDouble

BLANKS = ["", "   ", "\n\t", "\u00a0\u2003", "\u200b\u2060", "\u2800", "\ufeff"]


def make_note(client: Client, **fields: Any) -> dict[str, Any]:
    """A report with no image."""
    body = {"patient_id": make_patient(client)["id"], "diagnosis": "Sprain", **fields}
    response = client.post("/reports", body)
    assert response.status_code == 201, response.json
    return dict(response.json)


# --- Notes without a picture ---


@pytest.mark.parametrize("encoded", [lambda fields: {"json": fields}, form], ids=["JSON", "a form"])
def test_a_note_without_a_picture_is_filed(doctor: Client, encoded: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    fields = {"patient_id": str(make_patient(doctor)["id"]), "diagnosis": "Sprain"}
    made = doctor.post("/reports", **encoded(fields))
    assert made.status_code == 201, made.json
    assert made.headers["Location"] == f"/reports/{made.json['id']}"
    for shown in (made.json, doctor.get(made.headers["Location"]).json, doctor.get("/reports").json[0]):
        assert (shown["diagnosis"], shown["images"]) == ("Sprain", [])


def test_a_note_that_is_sent_again_with_its_key_is_filed_once(doctor: Client) -> None:
    body, key = {"patient_id": make_patient(doctor)["id"], "diagnosis": "Sprain"}, {"Idempotency-Key": "note"}
    first, again = (doctor.post("/reports", body, headers=key) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json == first.json
    assert len(doctor.get("/reports").json) == 1


@pytest.mark.parametrize("diagnosis", [None, *BLANKS], ids=ascii)
@pytest.mark.parametrize("encoded", ["JSON", "a form"])
def test_a_report_with_neither_diagnosis_nor_image_is_refused(
    app: Flask, doctor: Client, encoded: str, diagnosis: str | None
) -> None:
    fields: dict[str, Any] = {"patient_id": str(make_patient(doctor)["id"])}
    if diagnosis is not None:
        fields["diagnosis"] = diagnosis
    before = snapshot(app)
    refused = doctor.post("/reports", **({"json": fields} if encoded == "JSON" else form(fields)))
    assert_refused(refused, 422, "images")
    assert "a diagnosis or an image" in refused.json["msg"]
    assert snapshot(app) == before


@pytest.mark.parametrize("diagnosis", BLANKS, ids=ascii)
def test_the_diagnosis_of_a_report_without_images_cannot_be_emptied(app: Flask, doctor: Client, diagnosis: str) -> None:
    address, before = f"/reports/{make_note(doctor)['id']}", snapshot(app)
    for sent in ({"json": {"diagnosis": diagnosis}}, form({"diagnosis": diagnosis})):
        refused = doctor.patch(address, **sent)
        assert_refused(refused, 422, "diagnosis")
        assert "a diagnosis or an image" in refused.json["msg"]
    assert snapshot(app) == before


def test_the_diagnosis_may_be_emptied_where_there_is_an_image_or_one_comes(doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], diagnosis="Sprain")
    assert doctor.patch(f"/reports/{report['id']}", {"diagnosis": ""}).json["diagnosis"] == ""
    sent = {"diagnosis": "", "images": files(picture())}
    changed = doctor.patch(f"/reports/{make_note(doctor)['id']}", data=sent)
    assert (changed.status_code, changed.json["diagnosis"], len(changed.json["images"])) == (200, "", 1)


@pytest.mark.parametrize("encoded", ["JSON", "a form"])
def test_images_are_not_replaced_by_nothing(app: Flask, doctor: Client, encoded: str) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], diagnosis="Sprain")
    before = snapshot(app)
    sent = {"json": {"replace_images": True}} if encoded == "JSON" else form({"replace_images": "true"})
    assert_refused(doctor.patch(f"/reports/{report['id']}", **sent), 422, "images")
    assert snapshot(app) == before


# --- Taking an image away ---


def test_an_image_is_taken_away_and_the_others_stay(app: Flask, doctor: Client, anonymous: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture(), picture("JPEG"))
    first, second = report["images"]
    gone = doctor.delete(f"/reports/{report['id']}/images/{first['id']}")
    assert (gone.status_code, gone.json) == (200, {"msg": f"Image {first['id']} of report {report['id']} is archived."})
    read = doctor.get(f"/reports/{report['id']}")
    assert [image["id"] for image in read.json["images"]] == [second["id"]]
    assert (read.json["version"], read.headers["ETag"]) == (2, '"2"')
    assert read.json["updated_at"] > report["updated_at"]
    assert anonymous.get(first["image_url"]).status_code == 404
    assert anonymous.get(second["image_url"]).status_code == 200
    assert len(stored_files(app)) == 2, "it is archived, not erased"


def test_the_history_tells_that_an_image_was_taken_away(app: Flask, admin: Client, doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture(), picture())
    doctor.delete(f"/reports/{report['id']}/images/2")
    told = doctor.get(f"/reports/{report['id']}/history").json[-2:]
    assert {(entry["kind"], entry["record_id"], entry["action"], entry["version"]) for entry in told} == {
        ("report", 1, "change", 2),
        ("image", 2, "archive", 2),
    }
    newest = admin.get("/audit?kind=image&limit=1").json[0]
    assert (newest["action"], newest["record_id"], newest["actor_id"]) == ("archive", 2, doctor.user["id"])
    assert verify(app) == "The history is whole.\n"


def test_the_last_image_stays_unless_there_is_a_diagnosis(app: Flask, doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture(), picture())
    address = f"/reports/{report['id']}"
    assert doctor.delete(f"{address}/images/1").status_code == 200
    before = snapshot(app)
    refused = doctor.delete(f"{address}/images/2")
    assert_refused(refused, 422, "images")
    assert "a diagnosis or an image" in refused.json["msg"]
    assert snapshot(app) == before
    doctor.patch(address, {"diagnosis": "Sprain"})
    assert doctor.delete(f"{address}/images/2").status_code == 200
    assert doctor.get(address).json["images"] == []


def test_an_image_that_is_not_of_the_report_is_not_found(app: Flask, admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    mine, other, archived = (make_report(doctor, patient, diagnosis="Sprain") for _ in range(3))
    admin.delete(f"/reports/{archived['id']}")
    before = snapshot(app)
    for report, image in ((mine, other), (archived, archived)):
        assert_refused(doctor.delete(f"/reports/{report['id']}/images/{image['images'][0]['id']}"), 404)
    for path in (f"/reports/{mine['id']}/images/77", "/reports/77/images/1", f"/reports/{mine['id']}/images/0"):
        assert_refused(doctor.delete(path), 404)
    assert snapshot(app) == before


def test_an_image_is_taken_away_once(doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], diagnosis="Sprain")
    path = f"/reports/{report['id']}/images/1"
    assert doctor.delete(path).status_code == 200
    assert_refused(doctor.delete(path), 404)


def test_of_two_who_take_the_same_image_away_at_once_the_second_finds_none(app: Flask, doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture(), picture())
    path = f"/reports/{report['id']}/images/1"
    done = at_once(*[partial(Client(app, doctor.token).delete, path) for _ in range(2)])
    assert sorted(response.status_code for response in done) == [200, 404]


def test_of_two_who_take_the_last_two_images_away_at_once_one_is_refused(app: Flask, doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture(), picture())
    address = f"/reports/{report['id']}"
    done = at_once(*[partial(Client(app, doctor.token).delete, f"{address}/images/{n}") for n in (1, 2)])
    assert sorted(response.status_code for response in done) == [200, 422]
    assert len(doctor.get(address).json["images"]) == 1


def test_who_takes_an_image_away_may_name_the_version_they_saw(app: Flask, doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture(), picture())
    doctor.patch(f"/reports/{report['id']}", {"diagnosis": "Sprain"})
    path, before = f"/reports/{report['id']}/images/1", snapshot(app)
    assert_refused(doctor.delete(path, headers={"If-Match": '"1"'}), 412)
    assert snapshot(app) == before
    assert doctor.delete(path, headers={"If-Match": '"2"'}).status_code == 200


def test_a_colleague_takes_no_image_away(app: Flask, doctor: Client, other_doctor: Client, admin: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture(), picture())
    path, before = f"/reports/{report['id']}/images/1", snapshot(app)
    assert_refused(other_doctor.delete(path), 403)
    assert snapshot(app) == before
    assert admin.delete(path).status_code == 200


@pytest.mark.parametrize("archived", ["report", "patient"])
def test_a_restored_report_comes_without_the_images_that_were_taken_away_before(
    admin: Client, doctor: Client, archived: str
) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture(), picture(), picture())
    doctor.delete(f"/reports/{report['id']}/images/2")
    address = f"/reports/{report['id']}" if archived == "report" else f"/patient/{report['patient_id']}"
    assert admin.delete(address).status_code == 200
    assert admin.post(f"{address}/restore").status_code == 200
    assert [image["id"] for image in doctor.get(f"/reports/{report['id']}").json["images"]] == [1, 3]


def test_an_image_that_was_taken_away_is_erased_by_a_purge(
    app: Flask, cloud: CloudinaryDouble, clouded: Client, doctor: Client
) -> None:
    for client, left in ((doctor, lambda: len(stored_files(app))), (clouded, lambda: len(cloud.stored))):
        report = make_report(client, make_patient(client)["id"], picture(), picture())
        client.delete(f"/reports/{report['id']}/images/{report['images'][0]['id']}")
        assert left() == 2
        assert run_cli(client.app, "purge", "--older-than", "0h")[0] == 0
        assert left() == 1
        assert client.get(f"/reports/{report['id']}").json["images"][0]["id"] == report["images"][1]["id"]
    assert rows(app, "SELECT * FROM uploads") == []
