"""Bad input: each case is answered with its status and the error body, and changes nothing in the database.

The clinic is made once for all cases, since none of them may change it.
"""

import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from client import Client, assert_refused, form
from factories import PASSWORD, files, make_appointment, make_patient, make_report, picture, sign_in, sign_up
from flask import Flask
from sql import empty_tables, snapshot

PATIENT = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712 345 678"}
APPOINTMENT = {"patient_id": 1, "appointment_datetime": "2031-05-01T09:00"}
SIGNUP = {"first_name": "Neema", "last_name": "Otieno", "email": "neema@clinic.test", "password": PASSWORD}


class Clinic(NamedTuple):
    app: Flask
    admin: Client
    doctor: Client
    before: dict[str, list[Any]]


@pytest.fixture(scope="module")
def clinic(migrated: Flask) -> Iterator[Clinic]:
    """Make an administrator (user 1), a doctor (user 2), and the doctor's patient, appointment and report (id 1)."""
    empty_tables(migrated)
    sign_up(migrated, "Ada", "admin")
    sign_up(migrated, "Dora")
    doctor = sign_in(migrated, "Dora")
    make_patient(doctor, admitted_at="2026-01-10", discharged_at="2026-01-20")
    make_appointment(doctor, 1)
    make_report(doctor, 1)
    yield Clinic(migrated, sign_in(migrated, "Ada"), doctor, snapshot(migrated))
    empty_tables(migrated)


def raw(body: str | bytes, content_type: str | None = "application/json") -> dict[str, Any]:
    return {"data": body, "content_type": content_type}


def patient(**fields: Any) -> dict[str, Any]:
    return {"json": {**PATIENT, **fields}}


def appointment(**fields: Any) -> dict[str, Any]:
    return {"json": {**APPOINTMENT, **fields}}


def report(*contents: bytes, **fields: Any) -> dict[str, Any]:
    return form({"patient_id": "1", "images": files(*(contents or (picture(),))), **fields})


def without(field: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"json": {name: value for name, value in body.items() if name != field}}


HUGE = 2**63
DEEP = "[" * 100_000
URLENCODED = "application/x-www-form-urlencoded"
FORM = "multipart/form-data; boundary=XX"
PART = b'--XX\r\nContent-Disposition: form-data; name="patient_id"\r\n\r\n1'
FILE = b'\r\n--XX\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n\x89PNG'

