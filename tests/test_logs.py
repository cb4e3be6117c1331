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
from typing import Any

import pytest
from client import Client
from factories import files, make_patient, make_report, picture
from flask import Flask
from werkzeug.test import EnvironBuilder, run_wsgi_app

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
    doctor.get(f"/patient/%0A{FORGED}" if place == "path" else "/patients", headers=header)
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


# --- A line for each request ---


def request_lines(log: io.StringIO) -> list[str]:
    return [line.partition(" INFO hosi.request: ")[2] for line in log.getvalue().splitlines() if "hosi.request" in line]


@pytest.fixture
def all_lines(log: io.StringIO) -> io.StringIO:
    for line in (logs.access, logs.answered):
        line.logger.setLevel("INFO")
    return log


def test_a_request_has_one_line_and_its_records_have_the_same_id(doctor: Client, all_lines: io.StringIO) -> None:
    patient, me = make_patient(doctor)["id"], doctor.user["id"]
    answer = doctor.get(f"/patient/{patient}", headers={"X-Request-ID": "from-nginx"})
    [line] = [line for line in request_lines(all_lines) if line.startswith("from-nginx")]
    size = len(answer.data)
    said = rf"from-nginx 127\.0\.0\.1 user {me} GET /patient/<id:patient_id> /patient/{patient} 200 {size} B [\d.]+ ms"
    assert re.fullmatch(said, line)
    assert f"hosi.access: from-nginx user {me} GET /patient/{patient}: patient {patient}\n" in all_lines.getvalue()


@pytest.mark.parametrize(("method", "path"), [("get", "/patient/1"), ("GET", "///patient/1"), ("get", "//patients")])
def test_a_read_is_told_by_its_route_however_it_was_written(
    app: Flask, doctor: Client, all_lines: io.StringIO, method: str, path: str
) -> None:
    make_patient(doctor)
    ready = EnvironBuilder("/", method=method, headers={"Authorization": f"Bearer {doctor.token}"}).get_environ()
    ready["PATH_INFO"] = path
    answer, status, _ = run_wsgi_app(app.wsgi_app, ready, buffered=True)
    assert (status, b"".join(answer)[:1]) == ("200 OK", b"[" if "patients" in path else b"{")
    told = path.lstrip("/")
    assert f" user {doctor.user['id']} GET /{told}: patient 1\n" in all_lines.getvalue()
    assert re.search(rf" GET /(patients|patient/<id:patient_id>) /{told} 200 ", all_lines.getvalue())


def test_a_stream_is_logged_with_all_its_bytes(doctor: Client, all_lines: io.StringIO) -> None:
    make_patient(doctor)
    answer = doctor.get("/patients")
    assert f" GET /patients /patients 200 {len(answer.data)} B " in request_lines(all_lines)[-1]


def test_no_token_link_or_search_is_logged(app: Flask, doctor: Client, all_lines: io.StringIO) -> None:
    report = make_report(doctor, make_patient(doctor)["id"], picture())
    link = report["images"][0]["image_url"]
    assert Client(app).get(link).status_code == 200
    doctor.get("/patients?q=amina")
    doctor.get("/patients%3Fq=amina")
    doctor.get("/patients/amina")
    Client(app).get("/reset-password?token=secret")
    text = all_lines.getvalue()
    assert "amina" not in text
    assert "secret" not in text
    assert doctor.token not in text
    assert "signature" not in text
    assert [line.split()[4:7] for line in request_lines(all_lines) if "/media" in line] == [
        ["GET", "/media/<key>", "/media/<key>"]
    ]
    assert [line.split()[4:7] for line in request_lines(all_lines) if "404" in line] == [
        ["GET", "-", "/patients…"],
        ["GET", "-", "/patients…"],
    ]


def as_json(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_each_line_may_be_an_object(doctor: Client) -> None:
    stream = io.StringIO(newline="")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.OneObjectFormatter())
    logging.getLogger().addHandler(handler)
    try:
        for line in (logs.access, logs.answered):
            line.logger.setLevel("INFO")
        doctor.get("/me", headers={"X-Request-ID": "from-nginx"})
        try:
            raise OSError(f"sorry\n{FORGED}")
        except OSError:
            logging.getLogger("hosi").exception("it failed\u2028%s", "\x85")
    finally:
        logging.getLogger().removeHandler(handler)
    answered = next(line for line in as_json(stream) if line["logger"] == "hosi.request")
    assert {name: answered[name] for name in ("request_id", "user", "method", "route", "status")} == {
        "request_id": "from-nginx",
        "user": doctor.user["id"],
        "method": "GET",
        "route": "/me",
        "status": 200,
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+[+-]\d\d:\d\d", answered["time"])
    failed = as_json(stream)[-1]
    assert (failed["level"], failed["message"]) == ("ERROR", "it failed\u2028\x85")
    assert "OSError: sorry" in failed["traceback"]


@pytest.mark.parametrize("log_format", ["plain", "json"])
def test_the_quick_way_writes_what_the_logger_writes(log_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO(newline="")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.OneObjectFormatter() if log_format == "json" else logs.OneLineFormatter(logs.FORMAT))
    monkeypatch.setattr(logging.root, "handlers", [handler])
    logs.access.logger.setLevel("INFO")
    logs.access.write("id", f"user 1 GET /x\n{FORGED}", "patient 1")
    monkeypatch.setattr(logging.root, "handlers", [handler, logging.NullHandler()])
    logs.access.write("id", f"user 1 GET /x\n{FORGED}", "patient 1")
    quick, usual = stream.getvalue().splitlines()
    if log_format == "json":
        assert {**json.loads(quick), "time": ""} == {**json.loads(usual), "time": ""}
    else:
        assert quick.partition(" ")[2] == usual.partition(" ")[2]
