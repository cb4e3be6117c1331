"""The receptionist: books for every doctor, and never sees what is wrong with a patient."""

import json
import logging
from typing import Any

import pytest
from client import Client, assert_refused, form
from factories import (
    application,
    files,
    make_appointment,
    make_patient,
    make_report,
    picture,
    reported,
    sign_in,
    sign_up,
)
from flask import Flask
from sql import snapshot, sql

SECRETS = {"diagnosis": "Tertian malaria", "doctor_summary": "Shivers at dusk"}
NULLS = {"diagnosis": None, "doctor_summary": None}


@pytest.fixture
def ill(doctor: Client) -> dict[str, Any]:
    return make_patient(doctor, **SECRETS)


def assert_hidden(text: str) -> None:
    assert not [secret for secret in SECRETS.values() if secret in text]


# --- What they see ---


@pytest.mark.parametrize("who", ["receptionist", "doctor", "admin"])
@pytest.mark.parametrize(
    "path",
    [
        "/patients",
        "/patients?limit=5",
        "/patients?q=wanjiru&limit=5",
        "/patients?q=wanjiru",
        "/patients?status=admitted",
    ],
)
def test_a_list_of_patients_shows_each_role_what_it_may_see(
    request: pytest.FixtureRequest, ill: dict[str, Any], who: str, path: str
) -> None:
    client: Client = request.getfixturevalue(who)
    [patient] = client.get(path).json
    assert patient == {**ill, **(NULLS if who == "receptionist" else SECRETS)}


def test_a_statement_that_a_doctor_has_warmed_up_hides_as_well(
    doctor: Client, receptionist: Client, ill: dict[str, Any]
) -> None:
    for client, shown in ((doctor, SECRETS), (receptionist, NULLS), (doctor, SECRETS)):
        for path in ("/patients", "/patients?limit=1", f"/patient/{ill['id']}"):
            answer = client.get(path).json
            patient = answer[0] if isinstance(answer, list) else answer
            assert {name: patient[name] for name in SECRETS} == shown


def test_no_answer_to_a_receptionist_has_a_diagnosis(
    app: Flask, doctor: Client, receptionist: Client, ill: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    address = f"/patient/{ill['id']}"
    appointment = make_appointment(doctor, ill["id"])
    other = make_appointment(doctor, make_patient(doctor, **SECRETS)["id"], "2030-03-02T10:00")
    at_the_same_time = {
        "patient_id": ill["id"],
        "user_id": doctor.user["id"],
        "appointment_datetime": "2030-03-01T10:00",
    }
    key = {"Idempotency-Key": "a-desk-1"}
    new = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "+254 712 345 678"}
    answers = [
        receptionist.get(address),
        receptionist.get(f"{address}/duplicates"),
        receptionist.patch(address, {"phone_number": "0733 123 456"}),
        receptionist.patch(address, {"phone_number": "0733 1"}, headers={"If-Match": '"1"'}),  # shows the record
        receptionist.post("/patients", new, headers=key),
        receptionist.post("/patients", new, headers=key),  # the same again
        receptionist.get("/appointment"),
        receptionist.get(f"/appointment/{appointment['id']}"),
        receptionist.get(f"/appointment/{appointment['id']}/history"),
        receptionist.post("/appointment", at_the_same_time),  # names the one in the way
        receptionist.post("/appointment/swap", {"first": appointment["id"], "second": other["id"]}),
        receptionist.patch(f"/appointment/{appointment['id']}", {"reason": "x"}, headers={"If-Match": '"77"'}),
        receptionist.get(f"{address}/history"),
        receptionist.get("/audit"),
        receptionist.get("/reports"),
    ]
    assert [answer.status_code for answer in answers] == [
        *(200, 200, 200, 412, 201, 201, 200, 200, 200, 409, 200, 412, 403, 403, 403)
    ]
    assert answers[3].json["current"]["diagnosis"] is None
    assert answers[4].json["id"] == answers[5].json["id"]
    for answer in answers:
        assert_hidden(answer.text)
    assert_hidden(caplog.text)