# What is sent, the answer's code, and the fields it blames.
Case = tuple[str, str, dict[str, Any], int, tuple[str, ...]]
CASES: dict[str, Case] = {
    # malformed JSON, or JSON of the wrong shape
    "malformed JSON": ("POST", "/patients", raw('{"first_name": "Am'), 400, ()),
    "an empty body": ("POST", "/patients", raw(""), 400, ()),
    "bytes that are no UTF-8": ("POST", "/patients", raw(b'{"first_name": "\xff"}'), 400, ()),
    "half of a surrogate pair": ("POST", "/patients", raw('{"first_name": "\\ud800"}'), 400, ()),
    "brackets 100,000 deep": ("POST", "/patients", raw(DEEP), 400, ()),
    "brackets 300 deep": ("POST", "/patients", raw('{"first_name": ' + "[" * 300 + "]" * 300 + "}"), 400, ()),
    "objects 20,000 deep": ("PATCH", "/patient/1", raw('{"a":' * 20_000 + "1" + "}" * 20_000), 400, ()),
    "a byte order mark": ("PATCH", "/patient/1", raw(b"\xef\xbb\xbf{}"), 400, ()),
    "UTF-16": ("PATCH", "/patient/1", raw("{}".encode("utf-16")), 400, ()),
    "half of a surrogate pair in a key": ("PATCH", "/patient/1", raw('{"\\ud800": 1, "\\ud800": 2}'), 400, ()),
    "an integer of 6,000 digits": ("PATCH", "/appointment/1", raw('{"duration_minutes": %s}' % ("3" * 6_000)), 400, ()),
    "two bodies": ("PATCH", "/patient/1", raw("{}{}"), 400, ()),
    "a comma too many": ("PATCH", "/patient/1", raw('{"first_name": "A",}'), 400, ()),
    # a key twice
    "a field twice": ("PATCH", "/patient/1", raw('{"first_name": "A", "first_name": "B"}'), 400, ()),
    "a field twice, the same": ("PATCH", "/patient/1", raw('{"first_name": "A", "first_name": "A"}'), 400, ()),
    "a field twice, once escaped": ("PATCH", "/user/2", raw('{"role": "doctor", "\\u0072ole": "admin"}'), 400, ()),
    "a field of the server twice": ("PATCH", "/patient/1", raw('{"id": 1, "id": 2}'), 400, ()),
    "a field twice within another": ("PATCH", "/patient/1", raw('{"id": [{"a": {"b": 1, "b": 2}}]}'), 400, ()),
    "a field twice for a report": ("PATCH", "/reports/1", raw('{"diagnosis": "A", "diagnosis": "B"}'), 400, ()),
    "a field twice at login": ("POST", "/login", raw('{"email": "a@b.cd", "email": "c@b.cd"}'), 400, ()),
    "malformed JSON in a patch": ("PATCH", "/patient/1", raw("{]"), 400, ()),
    "malformed JSON for a report": ("PATCH", "/reports/1", raw("{]"), 400, ()),
    "malformed JSON at login": ("POST", "/login", raw("{]"), 400, ()),
    "a list for an object": ("POST", "/patients", {"json": [PATIENT]}, 422, ("body",)),
    "a text for an object": ("POST", "/patients", {"json": "Amina"}, 422, ("body",)),
    "null for an object": ("POST", "/patients", raw("null"), 422, ("body",)),
    "a list for an object in a patch": ("PATCH", "/patient/1", {"json": [1]}, 422, ("body",)),
    "an object for a text": ("POST", "/patients", patient(diagnosis={"code": "B54"}), 422, ("diagnosis",)),
    "a list for a word": ("POST", "/patients", patient(status=["admitted"]), 422, ("status",)),
    "a number for a text": ("POST", "/patients", patient(phone_number=712345678), 422, ("phone_number",)),
    # media types
    "a urlencoded form": ("POST", "/patients", raw("first_name=A", URLENCODED), 415, ()),
    "a multipart form for a patient": ("POST", "/patients", form(PATIENT), 415, ()),
    "plain text": ("POST", "/patients", raw("Amina", "text/plain"), 415, ()),
    "no content type": ("POST", "/patients", raw("{}", None), 415, ()),
    "a form at login": ("POST", "/login", form({"email": "a@b.cd", "password": "x"}), 415, ()),
    "a report as urlencoded form": ("POST", "/reports", raw("patient_id=1", URLENCODED), 415, ()),
    "a report as plain text": ("PATCH", "/reports/1", raw("diagnosis", "text/plain"), 415, ()),
    # required fields
    "no first name": ("POST", "/patients", without("first_name", PATIENT), 422, ("first_name",)),
    "nothing at all": ("POST", "/patients", {"json": {}}, 422, ("first_name", "last_name", "phone_number")),
    "no patient": ("POST", "/appointment", without("patient_id", APPOINTMENT), 422, ("patient_id",)),
    "no time": ("POST", "/appointment", without("appointment_datetime", APPOINTMENT), 422, ("appointment_datetime",)),
    "no password": ("POST", "/signup", without("password", SIGNUP), 422, ("password",)),
    "a name of spaces": ("POST", "/patients", patient(first_name="   "), 422, ("first_name",)),
    # texts
    "a NUL in a name": ("POST", "/patients", patient(first_name="Ami\0na"), 422, ("first_name",)),
    "a NUL in a diagnosis": ("PATCH", "/patient/1", {"json": {"diagnosis": "\0"}}, 422, ("diagnosis",)),
    "a NUL in a phone number": ("POST", "/patients", patient(phone_number="0712\0"), 422, ("phone_number",)),
    "a NUL in a status": ("POST", "/patients", patient(status="admitted\0"), 422, ("status",)),
    "a NUL in a reason": ("POST", "/appointment", appointment(reason="a\0b"), 422, ("reason",)),
    "a NUL in a report": ("POST", "/reports", report(diagnosis="a\0b"), 422, ("diagnosis",)),
    "a NUL in a report's patch": ("PATCH", "/reports/1", {"json": {"diagnosis": "\0"}}, 422, ("diagnosis",)),
    "a NUL in an email": ("POST", "/signup", {"json": {**SIGNUP, "email": "n\0@clinic.test"}}, 422, ("email",)),
    "a NUL in a new password": ("POST", "/signup", {"json": {**SIGNUP, "password": "a\0" * 9}}, 422, ("password",)),
    "a NUL in a login's email": ("POST", "/login", {"json": {"email": "\0", "password": "x"}}, 422, ("email",)),
    "a name of 101 letters": ("POST", "/patients", patient(first_name="a" * 101), 422, ("first_name",)),
    "a name of 100,000 letters": ("POST", "/patients", patient(last_name="a" * 100_000), 422, ("last_name",)),
    "a phone of 100,000 digits": ("POST", "/patients", patient(phone_number="7" * 100_000), 422, ("phone_number",)),
    "a diagnosis of 100,000": ("POST", "/patients", patient(diagnosis="a" * 100_000), 422, ("diagnosis",)),
    "a reason of 100,000": ("POST", "/appointment", appointment(reason="a" * 100_000), 413, ()),
    "a report of 100,000": ("POST", "/reports", report(diagnosis="a" * 100_000), 422, ("diagnosis",)),
    "an email of 100,000": ("POST", "/signup", {"json": {**SIGNUP, "email": "a" * 100_000}}, 413, ()),
    "letters for a phone": ("POST", "/patients", patient(phone_number="call me"), 422, ("phone_number",)),
    "an email without a host": ("POST", "/signup", {"json": {**SIGNUP, "email": "neema"}}, 422, ("email",)),
    "a short password": ("POST", "/signup", {"json": {**SIGNUP, "password": "123456789"}}, 422, ("password",)),
    "a well-known password": ("POST", "/signup", {"json": {**SIGNUP, "password": "1234567890"}}, 422, ("password",)),
    "a number for a password": ("POST", "/login", {"json": {"email": "a@b.cd", "password": 1}}, 422, ("password",)),
    # ids and numbers
    "an id of 33 bits": ("POST", "/appointment", appointment(patient_id=2**32), 422, ("patient_id",)),
    "an id of 64 bits": ("POST", "/appointment", appointment(patient_id=HUGE), 422, ("patient_id",)),
    "an id of 64 bits, a text": ("POST", "/appointment", appointment(patient_id=str(HUGE)), 422, ("patient_id",)),
    "an id of 64 bits in a form": ("POST", "/reports", report(patient_id=str(HUGE)), 422, ("patient_id",)),
    "an id of 5,000 digits": ("POST", "/appointment", appointment(patient_id="9" * 5_000), 422, ("patient_id",)),
    "an id of 5,000 digits in a form": ("POST", "/reports", report(patient_id="9" * 5_000), 422, ("patient_id",)),
    "a user id of 64 bits": ("PATCH", "/appointment/1", {"json": {"user_id": HUGE}}, 422, ("user_id",)),
    "an id of 0": ("POST", "/appointment", appointment(patient_id=0), 422, ("patient_id",)),
    "a negative id": ("POST", "/appointment", appointment(patient_id=-1), 422, ("patient_id",)),
    "true for an id": ("POST", "/appointment", appointment(patient_id=True), 422, ("patient_id",)),
    "a fraction for an id": ("POST", "/appointment", appointment(patient_id=1.5), 422, ("patient_id",)),
    "an infinite id": ("POST", "/appointment", raw('{"patient_id": 1e999, "appointment_datetime": "2031-05-01"}'), 422,
        ("patient_id",)),
    "NaN for an id": ("POST", "/appointment", raw('{"patient_id": NaN, "appointment_datetime": ""}'), 400, ()),
    "-Infinity for a text": ("POST", "/patients", raw('{"first_name": -Infinity}'), 400, ()),
    "a word for an id": ("POST", "/appointment", appointment(patient_id="one"), 422, ("patient_id",)),
    "a word for an id in a form": ("POST", "/reports", report(patient_id="one"), 422, ("patient_id",)),
    "Arabic digits for an id": ("POST", "/appointment", appointment(patient_id="١"), 422, ("patient_id",)),
    "a patient there is not": ("POST", "/appointment", appointment(patient_id=77), 422, ("patient_id",)),
    "a doctor there is not": ("PATCH", "/appointment/1", {"json": {"user_id": 77}}, 422, ("user_id",)),
    "a report's patient there is not": ("POST", "/reports", report(patient_id="77"), 422, ("patient_id",)),
    "a patch to a patient there is not": ("PATCH", "/reports/1", {"json": {"patient_id": 77}}, 422, ("patient_id",)),
    "true for minutes": ("POST", "/appointment", appointment(duration_minutes=True), 422, ("duration_minutes",)),
    "four minutes": ("POST", "/appointment", appointment(duration_minutes=4), 422, ("duration_minutes",)),
    "481 minutes": ("PATCH", "/appointment/1", {"json": {"duration_minutes": 481}}, 422, ("duration_minutes",)),
    "minutes of 64 bits": ("POST", "/appointment", appointment(duration_minutes=HUGE), 422, ("duration_minutes",)),
    "a number for true": ("PATCH", "/user/2", {"json": {"is_active": 1}}, 422, ("is_active",)),
    "a text for true": ("PATCH", "/user/2", {"json": {"is_active": "yes"}}, 422, ("is_active",)),
    # times and dates
    "30 February": ("POST", "/appointment", appointment(appointment_datetime="2031-02-30T10:00"), 422,
        ("appointment_datetime",)),
    "an admission on 30 February": ("POST", "/patients", patient(admitted_at="2031-02-30"), 422, ("admitted_at",)),
    "a birth on 29 February 1999": ("POST", "/patients", patient(date_of_birth="1999-02-29"), 422, ("date_of_birth",)),
    "a birth to come": ("POST", "/patients", patient(date_of_birth="2100-01-01"), 422, ("date_of_birth",)),
    "a birth with a time": ("POST", "/patients", patient(date_of_birth="1999-02-20T10:00"), 422, ("date_of_birth",)),
    "a birth in the year 1": ("POST", "/patients", patient(date_of_birth="0001-01-01"), 422, ("date_of_birth",)),
    "the year 9999": ("POST", "/appointment", appointment(appointment_datetime="9999-12-31T23:59-14:00"), 422,
        ("appointment_datetime",)),
    "the year 1": ("POST", "/appointment", appointment(appointment_datetime="0001-01-01T00:00+14:00"), 422,
        ("appointment_datetime",)),
    "the year 10000": ("POST", "/appointment", appointment(appointment_datetime="10000-01-01T00:00"), 422,
        ("appointment_datetime",)),
    "seconds since 1970": ("POST", "/appointment", appointment(appointment_datetime=1_900_000_000), 422,
        ("appointment_datetime",)),
    "the same as a text": ("POST", "/appointment", appointment(appointment_datetime="1900000000"), 422,
        ("appointment_datetime",)),
    "a day written the other way": ("POST", "/appointment", appointment(appointment_datetime="01/05/2031 09:00"), 422,
        ("appointment_datetime",)),
    "an hour that no day has": ("POST", "/appointment", appointment(appointment_datetime="2031-05-01T25:00"), 422,
        ("appointment_datetime",)),
    "an offset there is not": ("POST", "/appointment", appointment(appointment_datetime="2031-05-01T09:00+25:00"), 422,
        ("appointment_datetime",)),
    "no time but a word": ("PATCH", "/appointment/1", {"json": {"appointment_datetime": "tomorrow"}}, 422,
        ("appointment_datetime",)),
    "a discharge before admission": ("POST", "/patients", patient(admitted_at="2026-05-02", discharged_at="2026-05-01"),
        422, ("discharged_at",)),
    "a discharge moved before admission": ("PATCH", "/patient/1", {"json": {"discharged_at": "2030-01-09"}}, 422,
        ("discharged_at",)),
    "an admission moved past discharge": ("PATCH", "/patient/1", {"json": {"admitted_at": "2026-01-21"}}, 422,
        ("discharged_at",)),
    # enumerated words
    "a status there is not": ("POST", "/patients", patient(status="sleeping"), 422, ("status",)),
    "no status": ("PATCH", "/patient/1", {"json": {"status": ""}}, 422, ("status",)),
    "a sex there is not": ("POST", "/patients", patient(sex="f"), 422, ("sex",)),
    "a patient's status for an appointment": ("POST", "/appointment", appointment(status="healed"), 422, ("status",)),
    "a role there is not": ("POST", "/signup", {"json": {**SIGNUP, "role": "nurse"}}, 422, ("role",)),
    # null
    "null for a name": ("PATCH", "/patient/1", {"json": {"first_name": None}}, 422, ("first_name",)),
    "null for a status": ("PATCH", "/patient/1", {"json": {"status": None}}, 422, ("status",)),
    "null for a diagnosis": ("POST", "/patients", patient(diagnosis=None), 422, ("diagnosis",)),
    "null for a time": ("PATCH", "/appointment/1", {"json": {"appointment_datetime": None}}, 422,
        ("appointment_datetime",)),
    "null for minutes": ("PATCH", "/appointment/1", {"json": {"duration_minutes": None}}, 422, ("duration_minutes",)),
    "null for a doctor": ("PATCH", "/appointment/1", {"json": {"user_id": None}}, 422, ("user_id",)),
    "null for a report's patient": ("PATCH", "/reports/1", {"json": {"patient_id": None}}, 422, ("patient_id",)),
    "null for a report's author": ("PATCH", "/reports/1", {"json": {"user_id": None}}, 422, ("user_id",)),
    "null for an email": ("PATCH", "/user/2", {"json": {"email": None}}, 422, ("email",)),
    # unknown fields
    "an unknown field": ("POST", "/patients", patient(shoe_size=43), 422, ("shoe_size",)),
    "an unknown field in a patch": ("PATCH", "/patient/1", {"json": {"shoe_size": 43}}, 422, ("shoe_size",)),
    "an unknown field in a form": ("POST", "/reports", report(shoe_size="43"), 422, ("shoe_size",)),
    "the archive mark": ("PATCH", "/patient/1", {"json": {"deleted_at": None}}, 422, ("deleted_at",)),
    "a password in a user's patch": ("PATCH", "/user/2", {"json": {"password": "x" * 12}}, 422, ("password",)),
    "an id of one's own": ("POST", "/patients", patient(id=7), 422, ("id",)),
    "an MRN of one's own": ("POST", "/patients", patient(mrn="1234567890"), 422, ("mrn",)),
    "activity at sign-up": ("POST", "/signup", {"json": {**SIGNUP, "is_active": True}}, 422, ("is_active",)),
    "a field given twice in a form": ("POST", "/reports", report(diagnosis=["one", "two"]), 422, ("diagnosis",)),
    # multipart
    "multipart without a boundary": ("POST", "/reports", raw(PART, "multipart/form-data"), 400, ()),
    "a form that ends early": ("POST", "/reports", raw(PART, FORM), 400, ()),
    "a file that ends early": ("POST", "/reports", raw(PART + FILE, FORM), 400, ()),
    "no form at all": ("POST", "/reports", raw(b"patient_id=1", FORM), 400, ()),
    "a part with a header that is none": ("POST", "/reports",
        raw(b"--XX\r\nrubbish\r\n\r\n1\r\n--XX--\r\n", FORM), 400, ()),
    "a part without a name": ("POST", "/reports",
        raw(b"--XX\r\nContent-Disposition: form-data\r\n\r\n1\r\n--XX--\r\n", FORM), 400, ()),
    "a text that is no UTF-8": ("PATCH", "/reports/1",
        raw(PART.replace(b"patient_id", b"diagnosis") + b"\xe8vre\r\n--XX--\r\n", FORM), 400, ()),
    "a picture of an empty name": ("PATCH", "/reports/1",
        raw(FILE[2:].replace(b"a.png", b"") + b"\r\n--XX--\r\n", FORM), 422, ("images",)),
    "a form that ends early in a patch": ("PATCH", "/reports/1", raw(PART, FORM), 400, ()),
    "an empty form": ("POST", "/reports", raw(b"--XX--\r\n", FORM), 422, ("patient_id",)),
    "a report without an image": ("POST", "/reports", form({"patient_id": "1"}), 422, ("images",)),
    "a report in JSON": ("POST", "/reports", {"json": {"patient_id": 1}}, 422, ("images",)),
    "a text for a file": ("POST", "/reports", form({"patient_id": "1", "images": "scan"}), 422, ("images",)),
    "a file by another name": ("POST", "/reports", report(photo=files(picture())), 422, ("photo",)),
    "replacing by nothing": ("PATCH", "/reports/1", {"json": {"replace_images": True}}, 422, ("images",)),
    # too large
    "JSON of over 2 MB": ("POST", "/patients", raw(json.dumps({**PATIENT, "diagnosis": "a" * 2**21})), 413, ()),
    "a field of a form of 600,000": ("POST", "/reports", report(diagnosis="a" * 600_000), 413, ()),
    "a form of 1,001 fields": ("POST", "/reports", form({f"f{n}": "1" for n in range(1_001)}), 422, ("f0",)),
    # addresses
    "an address there is not": ("GET", "/nowhere", {}, 404, ()),
    "a patient never made": ("GET", "/patient/77", {}, 404, ()),
    "a user never made": ("PATCH", "/user/77", {"json": {"first_name": "A"}}, 404, ()),
    "a patient never made, changed": ("PATCH", "/patient/77", {"json": {"first_name": "A"}}, 404, ()),
    "an appointment never made": ("DELETE", "/appointment/77", {}, 404, ()),
    "a report never made": ("DELETE", "/reports/77", {}, 404, ()),
    "images for a report never made": ("PATCH", "/reports/77", form({"images": files(picture())}), 404, ()),
    "a path of 0": ("GET", "/patient/0", {}, 404, ()),
    "a path of 33 bits": ("GET", f"/patient/{2**32}", {}, 404, ()),
    "a path of 64 bits": ("DELETE", f"/appointment/{HUGE}", {}, 404, ()),
    "a path of 65 bits": ("PATCH", f"/reports/{2**64}", {"json": {}}, 404, ()),
    "a path of 5,000 digits": ("GET", f"/user/{'9' * 5_000}", {}, 404, ()),
    "a path of Arabic digits": ("GET", "/patient/%D9%A1", {}, 404, ()),
    "a path of a word": ("GET", "/patient/amina", {}, 404, ()),
    "a path with a NUL": ("GET", "/patient/%00", {}, 404, ()),
    "an image there is not": ("GET", "/media/%00", {}, 404, ()),
    "PUT": ("PUT", "/patient/1", {"json": PATIENT}, 405, ()),
    "DELETE of all": ("DELETE", "/patients", {}, 405, ()),
    # rights
    "no token": ("GET", "/patients", {"headers": {"Authorization": ""}}, 401, ()),
    "a token of another kind": ("GET", "/patients", {"headers": {"Authorization": "Basic YTpi"}}, 401, ()),
    "a token that is none": ("GET", "/patients", {"headers": {"Authorization": "Bearer x.y.z"}}, 401, ()),
    "no token, and malformed JSON": ("POST", "/patients", {**raw("{"), "headers": {"Authorization": ""}}, 401, ()),
    "a wrong password": ("POST", "/login", {"json": {"email": "dora@clinic.test", "password": "wrong"}}, 401, ()),
    "a doctor archives a patient": ("DELETE", "/patient/1", {}, 403, ()),
    "a doctor changes another's name": ("PATCH", "/user/1", {"json": {"first_name": "A"}}, 403, ()),
    "a doctor makes an administrator": ("POST", "/signup", {"json": {**SIGNUP, "role": "admin"}}, 403, ()),
    "a doctor books for another": ("POST", "/appointment", appointment(user_id=1), 403, ()),
    "a doctor reports for another": ("POST", "/reports", report(user_id="1"), 403, ()),
    "a doctor promotes themself": ("PATCH", "/user/2", {"json": {"role": "admin"}}, 403, ()),
    # conflicts
    "an email that is taken": ("POST", "/signup", {"json": {**SIGNUP, "email": "ADA@clinic.test"}}, 409, ("email",)),
    "an email changed to a taken one": ("PATCH", "/user/2", {"json": {"email": "ada@clinic.test"}}, 409, ("email",)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_is_refused_and_changes_nothing(clinic: Clinic, case: Case) -> None:
    method, path, sent, status, fields = case
    assert_refused(clinic.doctor.send(method, path, **sent), status, *fields)
    assert snapshot(clinic.app) == clinic.before


def chunked(clinic: Clinic, method: str, path: str, body: bytes) -> int:
    """Send the body in chunks, without a Content-Length, and return the status."""
    chunks = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": io.BytesIO(body)}
    return clinic.doctor.send(method, path, environ_overrides=chunks, content_type="application/json").status_code


def test_json_in_chunks_is_read_and_too_much_of_it_is_refused(clinic: Clinic) -> None:
    assert chunked(clinic, "PATCH", "/patient/1", b"{}") == 200
    assert chunked(clinic, "PATCH", "/patient/1", b" " * 2**21 + b"{}") == 413


def test_the_last_administrator_stays(clinic: Clinic) -> None:
    for sent in ({"role": "doctor"}, {"is_active": False}):
        assert_refused(clinic.admin.patch("/user/1", sent), 409)
    assert_refused(clinic.admin.delete("/user/1"), 409)
    assert snapshot(clinic.app) == clinic.before


def test_a_refused_word_is_answered_with_the_list(clinic: Clinic) -> None:
    response = clinic.doctor.post("/patients", {**PATIENT, "sex": "f"})
    assert response.json["errors"]["sex"] == ["Please choose one of these for the sex: female, male, other, unknown."]


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/signup", {**SIGNUP, "password": "short-9"}),
        ("/signup", {**SIGNUP, "password": ["a-secret-in-a-list"]}),
        ("/signup", {**SIGNUP, "email": "no email", "password": "a-secret-that-is-fine"}),
        ("/signup", {**SIGNUP, "email": "ada@clinic.test", "password": "a-secret-that-is-fine"}),
        ("/signup", {**SIGNUP, "password": "qwertyuiop"}),
        ("/login", {"email": "ada@clinic.test", "password": "a-secret-that-is-wrong"}),
        ("/login", {"email": "ada@clinic.test", "password": {"a-secret": "in-an-object"}}),
        ("/me/password", {"current_password": "a-secret-that-is-wrong", "new_password": "a-secret-that-is-fine"}),
        ("/me/password", {"current_password": "a-secret-that-is-wrong", "new_password": "tiny-one"}),
    ],
)
def test_no_refusal_repeats_a_password(clinic: Clinic, path: str, sent: dict[str, Any]) -> None:
    response = clinic.doctor.post(path, sent)
    assert response.status_code >= 400
    for secret in ("short-9", "a-secret", "in-a", "qwertyuiop", "tiny-one"):
        assert secret not in response.text


