"""Requests of strangers cost little: bad addresses, bodies and query strings get an early, short refusal."""

import io
import json
import time
from typing import Any

import pytest
from client import Client, assert_refused
from factories import NEW_PASSWORD, PASSWORD, credentials, files, log_in, make_patient, sign_up
from flask import Flask
from sql import snapshot
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")


def odd_addresses(rule: Rule) -> list[str]:
    """Return addresses like one of this rule, with slashes too many."""
    made = rule.build({name: "77" if name in ("key", "filename") else 77 for name in rule.arguments})
    assert made is not None
    path = made[1]
    return [f"{path}//", f"/{path}", f"//evil.example{path}", path.replace("/", "//"), f"{path}/"]


@pytest.mark.parametrize("method", METHODS)
def test_no_address_is_redirected_by_the_host_header(migrated: Flask, method: str) -> None:
    for rule in migrated.url_map.iter_rules():
        for path in odd_addresses(rule):
            raw = {"PATH_INFO": path}  # the test client reads `//evil.example` as a host
            answer = Client(migrated).send(method, "/", headers={"Host": "evil.example"}, environ_overrides=raw)
            assert not 300 <= answer.status_code < 400, f"{path} leads to {answer.headers.get('Location')}"


# --- Errors ---

MOST_FAULTS = 20
LONGEST_ANSWER = 16 * 1024


def faults(response: TestResponse) -> int:
    """Return how many faults the answer names."""
    return sum(len(texts) for texts in response.json["errors"].values())


@pytest.mark.parametrize("unknown", [21, 500, 5_000, 40_000])
def test_an_error_names_the_first_20_faults_and_counts_the_rest(app: Flask, doctor: Client, unknown: int) -> None:
    response = doctor.patch(f"/patient/{make_patient(doctor)['id']}", {f"f{n:05}": 1 for n in range(unknown)})
    assert_refused(response, 422, *(f"f{n:05}" for n in range(MOST_FAULTS)))
    assert response.json["msg"].startswith('There is no field "f00000" here. There is no field "f00001" here.')
    assert response.json["msg"].endswith(f" And {unknown - MOST_FAULTS:,} more.")


def test_twenty_faults_are_all_named(app: Flask, doctor: Client) -> None:
    response = doctor.patch(f"/patient/{make_patient(doctor)['id']}", {f"f{n}": 1 for n in range(MOST_FAULTS)})
    assert faults(response) == MOST_FAULTS
    assert "more" not in response.json["msg"]


@pytest.mark.parametrize("unknown", [21, 399, 400, 1_000])
def test_an_error_of_a_query_string_names_the_first_20_faults(app: Flask, doctor: Client, unknown: int) -> None:
    response = doctor.get("/patients?" + "&".join(f"f{n}=1" for n in range(unknown)))
    assert_refused(response, 422, *(f"f{n}" for n in range(MOST_FAULTS)))
    assert response.json["msg"].endswith(f" And {unknown - MOST_FAULTS:,} more.")


@pytest.mark.parametrize("times", [100, 399, 2_000])
def test_an_error_of_a_parameter_that_is_repeated_names_20_faults_at_most(
    app: Flask, doctor: Client, times: int
) -> None:
    response = doctor.get("/patients?" + "&".join(["status=x"] * times))
    assert response.status_code == 422
    assert faults(response) <= MOST_FAULTS


def test_an_error_names_20_bad_images_at_most(app: Flask, doctor: Client) -> None:
    images = files(*[b"no picture"] * 50)
    response = doctor.post("/reports", data={"patient_id": str(make_patient(doctor)["id"]), "images": images})
    assert_refused(response, 422, "images")
    assert faults(response) == MOST_FAULTS
    assert response.json["msg"].endswith(" And 30 more.")


# --- Bodies ---


class Unreadable(io.RawIOBase):
    """A body that must not be read."""

    def read(self, size: int = -1) -> bytes:
        raise AssertionError("the body was read")


def send_raw(client: Client, method: str, path: str, body: Any, length: int | None) -> TestResponse:
    """Send JSON with this Content-Length, or in chunks where there is none."""
    chunks = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"} if length is None else {}
    environ = {**chunks, "wsgi.input": body, "CONTENT_LENGTH": "" if length is None else str(length)}
    return client.send(method, path, environ_overrides=environ, content_type="application/json")


PUBLIC = ("/signup", "/login", "/password/forgot", "/password/reset")


@pytest.mark.parametrize("path", PUBLIC)
def test_a_public_address_refuses_more_than_16_kb_unread(app: Flask, path: str) -> None:
    assert_refused(send_raw(Client(app), "POST", path, Unreadable(), 16 * 1024 + 1), 413)


@pytest.mark.parametrize("path", PUBLIC)
def test_a_public_address_reads_16_kb_of_a_body_in_chunks(app: Flask, path: str) -> None:
    body = io.BytesIO(b" " * 10**6)
    assert_refused(send_raw(Client(app), "POST", path, body, None), 413)
    assert body.tell() <= 2 * 16 * 1024


def test_a_public_address_takes_16_kb(app: Flask) -> None:
    body = json.dumps(credentials("nobody")).encode().ljust(16 * 1024)
    for length in (len(body), None):
        assert send_raw(Client(app), "POST", "/login", io.BytesIO(body), length).status_code == 401


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("path", ["/patients", "/appointment", "/reports", "/me/password"])
def test_no_json_larger_than_its_fields_is_read(app: Flask, doctor: Client, method: str, path: str) -> None:
    patient = make_patient(doctor)["id"]
    existing = {"/patients": f"/patient/{patient}", "/appointment": "/appointment/1", "/reports": "/reports/1"}
    if method == "PATCH" and path not in existing:
        return
    path = existing[path] if method == "PATCH" else path
    before = snapshot(app)
    assert_refused(send_raw(doctor, method, path, Unreadable(), 900_000), 413)
    assert_refused(send_raw(doctor, method, path, io.BytesIO(b" " * 900_000), None), 413)
    assert snapshot(app) == before