def test_a_replay_hides_what_its_sender_saw_when_they_were_a_doctor(app: Flask, admin: Client) -> None:
    sign_up(app, "Nia")
    nia = sign_in(app, "Nia")
    body = {"first_name": "Omar", "last_name": "Said", "phone_number": "0712 1", **SECRETS}
    first = nia.post("/patients", body, headers={"Idempotency-Key": "k"})
    assert first.json["diagnosis"] == SECRETS["diagnosis"]
    assert admin.patch(f"/user/{nia.user['id']}", {"role": "receptionist"}).status_code == 200
    again = nia.post("/patients", body, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json["id"]) == (201, first.json["id"])
    assert_hidden(again.text)


def test_reports_and_their_images_are_closed_to_a_receptionist(
    app: Flask, doctor: Client, receptionist: Client, ill: dict[str, Any]
) -> None:
    report = make_report(doctor, ill["id"], diagnosis=SECRETS["diagnosis"])
    address, image = f"/reports/{report['id']}", report["images"][0]["id"]
    before = snapshot(app)
    answers = [
        receptionist.get("/reports"),
        receptionist.get("/reports?limit=1"),
        receptionist.get(f"/reports?patient_id={ill['id']}&total=true"),
        receptionist.get(address),
        receptionist.get(f"{address}/history"),
        receptionist.patch(address, {"diagnosis": "x"}),
        receptionist.patch(address, {"diagnosis": "x"}, headers={"If-Match": '"77"'}),
        receptionist.delete(address),
        receptionist.delete(f"{address}/images/{image}"),
        receptionist.post("/reports", data={"patient_id": ill["id"], "images": files(picture())}),
        receptionist.send("POST", "/reports", **reported(ill["id"], picture())),
        receptionist.send("HEAD", "/reports"),
    ]
    assert {answer.status_code for answer in answers} == {403}
    assert not [answer for answer in answers if "X-Total-Count" in answer.headers]
    assert snapshot(app) == before


def test_a_link_of_a_doctor_closes_when_they_become_a_receptionist(app: Flask, admin: Client) -> None:
    sign_up(app, "Nia")
    nia = sign_in(app, "Nia")
    link = make_report(nia, make_patient(nia)["id"])["images"][0]["image_url"]
    assert Client(app).get(link).status_code == 200
    admin.patch(f"/user/{nia.user['id']}", {"role": "receptionist"})
    assert_refused(Client(app).get(link), 403)


# --- What they change ---


@pytest.mark.parametrize("value", ["Tertian malaria", "Typhoid", " x "])
@pytest.mark.parametrize("field", SECRETS)
def test_a_receptionist_who_sends_a_diagnosis_is_refused_be_it_right_or_wrong(
    app: Flask, receptionist: Client, ill: dict[str, Any], field: str, value: str
) -> None:
    before = snapshot(app)
    address = f"/patient/{ill['id']}"
    answers = [
        receptionist.patch(address, {field: value, "first_name": "Guess"}),
        receptionist.patch(address, {field: SECRETS[field]}),
        receptionist.post("/patients", {"first_name": "A", "last_name": "B", "phone_number": "0712 1", field: value}),
    ]
    for answer in answers:
        assert_refused(answer, 403)
        assert answer.json == answers[0].json
        assert_hidden(answer.text)
    assert snapshot(app) == before


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_blank_that_a_receptionist_sends_is_nothing_sent(
    doctor: Client, receptionist: Client, ill: dict[str, Any], value: str | None
) -> None:
    address, blanks = f"/patient/{ill['id']}", dict.fromkeys(SECRETS, value)
    changed = receptionist.patch(address, {**blanks, "first_name": "Halima"})
    assert (changed.status_code, changed.json["first_name"]) == (200, "Halima")
    after = doctor.get(address).json
    assert {name: after[name] for name in SECRETS} == SECRETS
    new = {"first_name": "A", "last_name": "B", "phone_number": "0712 1", **blanks}
    made = receptionist.post("/patients", new).json
    assert {name: made[name] for name in SECRETS} == NULLS
    stored = doctor.get(f"/patient/{made['id']}").json
    assert {name: stored[name] for name in SECRETS} == {"diagnosis": "", "doctor_summary": ""}


