"""What a refusal says: a sentence without pydantic's English, a code, and the record that it is about."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from client import Client, assert_refused
from factories import application, files, make_appointment, make_patient, make_report, picture
from flask import Flask
from pydantic_core._pydantic_core import list_all_errors
from sql import snapshot, sql
from werkzeug.test import TestResponse

from server.errors import LARGEST_ANSWER, APIError, Code

BOOKED = "2030-03-01T10:00"

# --- Sentences ---

BAD_VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "a decimal": 1.5,
    "a negative": -1,
    "zero": 0,
    "a large number": 2**40,
    "a huge number": 10**30,
    "nothing": "",
    "a blank": " ",
    "a letter": "x",
    "a word": "nonsense",
    "a long text": "x" * 4_100,
    "a NUL": "ab\0cdefghij",
    "an override": "ab\u202ecdefghij",
    "a joiner": "\u200d",
    "a list": [],
    "a list of a list": [[]],
    "a list of words": ["nonsense", None, True, {}],
    "an object": {},
    "an object with a field": {"x": 1},
    "slashes": "31/05/1990",
    "no such day": "1990-02-30",
    "a late day": "2190-01-01",
    "an early day": "1700-01-01",
    "no such time": "2030-01-01T25:00",
}
BAD_BODIES: list[Any] = [[], "x", 1, True, {"nickname": 1}, {}]


def templates() -> Iterator[str]:
    """Yield pydantic's own words, in pieces of two words at least."""
    for kind in list_all_errors():
        for template in (kind["message_template_python"], kind.get("message_template_json") or ""):
            for piece in re.split(r"\{\w+\}", template):
                if len(piece.split()) > 1:
                    yield piece.strip()


PYDANTIC = sorted(set(templates()))


def refuse_english_of_pydantic(response: TestResponse) -> None:
    """The client itself checks that each text is a sentence."""
    for text in chain([response.json["msg"]], *response.json.get("errors", {}).values()):
        assert not [piece for piece in PYDANTIC if piece in text], text
        assert "Please check the" not in text, "a kind of fault has no sentence of its own"


def inputs(app: Flask) -> dict[str, tuple[str, str, str, Any]]:
    """Return method, path, kind of input and model of each view that has one."""
    found = {}
    for rule in app.url_map.iter_rules():
        view: Any = app.view_functions[rule.endpoint]
        path = re.sub("<id:\\w+>", "1", rule.rule)
        (method,) = (rule.methods or set()) - {"HEAD", "OPTIONS"}
        for kind, model in getattr(getattr(view, "contract", None), "inputs", {}).items():
            found[f"{method} {path} {kind}"] = method, path, kind, model
    return found


def names_of(model: Any) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def test_pydantic_has_words_to_look_for() -> None:
    assert {"Field required", "Input should be a valid string", "Extra inputs are not permitted"} <= set(PYDANTIC)


@pytest.mark.parametrize("value", BAD_VALUES.values(), ids=BAD_VALUES)
def test_each_bad_value_of_each_field_is_refused_in_sentences_of_ours(app: Flask, admin: Client, value: Any) -> None:
    make_patient(admin)
    refused = 0
    for method, path, kind, model in inputs(app).values():
        for name in names_of(model):
            if kind == "query":
                response = admin.get(f"{path}?{urlencode({name: '' if value is None else value}, doseq=True)}")
            else:
                response = admin.send(method, path, {name: value})
            if response.status_code >= 400:
                refuse_english_of_pydantic(response)
                refused += 1
    assert refused > 20


