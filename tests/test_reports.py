"""Reports: filing and changing them. test_images.py tests their images."""

from collections.abc import Callable

from client import Client, assert_refused
from factories import files, make_patient, make_report, picture
from flask import Flask
from sql import snapshot

from testing.statements import counted_statements


def test_a_report_is_filed_read_changed_and_archived(doctor: Client) -> None:
    patient = make_patient(doctor)
    made = doctor.post(
        "/reports", data={"patient_id": patient["id"], "diagnosis": "Fracture", "images": files(picture())}
    )
    assert made.status_code == 201
    assert made.headers["Location"] == f"/reports/{made.json['id']}"
    assert made.headers["ETag"] == '"1"'
    address = made.headers["Location"]
    assert doctor.get(address).json["diagnosis"] == "Fracture"

    changed = doctor.patch(address, {"diagnosis": "Sprain"})
    assert (changed.json["diagnosis"], changed.json["version"]) == ("Sprain", 2)
    assert len(changed.json["images"]) == 1

    assert doctor.delete(address).status_code == 200
    for gone in (
        doctor.get(address),
        doctor.patch(address, {"diagnosis": "x"}),
        doctor.patch(address, data={"images": files(picture())}),
        doctor.delete(address),
    ):
        assert_refused(gone, 404)
    assert doctor.get("/reports").json == []


def test_a_report_names_its_patient_and_its_author_who_is_the_caller(doctor: Client) -> None:
    patient = make_patient(doctor)
    report = make_report(doctor, patient["id"])
    for shown in (report, doctor.get(f"/reports/{report['id']}").json, doctor.get("/reports").json[0]):
        assert (shown["patient_id"], shown["patient_name"]) == (patient["id"], "Amina Wanjiru")
        assert (shown["user_id"], shown["doctor_name"]) == (doctor.user["id"], "Dora Otieno")
        assert shown["diagnosis"] == ""


def test_an_image_of_a_report_is_described(doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture("JPEG", (40, 30)), picture("PNG", (7, 9)))
    assert [image.keys() for image in report["images"]] == [
        {"id", "image_url", "thumbnail_url", "width", "height", "format", "bytes"}
    ] * 2
    assert [(image["format"], image["width"], image["height"]) for image in report["images"]] == [
        ("jpeg", 40, 30),
        ("png", 7, 9),
    ]


def test_images_are_added_or_replaced(doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    address = f"/reports/{report['id']}"
    added = doctor.patch(address, data={"images": files(picture(colour="red"))})
    assert added.status_code == 200, added.json
    assert [image["id"] for image in added.json["images"]] == [1, 2]
    assert added.json["version"] == 2
    replaced = doctor.patch(address, data={"images": files(picture()), "replace_images": "true", "diagnosis": "New"})
    assert replaced.status_code == 200, replaced.json
    assert [image["id"] for image in replaced.json["images"]] == [3]
    assert replaced.json["version"] == 3
    assert replaced.json["diagnosis"] == "New"
    assert [image["id"] for image in doctor.get(address).json["images"]] == [3]


def test_a_form_changes_texts_without_touching_the_images(doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    changed = doctor.patch(f"/reports/{report['id']}", data={"diagnosis": "Sprain"})
    assert changed.json["diagnosis"] == "Sprain"
    assert [image["id"] for image in changed.json["images"]] == [image["id"] for image in report["images"]]


def test_a_file_field_that_was_left_empty_counts_for_nothing(doctor: Client) -> None:
    """A browser sends an empty part without a file name for an <input type=file> that nobody used."""
    report = make_report(doctor, make_patient(doctor)["id"])
    untouched = (
        b'--XX\r\nContent-Disposition: form-data; name="diagnosis"\r\n\r\nSprain\r\n'
        b'--XX\r\nContent-Disposition: form-data; name="images"; filename=""\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n\r\n--XX--\r\n"
    )
    changed = doctor.patch(f"/reports/{report['id']}", data=untouched, content_type="multipart/form-data; boundary=XX")
    assert changed.status_code == 200, changed.json
    assert (changed.json["diagnosis"], len(changed.json["images"])) == ("Sprain", 1)


def test_a_whole_report_changed_may_be_sent_back(doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    response = doctor.patch(f"/reports/{report['id']}", {**report, "diagnosis": "Sprain"})
    assert response.status_code == 200, response.json
    assert response.json["diagnosis"] == "Sprain"


def test_a_change_of_nothing_makes_no_new_version(doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], diagnosis="Sprain")
    assert doctor.patch(f"/reports/{report['id']}", {"diagnosis": "Sprain"}).json["version"] == 1


def test_a_doctor_cannot_touch_the_report_of_another(app: Flask, doctor: Client, other_doctor: Client) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    address, before = f"/reports/{report['id']}", snapshot(app)
    assert other_doctor.get(address).status_code == 200
    assert_refused(other_doctor.patch(address, {"diagnosis": "x"}), 403)
    assert_refused(other_doctor.patch(address, data={"images": files(picture())}), 403)
    assert_refused(other_doctor.delete(address), 403)
    assert_refused(doctor.patch(address, {"user_id": other_doctor.user["id"]}), 403)
    assert snapshot(app) == before


def test_an_administrator_may_file_a_report_for_a_doctor(admin: Client, doctor: Client) -> None:
    report = make_report(admin, make_patient(doctor)["id"], user_id=doctor.user["id"])
    assert report["doctor_name"] == "Dora Otieno"


def test_no_report_is_filed_for_an_archived_patient(app: Flask, admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)
    admin.delete(f"/patient/{patient['id']}")
    before = snapshot(app)
    refused = doctor.post("/reports", data={"patient_id": patient["id"], "images": files(picture())})
    assert_refused(refused, 422, "patient_id")
    assert snapshot(app) == before


def test_times_are_shown_in_the_clinics_offset(doctor: Client, at_home: Callable[[Client, str], Client]) -> None:
    nairobi = at_home(doctor, "Africa/Nairobi")
    report = make_report(nairobi, make_patient(nairobi)["id"])
    assert report["created_at"].endswith("+03:00")


def test_a_list_of_reports_takes_as_many_statements_however_long_it_is(app: Flask, doctor: Client) -> None:
    make_report(doctor, make_patient(doctor)["id"])
    with counted_statements(app) as for_one:
        assert len(doctor.get("/reports").json) == 1
    for _ in range(6):
        make_report(doctor, make_patient(doctor)["id"], picture(), picture())
    with counted_statements(app) as for_seven:
        assert len(doctor.get("/reports").json) == 7
    assert len(for_seven) == len(for_one)


def test_text_named_images_is_refused_and_not_ignored(doctor: Client) -> None:
    """With curl it is a forgotten @."""
    report = make_report(doctor, make_patient(doctor)["id"])
    for response in (
        doctor.post("/reports", data={"patient_id": report["patient_id"], "images": "front.jpg"}),
        doctor.patch(f"/reports/{report['id']}", data={"diagnosis": "Malaria", "images": "front.jpg"}),
    ):
        assert_refused(response, 422, "images")
        assert "Please send files" in response.json["msg"]
    assert doctor.get(f"/reports/{report['id']}").json["version"] == report["version"] == 1