def test_a_receptionist_sends_back_the_whole_record_changed(
    doctor: Client, receptionist: Client, ill: dict[str, Any]
) -> None:
    address = f"/patient/{ill['id']}"
    shown = receptionist.get(address).json
    changed = receptionist.patch(address, {**shown, "status": "discharged"})
    assert (changed.status_code, changed.json["status"]) == (200, "discharged")
    assert doctor.get(address).json["diagnosis"] == SECRETS["diagnosis"]
    history = doctor.get(f"{address}/history").json[-1]
    assert (history["actor_id"], set(history["changes"])) == (receptionist.user["id"], {"status"})


@pytest.mark.parametrize("field", SECRETS)
def test_null_from_one_who_sees_the_field_is_invalid(
    app: Flask, doctor: Client, ill: dict[str, Any], field: str
) -> None:
    before = snapshot(app)
    assert_refused(doctor.patch(f"/patient/{ill['id']}", {field: None}), 422, field)
    new = {"first_name": "A", "last_name": "B", "phone_number": "0712 1", field: None}
    assert_refused(doctor.post("/patients", new), 422, field)
    assert snapshot(app) == before


def test_a_receptionist_runs_the_diary_of_every_doctor(
    doctor: Client, other_doctor: Client, receptionist: Client, ill: dict[str, Any]
) -> None:
    booking = {"patient_id": ill["id"], "user_id": doctor.user["id"], "appointment_datetime": "2030-03-01T10:00"}
    booked = receptionist.post("/appointment", booking)
    assert (booked.status_code, booked.json["doctor_name"]) == (201, "Dora Otieno")
    address = f"/appointment/{booked.json['id']}"
    assert receptionist.patch(address, {"appointment_datetime": "2030-03-02T10:00"}).status_code == 200
    assert receptionist.patch(address, {"user_id": other_doctor.user["id"]}).json["doctor_name"] == "Otto Otieno"
    off = receptionist.patch(address, {"status": "cancelled", "note": "Called off by phone"})
    assert (off.json["status"], off.json["note"]) == ("cancelled", "Called off by phone")
    assert doctor.get(address).json["note"] == "Called off by phone"
    assert receptionist.delete(address).status_code == 200


def test_a_receptionist_overbooks_nothing_and_a_move_of_theirs_ends_it(
    app: Flask, admin: Client, doctor: Client, receptionist: Client, ill: dict[str, Any]
) -> None:
    theirs = {"patient_id": ill["id"], "user_id": doctor.user["id"]}
    make_appointment(admin, **theirs)
    extra = make_appointment(admin, **theirs, overbooked=True, reason="an emergency")
    before = snapshot(app)
    more = {**theirs, "appointment_datetime": "2030-03-01T10:00", "overbooked": True, "reason": "now"}
    assert_refused(receptionist.post("/appointment", more), 403)
    assert snapshot(app) == before
    moved = receptionist.patch(f"/appointment/{extra['id']}", {"appointment_datetime": "2030-03-01T12:00"})
    assert (moved.status_code, moved.json["overbooked"]) == (200, False)


@pytest.mark.parametrize("archived", ["patient", "appointment", "user"])
def test_a_receptionist_neither_archives_patients_nor_restores(
    app: Flask, admin: Client, receptionist: Client, doctor: Client, ill: dict[str, Any], archived: str
) -> None:
    before = snapshot(app)
    assert_refused(receptionist.delete(f"/patient/{ill['id']}"), 403)
    assert_refused(receptionist.delete(f"/user/{doctor.user['id']}"), 403)
    assert_refused(receptionist.post(f"/{archived}/1/restore"), 403)
    assert_refused(receptionist.patch(f"/user/{receptionist.user['id']}", {"role": "admin"}), 403)
    assert_refused(receptionist.patch(f"/user/{doctor.user['id']}", {"first_name": "X"}), 403)
    assert snapshot(app) == before


# --- A receptionist is no doctor ---


