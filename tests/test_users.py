"""The staff directory. test_accounts.py tests sign-up and passwords."""

import pytest
from client import Client, assert_refused
from factories import PASSWORD, hours_ago, make_appointment, make_patient, make_report, sign_in, sign_up
from flask import Flask
from sql import snapshot

from testing.statements import counted_statements

NEEMA = {"first_name": "Neema", "last_name": "Otieno", "email": "neema@clinic.test", "password": PASSWORD}


def test_a_user_signs_up_is_read_changed_and_archived(admin: Client, anonymous: Client) -> None:
    made = anonymous.post("/signup", NEEMA)
    assert made.status_code == 201
    assert made.headers["Location"] == f"/user/{made.json['id']}"
    address = made.headers["Location"]
    assert admin.get(address).json == made.json

    changed = admin.patch(address, {"last_name": "Kamau", "is_active": False})
    assert (changed.json["last_name"], changed.json["is_active"], changed.json["version"]) == ("Kamau", False, 2)

    assert admin.delete(address).status_code == 200
    for gone in (admin.get(address), admin.patch(address, {"last_name": "x"}), admin.delete(address)):
        assert_refused(gone, 404)
    assert [user["id"] for user in admin.get("/users").json] == [admin.user["id"]]


def test_who_signs_up_is_an_active_doctor_unless_said_otherwise(app: Flask) -> None:
    neema = sign_up(app, "Neema")
    assert (neema["role"], neema["is_active"]) == ("doctor", True)


@pytest.mark.parametrize("word", ["user", "User", "DOCTOR", " doctor "])
def test_the_role_is_read_as_the_published_sign_up_page_sends_it(app: Flask, word: str) -> None:
    assert sign_up(app, "Neema", word)["role"] == "doctor"


def test_no_answer_holds_a_password(admin: Client, anonymous: Client) -> None:
    answers = [
        anonymous.post("/signup", NEEMA),
        anonymous.post("/login", {"email": NEEMA["email"], "password": PASSWORD}),
        admin.get("/users"),
        admin.get("/user/1"),
        admin.patch("/user/1", {"last_name": "Kamau"}),
    ]
    for answer in answers:
        assert answer.status_code in (200, 201)
        assert PASSWORD not in answer.text
        assert "$2b$" not in answer.text


def test_an_email_is_kept_in_lower_case(app: Flask) -> None:
    assert sign_up(app, "Neema", email="Neema@Clinic.TEST")["email"] == "neema@clinic.test"


def test_an_email_is_free_again_for_none_but_its_owner(app: Flask, admin: Client, anonymous: Client) -> None:
    """An archived user keeps theirs, so that the account can be restored."""
    neema = sign_up(app, "Neema")
    admin.delete(f"/user/{neema['id']}")
    assert_refused(anonymous.post("/signup", NEEMA), 409, "email")


def test_a_whole_user_may_be_sent_back(doctor: Client) -> None:
    response = doctor.patch(f"/user/{doctor.user['id']}", {**doctor.user, "last_name": "Kamau"})
    assert response.status_code == 200, response.json
    assert response.json["last_name"] == "Kamau"


def test_a_user_with_future_appointments_cannot_be_archived(app: Flask, admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)
    for day in (1, 2, 3):
        make_appointment(doctor, patient["id"], f"2030-03-0{day}T10:00")
    make_appointment(doctor, patient["id"], hours_ago(3))
    make_appointment(doctor, patient["id"], "2030-03-04T10:00", status="cancelled")
    before = snapshot(app)
    refused = admin.delete(f"/user/{doctor.user['id']}")
    assert_refused(refused, 409)
    assert "3 appointments" in refused.json["msg"]
    assert snapshot(app) == before


def test_a_user_whose_appointments_are_over_can_be_archived(admin: Client, doctor: Client) -> None:
    make_appointment(doctor, make_patient(doctor)["id"], hours_ago(3))
    assert admin.delete(f"/user/{doctor.user['id']}").status_code == 200


def test_reports_of_a_user_who_left_still_name_them(admin: Client, doctor: Client) -> None:
    make_report(doctor, make_patient(doctor)["id"])
    admin.delete(f"/user/{doctor.user['id']}")
    assert admin.get("/reports").json[0]["doctor_name"] == "Dora Otieno"


def test_an_archived_user_does_not_sign_in(anonymous: Client, admin: Client, doctor: Client) -> None:
    admin.delete(f"/user/{doctor.user['id']}")
    assert_refused(anonymous.post("/login", {"email": doctor.user["email"], "password": PASSWORD}), 401)


def test_an_archived_user_is_signed_out_at_once(admin: Client, doctor: Client) -> None:
    admin.delete(f"/user/{doctor.user['id']}")
    assert_refused(doctor.get("/patients"), 401)


def test_one_of_two_administrators_may_go(app: Flask, admin: Client) -> None:
    second = admin.post("/signup", {**NEEMA, "role": "admin"})
    assert second.status_code == 201, second.json
    assert sign_in(app, "Neema").delete(f"/user/{admin.user['id']}").status_code == 200


def test_a_list_of_users_takes_as_many_statements_however_long_it_is(app: Flask, admin: Client) -> None:
    with counted_statements(app) as for_one:
        assert len(admin.get("/users").json) == 1
    for name in ("Neema", "Otto", "Paula", "Rashid"):
        sign_up(app, name)
    with counted_statements(app) as for_five:
        assert len(admin.get("/users").json) == 5
    assert len(for_five) == len(for_one)