def test_every_field_may_be_full_of_escaped_characters(app: Flask, doctor: Client) -> None:
    smile = "\U0001f600"
    fields = {"first_name": smile * 100, "last_name": smile * 100, "diagnosis": smile * 20_000}
    fields["doctor_summary"] = fields["diagnosis"]
    assert make_patient(doctor, **fields)["diagnosis"] == smile * 20_000  # the test client escapes each in 12 bytes


def test_a_whole_report_with_many_images_can_be_sent_back(app: Flask, doctor: Client) -> None:
    image = {"id": 1, "image_url": "https://clinic.test/" + "x" * 300, "width": 1, "height": 1, "format": "png"}
    diagnosis = {"diagnosis": "a" * 20_000, "images": [{**image, "bytes": 1}] * 300}
    # there is no such report: the body was read, and nothing in it found fault with
    assert doctor.patch("/reports/77", diagnosis).status_code == 404


# --- Passwords ---


@pytest.mark.parametrize(("length", "status"), [(4_000, 201), (4_001, 422)])
def test_a_password_has_4000_characters_at_most(app: Flask, length: int, status: int) -> None:
    password = (NEW_PASSWORD * 200)[:length]
    person = {"first_name": "Nia", "last_name": "Kamau", "email": "nia@clinic.test", "password": password}
    response = Client(app).post("/signup", person)
    assert response.status_code == status
    assert response.json.get("errors", {}).keys() == ({"password"} if status == 422 else set())


def test_a_longer_password_is_a_wrong_one_at_login(app: Flask) -> None:
    sign_up(app, "Nia")
    assert log_in(app, "Nia", PASSWORD * 500).status_code == 401


# --- What a refused request costs ---

MANY = 700_000  # bytes, near to the limit of the largest body
COSTLY = {
    "fields": b"{" + b",".join(b'"%d":1' % n for n in range(MANY // 11)) + b"}",
    "a thousand fields": b"{" + b",".join(b'"%d":1' % n for n in range(1_000)) + b"}",
    "emoji in a thousand fields": json.dumps({"\U0001f600" * 60 + str(n): 1 for n in range(1_000)}).encode()[:-2]
    + b"1}",
    "lists in a field": b'{"diagnosis":[' + b"[]," * (MANY // 3) + b"[]]}",
    "objects in a field": b'{"diagnosis":[' + b'{"a":1},' * (MANY // 8) + b"1]}",
    "numbers in a list": b"[" + b"1," * (MANY // 2) + b"1]",
    "texts in a list": b"[" + b'"",' * (MANY // 3) + b'""]',
    "quotes": b'"' * MANY,
    "backslashes": b'{"diagnosis":"' + b"\\\\" * (MANY // 2) + b'"}',
    "brackets": b"[" * MANY,
    "a long word": b'{"status":"' + b"-a" * (MANY // 2) + b'"}',
    "a long number": b'{"sex":' + b"9" * 4_000 + b"}",
    "blanks": b'{"status":"' + b" " * MANY + b'"}',
    "a text too long": b'{"diagnosis":"' + b"\\ud83d\\ude00" * (MANY // 12) + b'"}',
    "control characters in names": json.dumps({"\x01" * 99 + str(n): 1 for n in range(900)}).encode(),
}


@pytest.mark.parametrize("body", COSTLY.values(), ids=COSTLY)
def test_a_refused_body_costs_little_and_is_answered_briefly(app: Flask, doctor: Client, body: bytes) -> None:
    path = f"/patient/{make_patient(doctor)['id']}"
    times = []
    for _ in range(3):
        began = time.thread_time()
        response = send_raw(doctor, "PATCH", path, io.BytesIO(body), len(body))
        times.append(time.thread_time() - began)
        assert 400 <= response.status_code < 500
        assert len(response.data) <= LONGEST_ANSWER
    allowed = 0.005 + 0.040 * len(body) / 2**20
    assert min(times) < 3 * allowed, f"{min(times) * 1000:.1f} ms"  # the machine of the tests may be busy


QUERIES = {
    "fields": "&".join(f"{n}=1" for n in range(1_000)),
    "empty fields": "&" * 8_000,
    "a field": "&".join(["status=x"] * 900),
    "ids": "&".join(["user_id=x"] * 399),
    "a long name": "%F0%9F%98%80" * 600 + "=1",
    "a long name twice": "&".join(["%F0%9F%98%80" * 300 + "=1"] * 2),
    "a long value": "q=" + "%F0%9F%98%80" * 600,
    "control characters": "&".join("%01" * 60 + f"{n}=1" for n in range(40)),
}


@pytest.mark.parametrize("path", ["/patients", "/appointment", "/reports", "/users"])
@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_refused_query_string_costs_little_and_is_answered_briefly(
    app: Flask, doctor: Client, path: str, query: str
) -> None:
    times = []
    for _ in range(3):
        began = time.thread_time()
        response = doctor.get(f"{path}?{query}")
        times.append(time.thread_time() - began)
        assert response.status_code == 422
        assert len(response.data) <= LONGEST_ANSWER
    assert min(times) < 3 * 0.005, f"{min(times) * 1000:.1f} ms"