def test_a_password_in_malformed_json_is_not_repeated(clinic: Clinic) -> None:
    response = clinic.doctor.post("/login", **raw('{"email": "ada@clinic.test", "password": "a-secret'))
    assert_refused(response, 400)
    assert "secret" not in response.text


def test_the_405_says_what_is_allowed(clinic: Clinic) -> None:
    response = clinic.doctor.send("PUT", "/patient/1")
    assert {"GET", "PATCH", "DELETE"} <= set(response.headers["Allow"].split(", "))


def test_the_401_says_how_to_sign_in(clinic: Clinic) -> None:
    assert Client(clinic.app).get("/patients").headers["WWW-Authenticate"].startswith("Bearer")


def test_every_answer_has_a_request_id_of_its_own(clinic: Clinic) -> None:
    ids = {clinic.doctor.get(path).headers["X-Request-ID"] for path in ("/patients", "/nowhere", "/patient/77", "/")}
    assert len(ids) == 4
    assert all(ids)


def test_a_request_id_that_was_given_is_kept(clinic: Clinic) -> None:
    response = clinic.doctor.get("/patients", headers={"X-Request-ID": "ward-3.request_17"})
    assert response.headers["X-Request-ID"] == "ward-3.request_17"


@pytest.mark.parametrize("given", ["", "a" * 65, "a b", "a;b", "<script>", "é", "1\t2"])
def test_a_request_id_that_is_no_plain_word_is_replaced(clinic: Clinic, given: str) -> None:
    kept = clinic.doctor.get("/patients", headers={"X-Request-ID": given}).headers["X-Request-ID"]
    assert kept != given
    assert kept


