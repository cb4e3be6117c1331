"""Makes users, patients, appointments, reports and pictures through the API."""

import io
from typing import Any

from client import Client
from flask import Flask
from PIL import Image
from werkzeug.datastructures import FileStorage

PASSWORD = "correct horse battery"
USUAL = {"FLASK_ENV": "testing", "BCRYPT_LOG_ROUNDS": 4, "RATELIMIT_ENABLED": False, "SIGNUP": "open"}


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
