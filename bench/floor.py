"""The floor of `make bench`, the least that the answers can cost: bare Flask, the driver's cursor, hmac and orjson.

It has no pool, no session, no validation and no headers: a single connection, statements as text, a token checked by
hand. Its bodies are the same as the server's, byte for byte.
"""

import base64
import hashlib
import hmac
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import psycopg2
from flask import Flask, Response, g, request

BATCH = 500

PATIENT = (
    "id, created_at, updated_at, version, mrn, first_name, last_name, phone_number, status, doctor_summary, diagnosis, "
    "admitted_at, discharged_at, date_of_birth, sex, merged"
)
ONE_PATIENT = f"SELECT {PATIENT} FROM patients WHERE id = %s AND deleted_at IS NULL"
PATIENTS = f"SELECT {PATIENT} FROM patients WHERE deleted_at IS NULL ORDER BY id"
PEOPLE = "p.id, p.first_name, p.last_name, p.mrn, p.phone_number, p.date_of_birth, d.id, d.first_name, d.last_name"
JOINS = "JOIN patients p ON p.id = r.patient_id JOIN users d ON d.id = r.user_id"
APPOINTMENTS = f"""SELECT r.id, r.created_at, r.updated_at, r.version, r.appointment_datetime, r.duration_minutes,
    r.status, r.reason, r.note, r.patient_id, r.user_id, r.overbooked, r.off_hours, {PEOPLE}
    FROM appointments r {JOINS} WHERE r.deleted_at IS NULL ORDER BY r.id LIMIT %s"""
REPORTS = f"""SELECT r.id, r.created_at, r.updated_at, r.version, r.diagnosis, r.patient_id, r.user_id, {PEOPLE}
    FROM reports r {JOINS} WHERE r.deleted_at IS NULL ORDER BY r.id LIMIT %s"""
IMAGES = """SELECT i.report_id, i.id, i.image_url, i.width, i.height, i.format, i.bytes FROM images i
    WHERE i.report_id IN (%s) AND i.deleted_at IS NULL ORDER BY i.id"""
CALLER = """SELECT u.id, u.role FROM users u JOIN login_sessions s ON s.user_id = u.id
    WHERE s.id = %s AND s.expires_at > %s AND s.ended_at IS NULL AND u.is_active AND u.deleted_at IS NULL"""


