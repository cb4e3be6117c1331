"""A person's name has a visible character, and no control or direction character."""

import pytest
from client import Client, assert_refused, run_cli
from factories import PASSWORD, make_patient, sign_up
from flask import Flask
from sql import snapshot, sql

HIDDEN = {
    "a zero-width space": "\u200b",
    "a zero-width joiner": "\u200d",
    "a zero-width non-joiner": "\u200c",
    "a word joiner": "\u2060",
    "a byte order mark": "\ufeff",
    "a soft hyphen": "\u00ad",
    "marks of direction": "\u200e\u200f\u061c",
    "blanks and a joiner": "\u200d \u00a0\u3000 \u200d",
    "a combining grapheme joiner": "\u034f",
    "a variation selector": "\ufe0f",
    "tags": "\U000e0041\U000e007f",
    "an accent without a letter": "\u0301",
    "a Hangul filler": "\u3164",
    "half of a Hangul filler": "\uffa0\u115f\u1160",
    "an empty Braille cell": "\u2800",
}
CONTROLS = {
    "a NUL": "Ami\0na",
    "a tab": "Ami\tna",
    "a line feed": "Ami\nna",
    "a carriage return": "Ami\rna",
    "an escape": "\x1b[31mAmina",
    "a delete": "Amina\x7f.",
    "a control of Latin-1": "Ami\x9bna",
    "a next line": "Ami\x85na",
    "a line separator": "Ami\u2028na",
    "a paragraph separator": "Ami\u2029na",
}
OVERRIDES = {f"U+{point:X}": f"Ami{chr(point)}na" for point in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
REFUSED = {**HIDDEN, **CONTROLS, **OVERRIDES}

TAKEN = {
    "a hyphen": "-",
    "a point": ".",
    "one letter": "O",
    "a digit": "3",
    "an apostrophe": "N'Golo",
    "two words": "Mary Anne",
    "a decomposed accent": "Zoe\u0301",
    "Persian with a non-joiner": "می\u200cخواهم",
    "Sinhala with a joiner": "ක්\u200dෂ",
    "Hebrew with a mark of direction": "\u200fנועה",
    "Arabic": "أمينة",
    "Chinese": "明",
    "Hangul in jamo": "\u1112\u1161\u11ab",
    "Thai": "สมชาย",
    "letters of mathematics": "𝐀",
}


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED)
def test_a_name_that_hides_something_is_refused(app: Flask, doctor: Client, name: str) -> None:
    patient = make_patient(doctor)["id"]
    before = snapshot(app)
    account = {"first_name": "Nia", "last_name": "Kamau", "email": "nia@clinic.test", "password": PASSWORD}
    person = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712 345 678"}
    for field in ("first_name", "last_name"):
        assert_refused(Client(app).post("/signup", {**account, field: name}), 422, field)
        assert_refused(doctor.post("/patients", {**person, field: name}), 422, field)
        assert_refused(doctor.patch(f"/patient/{patient}", {field: name}), 422, field)
        assert_refused(doctor.patch(f"/user/{doctor.user['id']}", {field: name}), 422, field)
    assert snapshot(app) == before


def test_both_names_are_blamed(doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    sent = {"first_name": "\u200b", "last_name": "\x1b"}
    assert_refused(doctor.patch(f"/patient/{patient}", sent), 422, "first_name", "last_name")


@pytest.mark.parametrize("name", TAKEN.values(), ids=TAKEN)
def test_a_name_with_something_visible_is_taken_as_it_is(app: Flask, doctor: Client, name: str) -> None:
    assert make_patient(doctor, last_name=name)["last_name"] == name
    assert sign_up(app, "Nia", first_name=name)["first_name"] == name


def test_create_admin_refuses_a_name_that_hides_something(app: Flask) -> None:
    names = ("--first-name", "\u200b", "--last-name", "Otieno")
    code, said = run_cli(app, "create-admin", "--email", "ada@clinic.test", "--password", PASSWORD, *names)
    assert (code, "The first name needs a visible character." in said) == (1, True)


def test_a_name_of_an_earlier_version_is_read_and_may_be_sent_back(app: Flask, doctor: Client) -> None:
    patient, user = make_patient(doctor), doctor.get("/me").json
    for table, record in (("patients", patient), ("users", user)):
        sql(app, f"UPDATE {table} SET first_name = :name WHERE id = :id", name="\u202eAmi\tna", id=record["id"])
    for path in (f"/patient/{patient['id']}", f"/user/{user['id']}"):
        whole = doctor.get(path).json
        assert whole["first_name"] == "\u202eAmi\tna"
        assert doctor.patch(path, {**whole, "last_name": "Kamau"}).json["last_name"] == "Kamau"
        assert_refused(doctor.patch(path, {"last_name": whole["first_name"]}), 422, "last_name")
        assert doctor.patch(path, {"first_name": "Amina"}).json["first_name"] == "Amina"
        assert_refused(doctor.patch(path, {"first_name": whole["first_name"]}), 422, "first_name")