# --- What a browser is told ---

ORIGIN = "http://localhost:3000"


@pytest.mark.parametrize(
    "origin", [f"http://{host}:{port}" for host in ("localhost", "127.0.0.1") for port in (3000, 5173)]
)
def test_the_developers_origins_may_read(clinic: Clinic, origin: str) -> None:
    response = clinic.doctor.get("/patients", headers={"Origin": origin})
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert "Origin" in response.headers["Vary"]


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:3001", "null", f"{ORIGIN}.evil.example"])
def test_no_other_origin_may_read(clinic: Clinic, origin: str) -> None:
    response = clinic.doctor.get("/patients", headers={"Origin": origin})
    assert response.headers.get("Access-Control-Allow-Origin") != origin
    assert response.headers.get("Access-Control-Allow-Origin") != "*"


def test_no_cookies_are_asked_for(clinic: Clinic) -> None:
    response = clinic.doctor.get("/patients", headers={"Origin": ORIGIN})
    assert "Access-Control-Allow-Credentials" not in response.headers
    assert "Set-Cookie" not in response.headers


def test_a_browser_may_read_the_headers_that_clients_need(clinic: Clinic) -> None:
    exposed = clinic.doctor.get("/patients", headers={"Origin": ORIGIN}).headers["Access-Control-Expose-Headers"]
    needed = {"ETag", "Link", "Location", "Retry-After", "X-Total-Count", "X-Total-Count-Estimated", "X-Request-ID"}
    assert set(exposed.split(", ")) == needed


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/patient/77", 404), ("/patients", 401)])
def test_a_browser_may_read_a_refusal(clinic: Clinic, path: str, status: int) -> None:
    token = {} if status == 404 else {"Authorization": ""}
    response = clinic.doctor.get(path, headers={"Origin": ORIGIN, **token})
    assert response.status_code == status
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_a_preflight_needs_no_token(clinic: Clinic, method: str) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization, content-type, if-match, idempotency-key",
    }
    response = Client(clinic.app).send("OPTIONS", "/reports/1", headers=asked)
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert method in response.headers["Access-Control-Allow-Methods"]
    allowed = response.headers["Access-Control-Allow-Headers"].split(", ")
    assert {"authorization", "content-type", "if-match", "idempotency-key"} <= set(allowed)


