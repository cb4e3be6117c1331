"""Each message of the log is a single line, whatever strangers put into it."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import Client
from factories import files, make_patient, picture
from flask import Flask

from server import logs
from testing.cloudinary_double import CloudinaryDouble

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d [A-Z]+ [\w.]+: ")
FORGED = "2030-01-01T00:00:00.000+00:00 INFO hosi.access: user 1 GET /patients"
CONTROLS = {
    "a newline": "\n",
    "a carriage return": "\r",
    "both": "\r\n",
    "a vertical tab": "\v",
    "a form feed": "\f",
    "an escape": "\x1b[2K\x1b[1A",
    "a NUL": "\0",
    "a next line": "\x85",
    "a control of Latin-1": "\x9b2K",
    "a line separator": "\u2028",
    "an override of direction": "\u202e",
    "a lone surrogate": "\ud800",
}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the root logger writes, formatted as in production."""
    stream = io.StringIO(newline="")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.OneLineFormatter(logs.FORMAT))
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


def records(log: io.StringIO) -> list[str]:
    """The lines that look like a record, however a viewer ends a line."""
    return [line for line in log.getvalue().splitlines() if LINE.match(line)]


def written(name: str, message: str, error: Exception | None = None) -> list[str]:
    """The lines of a record, however a viewer ends a line. (Halves of surrogate pairs must not reach pytest's log.)"""
    exc_info = error and (type(error), error, error.__traceback__)
    record = logging.makeLogRecord({"name": name, "levelname": "ERROR", "msg": message, "exc_info": exc_info})
    return logs.OneLineFormatter(logs.FORMAT).format(record).splitlines()


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
@pytest.mark.parametrize("name", ["hosi", "werkzeug", "sqlalchemy.pool", "urllib3"])
def test_a_message_is_one_line(name: str, control: str) -> None:
    [line] = written(name, f"sorry{control}{FORGED}")
    assert LINE.match(line)
    assert line.isprintable()
    assert line.endswith(FORGED)


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_an_error_in_a_traceback_looks_like_no_record(control: str) -> None:
    try:
        raise OSError(f"sorry{control}{FORGED}")
    except OSError as error:
        first, *traceback = written("hosi", "it failed", error)
    assert LINE.match(first)
    assert len(traceback) >= 4
    assert all(line.startswith("  ") and line.isprintable() for line in traceback)


def test_text_stays_as_it_is(log: io.StringIO) -> None:
    logging.getLogger("hosi").error("Zoë said: %s", "أمينة 明 \\n 😀")
    assert log.getvalue().endswith("Zoë said: أمينة 明 \\n 😀\n")


def test_a_newline_in_what_cloudinary_says_makes_no_second_line(
    cloud: CloudinaryDouble, cloud_app: Flask, doctor: Client, log: io.StringIO
) -> None:
    clouded = Client(cloud_app, doctor.token, doctor.user)
    patient = make_patient(clouded)["id"]
    cloud.fail(1, json.dumps({"error": {"message": f"sorry\n{FORGED}"}}).encode())
    refused = clouded.post("/reports", data={"patient_id": patient, "images": files(picture())})
    assert refused.status_code == 502
    assert [line for line in records(log) if line.startswith("2030")] == []
    assert f"the image store failed: sorry\\n{FORGED}\n" in log.getvalue()


@pytest.mark.parametrize("place", ["path", "query", "User-Agent", "X-Request-ID", "file name", "email"])
def test_nothing_of_a_request_makes_a_second_line(doctor: Client, log: io.StringIO, place: str) -> None:
    evil = f"\n{FORGED}"
    patient = make_patient(doctor)["id"]
    header = {place: evil.replace("\n", "\x85")} if place in ("User-Agent", "X-Request-ID") else {}
    image = files(picture())[0]
    image.filename = evil if place == "file name" else "a.png"
    doctor.get(
        "/patient/%0A2030-01-01T00:00:00.000+00:00 INFO hosi: x" if place == "path" else "/patients", headers=header
    )
    doctor.get("/patients", query_string={"q": evil if place == "query" else "A"}, headers=header)
    doctor.post("/login", {"email": f"a{evil}@clinic.test" if place == "email" else "a@b.cd", "password": evil})
    doctor.post("/reports", data={"patient_id": patient, "images": [image]}, headers=header)
    assert all(LINE.match(line) for line in log.getvalue().splitlines())
    assert [line for line in records(log) if line.startswith("2030")] == []


def test_the_application_sets_its_log_up(tmp_path: Path) -> None:
    code = (
        "import logging; from app import create_app;"
        f"create_app({{'FLASK_ENV': 'testing', 'INSTANCE_PATH': {str(tmp_path)!r}, 'AUDIT_KEY': 'x' * 32}});"
        f"logging.getLogger('hosi').error('sorry\\n{FORGED}')"
    )
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert all(LINE.match(line) for line in run.stderr.splitlines())
    assert run.stderr.splitlines()[-1].endswith(f"ERROR hosi: sorry\\n{FORGED}")
