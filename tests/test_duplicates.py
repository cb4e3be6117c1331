"""Patients who may be one person: whom the server names, and why."""

from typing import Any

import pytest
from client import Client, assert_refused
from factories import make_patient
from flask import Flask
from sql import sql

from testing.statements import counted_statements

AMINA = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712 345 678", "date_of_birth": "1980-05-31"}
NAME_AND_BIRTH = "same name and birth date"
PHONE_AND_NAME = "same phone number and name"


def duplicates(client: Client, patient_id: int = 1) -> dict[int, list[str]]:
    response = client.get(f"/patient/{patient_id}/duplicates")
    assert response.status_code == 200, response.json
    return {found["patient"]["id"]: found["reasons"] for found in response.json}


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"first_name": "Wanjiru", "last_name": "Amina"},
        {"first_name": "AMINA", "last_name": "wanjirú"},
        {"first_name": "Amina Wanjiru", "last_name": "-"},
    ],
)
def test_the_same_name_and_birth_date(doctor: Client, other: dict[str, Any]) -> None:
    make_patient(doctor, **AMINA)
    make_patient(doctor, **AMINA | {"phone_number": "0733 111 222"} | other)
    assert duplicates(doctor) == {2: [NAME_AND_BIRTH]}
    assert duplicates(doctor, 2) == {1: [NAME_AND_BIRTH]}


def test_names_that_are_spelled_in_two_ways_are_the_same(doctor: Client) -> None:
    born = {"date_of_birth": "1980-05-31"}
    make_patient(doctor, **born, first_name="Jürgen", last_name="Al-Hassan", phone_number="111")
    make_patient(doctor, **born, first_name="Juergen", last_name="Alhassan", phone_number="222")
    assert duplicates(doctor) == {2: [NAME_AND_BIRTH]}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({}, PHONE_AND_NAME),
        ({"last_name": "Otieno"}, "same phone number and first name"),
        ({"first_name": "Zawadi"}, "same phone number and last name"),
        ({"phone_number": "+254712345678", "last_name": "Otieno"}, "same phone number and first name"),
        ({"phone_number": "00254 712 345 678 x5", "last_name": "Otieno"}, "same phone number and first name"),
    ],
)
def test_the_same_number_and_name(
    app: Flask, doctor: Client, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any], reason: str
) -> None:
    monkeypatch.setitem(app.config, "PHONE_REGION", "KE")
    make_patient(doctor, **AMINA)
    make_patient(doctor, **AMINA | {"date_of_birth": None} | other)
    assert duplicates(doctor) == {2: [reason]}
    assert duplicates(doctor, 2) == {1: [reason]}


@pytest.mark.parametrize(
    "other",
    [
        {"first_name": "Zawadi", "last_name": "Otieno"},  # the number of a family
        {"phone_number": "0733 111 222", "date_of_birth": "1980-05-30"},
        {"phone_number": "0733 111 222", "date_of_birth": None},
        {"phone_number": "0733 111 222", "first_name": "Aminata"},
    ],
)
def test_others_are_other_people(doctor: Client, other: dict[str, Any]) -> None:
    make_patient(doctor, **AMINA)
    make_patient(doctor, **AMINA | other)
    assert duplicates(doctor) == duplicates(doctor, 2) == {}


def test_two_who_have_no_birth_date_have_not_the_same(doctor: Client) -> None:
    for number in ("0712 345 678", "0733 111 222"):
        make_patient(doctor, **AMINA | {"phone_number": number, "date_of_birth": None})
    assert duplicates(doctor) == {}


def test_a_medical_record_number_with_two_digits_swapped(app: Flask, doctor: Client) -> None:
    make_patient(doctor, phone_number="111")
    make_patient(doctor, first_name="Zoe", last_name="Zulu", phone_number="222")
    sql(
        app,
        "UPDATE patients SET mrn = '1234567890' WHERE id = 1",
        "UPDATE patients SET mrn = '1235467890' WHERE id = 2",
    )
    assert duplicates(doctor) == {2: ["medical record numbers that differ by two swapped digits"]}


def test_whoever_has_most_reasons_comes_first_with_the_whole_record(doctor: Client) -> None:
    make_patient(doctor, **AMINA)
    make_patient(doctor, **AMINA | {"phone_number": "0733 111 222"})
    make_patient(doctor, **AMINA)
    response = doctor.get("/patient/1/duplicates")
    assert [found["reasons"] for found in response.json] == [[NAME_AND_BIRTH, PHONE_AND_NAME], [NAME_AND_BIRTH]]
    assert response.json[0]["patient"] == doctor.get("/patient/3").json


def test_an_archived_patient_is_no_duplicate(admin: Client, doctor: Client) -> None:
    make_patient(doctor, **AMINA)
    make_patient(doctor, **AMINA)
    admin.delete("/patient/2")
    assert duplicates(doctor) == {}
    assert_refused(doctor.get("/patient/2/duplicates"), 404)


def test_who_was_shown_is_in_the_access_log(doctor: Client, caplog: pytest.LogCaptureFixture) -> None:
    make_patient(doctor, **AMINA)
    make_patient(doctor, **AMINA)
    duplicates(doctor)
    assert "GET /patient/1/duplicates: patient 2" in caplog.text


def test_a_new_patient_who_may_be_known_is_linked_to_five_at_most(doctor: Client) -> None:
    for number in range(7):
        response = doctor.post("/patients", AMINA)
        assert response.status_code == 201
        links = [f'</patient/{known}>; rel="related"' for known in range(1, number + 1)][:5]
        assert response.headers.get("Link", "") == ", ".join(links)
    assert "Link" not in doctor.post("/patients", AMINA | {"first_name": "Zoe", "last_name": "Zulu"}).headers


def test_a_repeated_request_answers_with_the_same_links(doctor: Client) -> None:
    make_patient(doctor, **AMINA)
    once, again = (doctor.post("/patients", AMINA, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert once.headers["Link"] == again.headers["Link"] == '</patient/1>; rel="related"'


def test_a_refused_patient_has_no_link(doctor: Client) -> None:
    make_patient(doctor, **AMINA)
    refused = doctor.post("/patients", AMINA | {"sex": "x"})
    assert_refused(refused, 422, "sex")
    assert "Link" not in refused.headers


def test_duplicates_take_as_many_statements_whether_there_are_any_or_many(app: Flask, doctor: Client) -> None:
    counts = []
    for _ in range(4):
        with counted_statements(app) as creating:
            patient = make_patient(doctor, **AMINA)
        with counted_statements(app) as asking:
            duplicates(doctor, patient["id"])
        counts.append((len(creating), len(asking)))
    assert len(set(counts)) == 1
    assert counts[0] <= (9, 3)