@pytest.mark.parametrize("path", ["/patients", "/patient/1", "/nowhere", "/reports", "/user/77", "/healthz"])
def test_no_cache_keeps_an_answer_and_no_browser_guesses_at_it(clinic: Clinic, path: str) -> None:
    headers = clinic.doctor.get(path).headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_a_slash_at_the_end_does_no_harm(clinic: Clinic) -> None:
    assert clinic.doctor.get("/patients/").json == clinic.doctor.get("/patients").json


def test_head_answers_as_get_without_a_body(clinic: Clinic) -> None:
    response = clinic.doctor.send("HEAD", "/patient/1")
    assert response.status_code == 200
    assert response.headers["ETag"] == clinic.doctor.get("/patient/1").headers["ETag"]
    assert response.data == b""


def test_the_root_says_where_to_look(clinic: Clinic) -> None:
    welcome = Client(clinic.app).get("/").json
    assert welcome["name"] == "Hosi Server"
    assert Client(clinic.app).get(welcome["links"]["health"]).json == {"status": "ok"}


def test_the_server_is_ready_when_its_schema_is_current(clinic: Clinic) -> None:
    ready = Client(clinic.app).get("/readyz")
    assert ready.status_code == 200
    assert ready.json["status"] == "ready"


def test_a_key_that_comes_twice_is_named(clinic: Clinic) -> None:
    response = clinic.doctor.patch("/patient/1", **raw('{"first_name": "A", "first_name": "B"}'))
    assert response.json["msg"] == 'The body has the key "first_name" twice in one object.'


def test_a_key_may_come_again_in_another_object_and_in_another_case(clinic: Clinic) -> None:
    owned = '{"id": [{"a": 1}, {"a": 2, "A": 3}], "version": {"id": 1}}'
    assert clinic.doctor.patch("/patient/1", **raw(owned)).status_code == 200
