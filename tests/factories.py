"""Makes users, patients, appointments, reports and pictures through the API."""

import functools
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from client import Client, form, run_cli
from flask import Flask
from PIL import Image
from sqlalchemy import insert
from werkzeug.datastructures import FileStorage
from werkzeug.test import TestResponse

from models import Appointment, Patient
from server.database import db
from server.times import now

MakeApp = Callable[..., Flask]
PASSWORD = "correct horse battery"
NEW_PASSWORD = "a lantern over the ward"
AUDIT_KEY = "the key of the history in every test"
USUAL = {
    "FLASK_ENV": "testing",
    "AUDIT_KEY": AUDIT_KEY,
    "BCRYPT_LOG_ROUNDS": 4,
    "RATELIMIT_ENABLED": False,
    "SIGNUP": "open",
}


def sign_up(app: Flask, name: str, role: str = "doctor", **fields: Any) -> dict[str, Any]:
    body = {
        "first_name": name,
        "last_name": "Otieno",
        "email": f"{name.lower()}@clinic.test",
        "password": PASSWORD,
        "role": role,
        **fields,
    }
    response = Client(app).post("/signup", body)
    assert response.status_code == 201, response.json
    return dict(response.json)


def sign_in(app: Flask, name: str, password: str = PASSWORD) -> Client:
    response = Client(app).post("/login", {"email": f"{name.lower()}@clinic.test", "password": password})
    assert response.status_code == 200, response.json
    return Client(app, response.json["access_token"], response.json["user"])


def make_patient(client: Client, **fields: Any) -> dict[str, Any]:
    body = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "+254 712 345 678", **fields}
    response = client.post("/patients", body)
    assert response.status_code == 201, response.json
    return dict(response.json)


def make_appointment(client: Client, patient_id: int, at: str = "2030-03-01T10:00", **fields: Any) -> dict[str, Any]:
    body = {"patient_id": patient_id, "appointment_datetime": at, **fields}
    response = client.post("/appointment", body)
    assert response.status_code == 201, response.json
    return dict(response.json)


def hours_ago(hours: float) -> str:
    """A time of today or yesterday, as it is booked afterwards: over a day ago nothing is booked any more."""
    return (datetime.now(UTC) - timedelta(hours=hours)).isoformat(timespec="minutes")


def at(hour: int, days: int = 3) -> str:
    """A full hour of a day to come."""
    return f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}T{hour:02}:00"


def just_now() -> str:
    """A time of today, as late as a few minutes ago, whose next half hour is of today, too."""
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0)
    begun = min(now - timedelta(minutes=10), midnight + timedelta(hours=23, minutes=30))
    return max(midnight, begun).isoformat(timespec="minutes")


def make_report(client: Client, patient_id: int, *contents: bytes, **fields: Any) -> dict[str, Any]:
    form = {"patient_id": patient_id, **fields, "images": files(*(contents or (picture(),)))}
    response = client.post("/reports", data=form)
    assert response.status_code == 201, response.json
    return dict(response.json)


def picture(format: str = "PNG", size: tuple[int, int] = (40, 30), colour: str = "navy") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format)
    return file.getvalue()


def files(*contents: bytes) -> list[FileStorage]:
    return [FileStorage(io.BytesIO(content), f"scan{number}.png") for number, content in enumerate(contents, 1)]


def many_patients(app: Flask, number: int) -> None:
    """By one bulk insert, past the search."""
    row = {"last_name": "Wanjiru", "phone_number": "0712", "created_at": now(), "updated_at": now(), "version": 1}
    with app.app_context():
        db.session.execute(
            insert(Patient), [{**row, "mrn": f"{n:010}", "first_name": f"Bulk{n}"} for n in range(number)]
        )
        db.session.commit()


def many_appointments(app: Flask, number: int, patient_id: int, user_id: int) -> None:
    """By one bulk insert: done, one an hour, until an hour ago."""
    row = {"patient_id": patient_id, "user_id": user_id, "status": "completed", "reason": "Check-up", "version": 1}
    row |= {"duration_minutes": 30, "created_at": now(), "updated_at": now()}
    hour = now().replace(minute=0, second=0, microsecond=0)
    rows = [{**row, "appointment_datetime": hour - timedelta(hours=n + 1)} for n in range(number)]
    with app.app_context():
        db.session.execute(insert(Appointment), rows)
        db.session.commit()


def credentials(name: str, password: str = PASSWORD) -> dict[str, str]:
    return {"email": f"{name.lower()}@clinic.test", "password": password}


def log_in(app: Flask, name: str, password: str = PASSWORD) -> TestResponse:
    return Client(app).post("/login", credentials(name, password))


def token_in(text: str) -> str:
    found = re.search(r"token=([\w-]+)", text)
    assert found
    return found[1]


def reset_token(app: Flask, name: str) -> str:
    return token_in(run_cli(app, "reset-link", f"{name}@clinic.test")[1])


def application(role: str = "doctor", **fields: Any) -> dict[str, Any]:
    """What somebody sends to sign up."""
    name = {"first_name": "Nia", "last_name": "Kamau", "email": "nia@clinic.test"}
    return {**name, "password": PASSWORD, "role": role, **fields}


@functools.cache
def noise(megabytes: int) -> bytes:
    """A PNG of about this size, since noise cannot be compressed."""
    side = int((megabytes * 1_000_000) ** 0.5)
    file = io.BytesIO()
    Image.effect_noise((side, side), 100).save(file, "PNG", compress_level=1)
    return file.getvalue()


def reported(patient_id: int, *contents: bytes) -> dict[str, Any]:
    return form({"patient_id": str(patient_id), "images": files(*contents)})


def new_login(app: Flask, name: str = "Nia", **kwargs: Any) -> dict[str, Any]:
    """The tokens of a new login."""
    body = {"email": f"{name.lower()}@clinic.test", "password": PASSWORD}
    response = Client(app).post("/login", body, **kwargs)
    assert response.status_code == 200, response.json
    return dict(response.json)


def refresh(app: Flask, pair: dict[str, Any], **kwargs: Any) -> TestResponse:
    return Client(app, pair["refresh_token"]).post("/refresh", **kwargs)


def claims_of(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


def forged(app: Flask, claims: dict[str, Any], key: str | None = None, **options: Any) -> str:
    return jwt.encode(claims, key or app.config["JWT_SECRET_KEY"], **options)