def test_a_receptionist_is_named_as_doctor_by_nobody(
    app: Flask, admin: Client, doctor: Client, receptionist: Client, ill: dict[str, Any]
) -> None:
    appointment, report = make_appointment(doctor, ill["id"]), make_report(doctor, ill["id"])
    desk, before = receptionist.user["id"], snapshot(app)
    booking = {"patient_id": ill["id"], "appointment_datetime": "2030-03-04T10:00"}
    answers = [
        admin.post("/appointment", {**booking, "user_id": desk}),
        receptionist.post("/appointment", {**booking, "user_id": desk}),
        receptionist.post("/appointment", booking),  # by default oneself
        admin.patch(f"/appointment/{appointment['id']}", {"user_id": desk}),
        receptionist.patch(f"/appointment/{appointment['id']}", {"user_id": desk}),
        admin.patch(f"/reports/{report['id']}", {"user_id": desk}),
        admin.send("POST", "/reports", **form({"patient_id": str(ill["id"]), "user_id": str(desk), "diagnosis": "x"})),
    ]
    for answer in answers:
        assert_refused(answer, 422, "user_id")
        assert answer.json["msg"] == "Rosa Otieno is a receptionist. Please name a doctor."
    assert snapshot(app) == before


def test_a_doctor_with_appointments_to_come_becomes_no_receptionist(
    app: Flask, admin: Client, doctor: Client, ill: dict[str, Any]
) -> None:
    appointment = make_appointment(doctor, ill["id"])
    before = snapshot(app)
    address = f"/user/{doctor.user['id']}"
    for more in ({}, {"keep_appointments": True}):
        refused = admin.patch(address, {"role": "receptionist", **more})
        assert_refused(refused, 409)
        assert refused.json["code"] == "has_appointments"
    assert snapshot(app) == before
    admin.patch(f"/appointment/{appointment['id']}", {"status": "cancelled"})
    assert admin.patch(address, {"role": "receptionist"}).status_code == 200
    again = admin.patch(f"/appointment/{appointment['id']}", {"status": "scheduled"})
    assert (again.status_code, again.json["code"]) == (409, "doctor_inactive")


def test_one_who_wrote_reports_keeps_none_open_as_a_receptionist(
    admin: Client, doctor: Client, ill: dict[str, Any]
) -> None:
    report = make_report(doctor, ill["id"])
    assert admin.patch(f"/user/{doctor.user['id']}", {"role": "receptionist"}).status_code == 200
    assert_refused(doctor.get(f"/reports/{report['id']}"), 403)
    assert_refused(doctor.patch(f"/reports/{report['id']}", {"diagnosis": "x"}), 403)
    assert admin.get(f"/reports/{report['id']}").json["doctor_name"] == "Dora Otieno"


# --- Accounts ---


@pytest.mark.parametrize("role", ["receptionist", "Receptionist", "RECEPTIONIST"])
def test_a_receptionist_signs_up_by_themself(app: Flask, admin: Client, role: str) -> None:
    answer = Client(app).post("/signup", application(role))
    assert (answer.status_code, answer.json["role"]) == (201, "receptionist")


def test_a_receptionist_makes_no_administrator(app: Flask, receptionist: Client) -> None:
    before = snapshot(app)
    assert_refused(receptionist.post("/signup", application("admin")), 403)
    assert snapshot(app) == before


def test_the_staff_is_filtered_by_the_role(doctor: Client, receptionist: Client) -> None:
    assert [user["first_name"] for user in doctor.get("/users?role=receptionist").json] == ["Rosa"]


def test_a_role_of_a_later_release_may_nothing(own_app: Flask) -> None:
    sign_up(own_app, "Ada", "admin")
    sign_up(own_app, "Nia")
    nia = sign_in(own_app, "Nia")
    sqlite = own_app.config["DATABASE_URL"].startswith("sqlite")
    allow = "PRAGMA ignore_check_constraints=ON" if sqlite else "ALTER TABLE users DROP CONSTRAINT ck_users_role"
    sql(own_app, allow, "UPDATE users SET role = 'auditor' WHERE first_name = 'Nia'")
    headers = {"Authorization": f"Bearer {nia.token}"}  # the document knows of no such 403, so `nia.get` would fail
    for path in ("/me", "/patients", "/appointment", "/reports", "/audit"):
        assert nia.http.get(path, headers=headers).status_code == 403


def test_the_document_says_that_the_hidden_fields_may_be_null(app: Flask) -> None:
    schemas = Client(app).get("/openapi.json").json["components"]["schemas"]
    for field in SECRETS:
        for model in ("PatientOut", "PatientIn", "PatientPatch"):
            assert {"type": "null"} in schemas[model]["properties"][field]["anyOf"], json.dumps(schemas[model])