@pytest.mark.parametrize("number", range(len(BAD_BODIES)))
def test_each_body_that_is_no_object_of_its_fields_is_refused_in_sentences_of_ours(
    app: Flask, admin: Client, number: int
) -> None:
    for method, path, kind, _ in inputs(app).values():
        if kind != "query":
            response = admin.send(method, path, BAD_BODIES[number])
            if response.status_code >= 400:
                refuse_english_of_pydantic(response)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"first_name": ""}, "Please give the first name."),
        ({"first_name": " "}, "Please give the first name."),
        ({"first_name": None}, "Please give the first name."),
        ({"first_name": 7}, "Please give a text for the first name."),
        ({"first_name": "x" * 101}, "The first name can have at most 100 characters."),
        ({"date_of_birth": "31/05/1990"}, "Please write the birth date as 1990-05-31."),
        ({"date_of_birth": "1990-02-30"}, "There is no 30 February 1990."),
        ({"date_of_birth": "1990-31-05"}, "There is no month 31."),
        ({"date_of_birth": "2199-01-01"}, "The birth date cannot lie in the future."),
        ({"admitted_at": "2026-01-01T25:00"}, "There is no time 25:00."),
        ({"nickname": "Ami"}, 'There is no field "nickname" here.'),
        ({"{field}": "Ami"}, 'There is no field "{field}" here.'),
        (
            {"status": "well", "first_name": ""},
            "Please give the first name. Please choose one of these for the status:",
        ),
    ],
)
def test_a_form_is_told_in_plain_words(doctor: Client, fields: dict[str, Any], sentence: str) -> None:
    patient = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712 345 678"}
    refused = doctor.post("/patients", {**patient, **fields})
    assert_refused(refused, 422, *fields)
    assert refused.json["msg"].startswith(sentence)


def test_what_is_missing_is_asked_for(doctor: Client) -> None:
    refused = doctor.post("/patients", {})
    assert refused.json["msg"] == "Please give the first name. Please give the last name. Please give the phone number."


@pytest.mark.parametrize("password", ["swordfish", "swordfish\0swordfish", ["swordfish"], {"swordfish": 1}])
def test_no_sentence_repeats_a_password(anonymous: Client, password: Any) -> None:
    refused = anonymous.post("/signup", application(password=password))
    assert refused.status_code == 422
    assert "swordfish" not in refused.text