def create_floor(url: str, jwt_key: str, link_key: str, timezone: str, lifetime: int) -> Flask:
    app = Flask("floor", static_folder=None)
    zone, sqlite = ZoneInfo(timezone), url.startswith("sqlite")
    signing, linking = jwt_key.encode(), hashlib.sha256(b"links to images:" + link_key.encode()).digest()
    utc = ZoneInfo("UTC")
    if sqlite:
        connection: Any = sqlite3.connect(
            url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False
        )  # a stream changes threads
    else:
        connection = psycopg2.connect(url)
        connection.autocommit = True

    def execute(statement: str, *values: Any) -> Any:
        cursor = connection.cursor()
        cursor.execute(statement.replace("%s", "?") if sqlite else statement, values)
        return cursor

    if sqlite:

        def local(time: str | None) -> datetime | None:
            return None if time is None else datetime.fromisoformat(time + "+00:00").astimezone(zone)
    else:

        def local(time: Any) -> datetime | None:
            return None if time is None else time.astimezone(zone)

    def identify() -> None:
        _, _, token = request.headers["Authorization"].partition(" ")
        signed, _, signature = token.rpartition(".")
        right = base64.urlsafe_b64encode(hmac.digest(signing, signed.encode(), "sha256")).rstrip(b"=").decode()
        assert hmac.compare_digest(right, signature)
        payload = signed.partition(".")[2]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        assert claims["exp"] > time.time()
        assert claims["type"] == "access"
        now = datetime.now(utc)
        row = execute(CALLER, claims["sid"], now.replace(tzinfo=None).isoformat(" ") if sqlite else now).fetchone()
        assert str(row[0]) == claims["sub"]
        g.caller = row

    def patient(row: Any) -> dict[str, Any]:
        return {
            "id": row[0],
            "created_at": local(row[1]),
            "updated_at": local(row[2]),
            "version": row[3],
            "mrn": row[4],
            "first_name": row[5],
            "last_name": row[6],
            "phone_number": row[7],
            "status": row[8],
            "doctor_summary": row[9],
            "diagnosis": row[10],
            "admitted_at": local(row[11]),
            "discharged_at": local(row[12]),
            "date_of_birth": row[13],
            "sex": row[14],
            "merged": row[15] or [],
        }

    def appointment(row: Any) -> dict[str, Any]:
        return {
            "id": row[0],
            "created_at": local(row[1]),
            "updated_at": local(row[2]),
            "version": row[3],
            "appointment_datetime": local(row[4]),
            "duration_minutes": row[5],
            "status": row[6],
            "reason": row[7],
            "note": row[8],
            "patient_id": row[9],
            "user_id": row[10],
            "overbooked": bool(row[11]),
            "off_hours": bool(row[12]),
            **people(row[13:]),
        }

    def people(row: Any) -> dict[str, Any]:
        patient = ("id", "first_name", "last_name", "mrn", "phone_number", "date_of_birth")
        return {
            "patient_name": f"{row[1]} {row[2]}",
            "doctor_name": f"{row[7]} {row[8]}",
            "patient": dict(zip(patient, row[:6], strict=True)),
            "doctor": {"id": row[6], "first_name": row[7], "last_name": row[8]},
        }

    def links() -> Callable[[str], str]:
        base, reader, expires = (
            f"http://{request.host}/media",
            str(g.caller[0]),
            str((int(time.time()) // lifetime + 2) * lifetime),
        )
        query = f"reader={reader}&expires={expires}&signature="

        def link(key: str) -> str:
            signature = hmac.digest(linking, f"{key}|{reader}|{expires}".encode(), "sha256").hex()
            return f"{base}/{key}?{query}{signature}"

        return link

    def answer(shown: Any) -> Response:
        return Response(orjson.dumps(shown), mimetype="application/json")

    @app.get("/patient/<int:patient_id>")
    def get_patient(patient_id: int) -> Response:
        identify()
        return answer(patient(execute(ONE_PATIENT, patient_id).fetchone()))

    @app.get("/patients")
    def list_patients() -> Response:
        identify()
        if limit := request.args.get("limit"):
            return answer([patient(row) for row in execute(PATIENTS + " LIMIT %s", int(limit))])
        return Response(stream(), mimetype="application/json")

    def stream() -> Iterator[bytes]:
        if sqlite:
            cursor = connection.cursor()
        else:
            connection.autocommit = False
            cursor = connection.cursor("floor")
        cursor.execute(PATIENTS)
        before = b"["
        while rows := cursor.fetchmany(BATCH):
            yield before + orjson.dumps([patient(row) for row in rows])[1:-1]
            before = b","
        yield b"]"
        cursor.close()
        if not sqlite:
            connection.rollback()
            connection.autocommit = True

    @app.get("/appointment")
    def list_appointments() -> Response:
        identify()
        return answer([appointment(row) for row in execute(APPOINTMENTS, int(request.args["limit"]))])

    @app.get("/reports")
    def list_reports() -> Response:
        identify()
        link = links()
        reports: dict[int, dict[str, Any]] = {}
        for row in execute(REPORTS, int(request.args["limit"])):
            reports[row[0]] = {
                "id": row[0],
                "created_at": local(row[1]),
                "updated_at": local(row[2]),
                "version": row[3],
                "diagnosis": row[4],
                "patient_id": row[5],
                "user_id": row[6],
                **people(row[7:]),
                "images": [],
            }
        for row in execute(IMAGES.replace("%s", ",".join(map(str, reports)))):
            is_small = max(row[3], row[4]) <= 320 and row[6] <= 50_000
            reports[row[0]]["images"].append(
                {
                    "id": row[1],
                    "image_url": link(row[2]),
                    "width": row[3],
                    "height": row[4],
                    "format": row[5],
                    "bytes": row[6],
                    "thumbnail_url": link(row[2] if is_small else row[2].partition(".")[0] + ".thumb.webp"),
                }
            )
        return answer(list(reports.values()))

    return app
