"""Multipart forms: read part by part, refused at the first wrong part, without leaving files behind."""

import io
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client import Client, assert_refused
from factories import make_patient, picture
from flask import Flask
from sql import snapshot
from werkzeug.test import TestResponse

MOST_FILES = 50
FILE_LIMIT = 20 * 1024 * 1024
FORM = "multipart/form-data; boundary=XX"
END = b"--XX--\r\n"


def part(name: str, content: bytes, filename: str | None = None, headers: str = "") -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    head = f'--XX\r\nContent-Disposition: form-data; name="{name}"{file}\r\n{headers}\r\n'
    return head.encode() + content + b"\r\n"


class Repeated(io.RawIOBase):
    """A body that begins with `first` and goes on with as many copies of `piece`; it is made while it is read."""

    def __init__(self, first: bytes, piece: bytes, times: int, end: bytes = END) -> None:
        self._pieces = iter([first, *[piece] * times, end])
        self._rest = b""
        self.length = len(first) + len(piece) * times + len(end)
        self.taken = 0

    def readinto(self, buffer: Any) -> int:
        size = len(buffer)
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        piece, self._rest = self._rest[:size], self._rest[size:]
        buffer[: len(piece)] = piece
        self.taken += len(piece)
        return len(piece)


def send(client: Client, body: bytes | Repeated, method: str = "POST", path: str = "/reports") -> TestResponse:
    stream = io.BytesIO(body) if isinstance(body, bytes) else body
    length = len(body) if isinstance(body, bytes) else body.length
    environ = {"wsgi.input": stream, "CONTENT_LENGTH": str(length), "CONTENT_TYPE": FORM}
    return client.send(method, path, environ_overrides=environ)


@pytest.fixture
def patient_id(doctor: Client) -> bytes:
    """The first part of a form: the id of a patient."""
    return part("patient_id", str(make_patient(doctor)["id"]).encode())


IMAGE = part("images", picture(), "scan.png")


# --- Refused at the first part that is not taken ---


def test_a_form_is_refused_at_the_51st_file_before_the_rest_is_read(
    app: Flask, doctor: Client, patient_id: bytes
) -> None:
    body = Repeated(patient_id, part("images", b"x" * 510_000, "scan.png"), 998)
    before, files = snapshot(app), open_files()
    response = send(doctor, body)
    assert_refused(response, 422, "images")
    assert response.json["errors"]["images"] == ["At most 50 images can be sent at once."]
    assert body.taken < (MOST_FILES + 1) * 510_200
    assert snapshot(app) == before
    assert open_files() == files


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the database makes no difference
def test_a_form_is_refused_at_the_first_file_over_20_mb_before_the_rest_is_read(
    app: Flask, doctor: Client, patient_id: bytes
) -> None:
    body = Repeated(patient_id, part("images", b"x" * (FILE_LIMIT + 1), "scan.png"), 40)
    assert_refused(send(doctor, body), 413)
    assert body.taken < FILE_LIMIT + 200_000


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the database makes no difference
def test_a_file_of_20_mb_is_taken_in(app: Flask, doctor: Client, patient_id: bytes) -> None:
    body = Repeated(patient_id, part("images", b"x" * FILE_LIMIT, "scan.png"), 1)
    assert_refused(send(doctor, body), 422, "images")  # a file, but no picture


@pytest.mark.parametrize(
    ("unknown", "field"),
    [
        (part("shoe_size", b"43"), "shoe_size"),
        (part("photo", b"x" * 100, "scan.png"), "photo"),
        (part("diagnosis", b"x" * 100, "scan.png"), "diagnosis"),
        (part("images", b"scan"), "images"),
        (part("patient_id", b"1"), "patient_id"),
        (part("x" * 5_000, b"43"), "x" * 50),
    ],
    ids=["a text", "a file", "a file for a text", "a text for a file", "a field twice", "a long name"],
)
def test_a_form_is_refused_at_the_first_part_that_is_not_taken(
    app: Flask, doctor: Client, patient_id: bytes, unknown: bytes, field: str
) -> None:
    body = Repeated(patient_id + unknown, part("images", b"x" * 10**6, "scan.png"), 40)
    assert_refused(send(doctor, body), 422, field)
    assert body.taken <= 64 * 1024


def test_the_texts_of_a_form_are_as_long_as_its_fields_at_most(app: Flask, doctor: Client, patient_id: bytes) -> None:
    body = Repeated(patient_id + part("diagnosis", b"x" * 600_000), part("images", b"x" * 10**6, "scan.png"), 40)
    assert_refused(send(doctor, body), 413)
    assert body.taken < 400_000


def test_the_headers_of_a_part_are_limited(app: Flask, doctor: Client, patient_id: bytes) -> None:
    body = Repeated(patient_id + b"--XX\r\n", b"X-Padding: " + b"x" * 1_000 + b"\r\n", 40_000)
    assert_refused(send(doctor, body), 413)
    assert body.taken <= 256 * 1024