def test_a_span_over_midnight_names_both_days(doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    make_appointment(doctor, patient, "2030-03-01T23:45")
    refused = doctor.post("/appointment", {"patient_id": patient, "appointment_datetime": "2030-03-01T23:50"})
    assert refused.json["msg"] == "The doctor has appointment 1 on 1 March 2030, from 23:45 to 2 March 2030, 00:15."


# --- Codes ---


def test_the_page_lists_each_code_once() -> None:
    page = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", page, re.MULTILINE)
    assert [code for code, _ in listed] == list(Code)
    usual = {kind.code: str(kind.status.value) for kind in APIError.__subclasses__()}
    assert usual.items() <= dict(listed).items()


def test_the_document_lists_the_codes(app: Flask) -> None:
    schemas = Client(app).get("/openapi.json").json["components"]["schemas"]
    assert schemas["Problem"]["properties"]["code"]["enum"] == list(Code)
    assert "Error" not in schemas


@pytest.mark.parametrize(
    ("method", "path", "sent", "code"),
    [
        ("GET", "/nowhere", {}, "not_found"),
        ("GET", "/patient/99", {}, "not_found"),
        ("PUT", "/patients", {}, "wrong_method"),
        ("POST", "/patients", {"data": "{", "content_type": "application/json"}, "malformed"),
        ("POST", "/patients", {"data": "x", "content_type": "text/plain"}, "wrong_type"),
        ("POST", "/login", {"json": {"email": "a@b.test", "password": "x"}}, "wrong_credentials"),
        ("POST", "/login", {"data": b" " * 20_000, "content_type": "application/json"}, "too_large"),
        ("GET", "/me", {"headers": {"Authorization": "Bearer x"}}, "signed_out"),
        ("GET", "/audit", {}, "not_allowed"),
        ("POST", "/patients", {"json": {}}, "invalid"),
        ("GET", "/media/no", {}, "not_found"),
    ],
)
def test_each_kind_of_error_has_its_code(doctor: Client, method: str, path: str, sent: Any, code: str) -> None:
    response = doctor.send(method, path, **sent)
    assert response.json["code"] == code


def test_the_codes_of_what_contradicts_what_is_stored(app: Flask, admin: Client, doctor: Client) -> None:
    patient, late = make_patient(doctor)["id"], make_patient(doctor, status="deceased")["id"]
    booked = make_appointment(doctor, patient)["id"]
    user = f"/user/{doctor.user['id']}"
    body = {"patient_id": late, "appointment_datetime": BOOKED}
    found = {
        "deceased": doctor.post("/appointment", body),
        "has_appointments": admin.delete(user),
        "last_admin": admin.delete("/user/1"),
        "email_taken": Client(app).post("/signup", application(email=doctor.user["email"])),
        "conflict": admin.post(f"/patient/{patient}/restore"),
    }
    admin.delete(f"/patient/{patient}")
    found["archived"] = admin.post(f"/appointment/{booked}/restore")
    assert {code: response.json["code"] for code, response in found.items()} == {code: code for code in found}
    assert {response.status_code for response in found.values()} == {409}


def test_an_account_that_is_not_active_says_so(admin: Client, doctor: Client) -> None:
    admin.patch(f"/user/{doctor.user['id']}", {"is_active": False})
    refused = Client(admin.app).post("/login", {"email": doctor.user["email"], "password": "correct horse battery"})
    assert (refused.status_code, refused.json["code"]) == (403, "inactive")


# --- The record in the way ---


def in_the_way(refused: TestResponse) -> dict[str, Any]:
    assert_refused(refused, 409, "appointment_datetime")
    assert refused.json["code"] == "slot_taken"
    return dict(refused.json["conflict"])


def test_a_booking_is_shown_the_appointment_in_its_way(app: Flask, doctor: Client, other_doctor: Client) -> None:
    first = make_appointment(doctor, make_patient(doctor)["id"], BOOKED, reason="Follow-up")["id"]
    before = snapshot(app)
    body = {"patient_id": make_patient(other_doctor)["id"], "appointment_datetime": BOOKED}
    refused = doctor.post("/appointment", body)
    assert in_the_way(refused) == other_doctor.get(f"/appointment/{first}").json
    assert snapshot(app).keys() == before.keys()


def test_a_move_is_shown_the_appointment_in_its_way(doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    first = make_appointment(doctor, patient, BOOKED)["id"]
    second = make_appointment(doctor, patient, "2030-03-01T12:00")["id"]
    refused = doctor.patch(f"/appointment/{second}", {"appointment_datetime": BOOKED})
    assert in_the_way(refused) == doctor.get(f"/appointment/{first}").json


def test_a_restored_appointment_or_patient_is_shown_the_appointment_in_its_way(admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    past = make_appointment(doctor, patient, BOOKED)["id"]
    doctor.delete(f"/appointment/{past}")
    taker = make_appointment(doctor, make_patient(doctor)["id"], BOOKED)["id"]
    assert in_the_way(admin.post(f"/appointment/{past}/restore")) == admin.get(f"/appointment/{taker}").json


def test_a_swap_is_shown_the_appointment_in_its_way(doctor: Client) -> None:
    patients = [make_patient(doctor)["id"] for _ in range(3)]
    long = make_appointment(doctor, patients[0], BOOKED, duration_minutes=60)["id"]
    short = make_appointment(doctor, patients[1], "2030-03-01T12:00")["id"]
    third = make_appointment(doctor, patients[2], "2030-03-01T12:30")["id"]
    refused = doctor.post("/appointment/swap", {"first": long, "second": short})
    assert in_the_way(refused) == doctor.get(f"/appointment/{third}").json


def test_a_swap_into_each_other_says_that_both_would_overlap(app: Flask, doctor: Client) -> None:
    first = make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T10:00")["id"]
    second = make_appointment(doctor, make_patient(doctor)["id"], "2030-03-01T10:30", duration_minutes=60)["id"]
    before = snapshot(app)
    refused = doctor.post("/appointment/swap", {"first": first, "second": second})
    assert in_the_way(refused) == doctor.get(f"/appointment/{second}").json
    assert refused.json["msg"] == f"In their new places, this appointment and appointment {second} would overlap."
    assert snapshot(app) == before


# --- The record as it is now ---

CHANGES: dict[str, dict[str, Any]] = {
    "user": {"first_name": "Dorothea"},
    "patient": {"diagnosis": "Malaria"},
    "appointment": {"reason": "Follow-up"},
    "reports": {"diagnosis": "Fracture"},
}


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_of_another_version_is_shown_the_record_as_it_is(
    admin: Client, doctor: Client, kind: str, method: str
) -> None:
    patient = make_patient(doctor)["id"]
    make_appointment(doctor, patient)
    make_report(doctor, patient, picture())
    address = f"/user/{doctor.user['id']}" if kind == "user" else f"/{kind}/1"
    doctor.patch(address, CHANGES[kind])
    body = {"json": CHANGES[kind]} if method == "PATCH" else {}
    refused = admin.send(method, address, headers={"If-Match": '"1"'}, **body)
    assert (refused.status_code, refused.json["code"]) == (412, "stale")
    assert refused.json["current"] == admin.get(address).json
    assert refused.json["current"]["version"] == 2
    for image in refused.json["current"].get("images", []):
        assert admin.get(image["image_url"]).status_code == 200


def test_who_may_not_change_a_record_is_not_shown_it(doctor: Client, other_doctor: Client) -> None:
    make_appointment(doctor, make_patient(doctor)["id"])
    refused = other_doctor.patch("/appointment/1", {"reason": "x"}, headers={"If-Match": '"7"'})
    assert_refused(refused, 403)


def test_the_access_log_names_the_patient_who_was_shown(doctor: Client, caplog: pytest.LogCaptureFixture) -> None:
    make_patient(doctor)
    caplog.set_level("INFO", "hosi.access")
    doctor.patch("/patient/1", {"diagnosis": "x"}, headers={"If-Match": '"7"'})
    assert f"user {doctor.user['id']} PATCH /patient/1: patient 1" in caplog.text


# --- The size of an answer ---


def test_a_large_appointment_in_the_way_is_shortened(app: Flask, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    make_appointment(doctor, patient, BOOKED, reason="\x01" * 2_000)
    old = {"first": "\x01" * 100, "last": "\x02" * 100, "id": patient}  # earlier versions took any name
    sql(app, "UPDATE patients SET first_name = :first, last_name = :last WHERE id = :id", **old)
    sql(app, "UPDATE users SET first_name = :first, last_name = :last WHERE id = :id", **old | doctor.user)
    refused = doctor.post("/appointment", {"patient_id": patient, "appointment_datetime": BOOKED})
    assert len(refused.data) <= LARGEST_ANSWER
    assert refused.json["conflict"]["reason"] == "\x01" * 499 + "…"


@pytest.mark.parametrize("letter", ["x", "\x01", "\N{GRINNING FACE}", '"', "\N{REPLACEMENT CHARACTER}"])
def test_twenty_long_names_of_fields_fit_into_an_answer(doctor: Client, letter: str) -> None:
    names = [letter * 45 + f"{n:05}" for n in range(60)]
    for refused in (
        doctor.post("/patients", dict.fromkeys(names, 1)),
        doctor.get(f"/patients?{urlencode(dict.fromkeys(names, 1))}"),
    ):
        assert refused.status_code == 422
        assert len(refused.data) <= LARGEST_ANSWER


def test_fifty_long_names_of_files_fit_into_an_answer(doctor: Client) -> None:
    images = files(*[b"no picture"] * 50)
    for image in images:
        image.filename = "\N{GRINNING FACE}" * 60
    refused = doctor.post("/reports", data={"patient_id": str(make_patient(doctor)["id"]), "images": images})
    assert_refused(refused, 422, "images")
    assert len(refused.data) <= LARGEST_ANSWER