def test_a_thousand_empty_inputs_are_too_many(app: Flask, doctor: Client, patient_id: bytes) -> None:
    assert_refused(send(doctor, patient_id + part("images", b"", "") * 1_000 + END), 413)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the database makes no difference
@pytest.mark.parametrize(
    "piece", [b"\r", b"\n", b"\r\n", b"\r\n--X", b"\r\n--XX-", b"--XX", b"\r\n--XXX", b"\0"], ids=repr
)
def test_a_part_of_any_bytes_costs_little(app: Flask, doctor: Client, patient_id: bytes, piece: bytes) -> None:
    content = piece * (4 * 2**20 // len(piece))
    times = []
    for _ in range(3):
        began = time.thread_time()
        send(doctor, patient_id + part("images", content, "scan.png") + part("shoe_size", b"43") + END)
        times.append(time.thread_time() - began)
    assert min(times) < 3 * (0.005 + 4 * 0.040), f"{min(times) * 1000:.0f} ms"


# --- What a form may be like ---


def test_the_fields_may_come_in_any_order(app: Flask, doctor: Client, patient_id: bytes) -> None:
    for body in (patient_id + IMAGE, IMAGE + patient_id, IMAGE + patient_id + IMAGE):
        assert send(doctor, body + END).status_code == 201


def test_an_input_without_a_chosen_file_is_no_image(app: Flask, doctor: Client, patient_id: bytes) -> None:
    empty = part("images", b"", "", "Content-Type: application/octet-stream\r\n")
    report = send(doctor, patient_id + empty + IMAGE * MOST_FILES + empty + END)
    assert report.status_code == 201
    assert len(report.json["images"]) == MOST_FILES
    assert_refused(send(doctor, patient_id + empty + END), 422, "images")


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("", "fièvre 🩺"),
        ("text/plain", "fièvre 🩺"),
        ("text/plain; charset=UTF-8", "fièvre 🩺"),
        ("text/plain; charset=iso-8859-1", "fièvre"),
        ("", "what was no text: \ufffd"),
    ],
)
def test_a_text_is_read_by_its_charset(
    app: Flask, doctor: Client, patient_id: bytes, content_type: str, content: str
) -> None:
    encoded = content.encode("latin-1" if "8859" in content_type else "utf-8")
    headers = f"Content-Type: {content_type}\r\n" if content_type else ""
    report = send(doctor, patient_id + part("diagnosis", encoded, headers=headers) + IMAGE + END)
    assert report.json["diagnosis"] == content


def test_a_form_may_have_a_preamble_and_an_epilogue(app: Flask, doctor: Client, patient_id: bytes) -> None:
    assert send(doctor, b"for old mail programs\r\n" + patient_id + IMAGE + END + b"bye").status_code == 201


@pytest.mark.parametrize("end", ["whole", "cut"])
def test_a_form_in_chunks_is_read(app: Flask, doctor: Client, patient_id: bytes, end: str) -> None:
    body = patient_id + IMAGE + END
    stream = io.BytesIO(body if end == "whole" else body[:-20])
    chunks = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    environ = {**chunks, "wsgi.input": stream, "CONTENT_TYPE": FORM}
    response = doctor.send("POST", "/reports", environ_overrides=environ)
    assert response.status_code == (201 if end == "whole" else 400)


# --- What is left behind ---


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "last",
    [part("shoe_size", b"43") + END, IMAGE * MOST_FILES + END, b"--XX\r\nrubbish\r\n\r\n1\r\n", b"", END],
    ids=["an unknown field", "a file too many", "a broken part", "the end missing", "no pictures"],
)
def test_no_file_stays_open_after_a_form_is_refused(app: Flask, doctor: Client, patient_id: bytes, last: bytes) -> None:
    body = patient_id + part("images", b"x" * 600_000, "scan.png") * 3 + last
    send(doctor, body)
    before = open_files()
    for _ in range(5):
        assert 400 <= send(doctor, body).status_code < 500
    assert open_files() == before


@pytest.fixture(params=["a full disk", "no folder"])
def no_room(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """There is hardly room for temporary files: a file system of 16 KB, or a folder that is not there."""
    folder = tmp_path / "temporary"
    if request.param == "a full disk":
        folder.mkdir()
        mounting = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
        if subprocess.run(mounting, check=False, capture_output=True).returncode:
            pytest.skip("only root can mount a file system")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    if request.param == "a full disk":
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("content", [b"x" * 600_000, picture("JPEG", (1_500, 1_500))], ids=["large", "small"])
@pytest.mark.usefixtures("no_room")
def test_a_full_disk_for_temporary_files_is_503_and_nothing_is_kept(
    app: Flask, doctor: Client, patient_id: bytes, content: bytes
) -> None:
    before, files = snapshot(app), open_files()
    response = send(doctor, patient_id + part("images", content, "scan.jpg") + END)
    assert_refused(response, 503)
    assert response.headers["Retry-After"]
    assert snapshot(app) == before
    assert open_files() == files
