"""A request is refused if its sender loses their rights at any moment before it writes."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from client import Client, form
from factories import PASSWORD, files, make_patient, make_report, picture, sign_in, sign_up
from flask import Flask
from sql import snapshot, sql

from server.database import db
from testing.cloudinary_double import CloudinaryDouble


@pytest.fixture
def boss(app: Flask, admin: Client) -> Client:
    """A second administrator, whose rights the first one takes."""
    user = sign_up(app, "Boss")
    admin.patch(f"/user/{user['id']}", {"role": "admin"})
    return sign_in(app, "Boss")


@contextmanager
def all_but_the_last_byte(
    address: str, client: Client, method: str, path: str, body: bytes, kind: str
) -> Iterator[Any]:
    """Send a request but for its last byte; call what this yields to send that byte and get the status."""
    url = urlsplit(address)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {client.token}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=20) as connection:
        connection.sendall(head.encode() + body[:-1])
        time.sleep(0.2)  # the guard lets the request in and waits for its body

        def finish() -> int:
            connection.sendall(body[-1:])
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            return int(answer.split(b" ", 2)[1])

        yield finish


def demote(app: Flask, admin: Client, user: dict[str, Any]) -> None:
    assert admin.patch(f"/user/{user['id']}", {"role": "doctor"}).status_code == 200


def deactivate(app: Flask, admin: Client, user: dict[str, Any]) -> None:
    assert admin.patch(f"/user/{user['id']}", {"is_active": False}).status_code == 200


def archive(app: Flask, admin: Client, user: dict[str, Any]) -> None:
    assert admin.delete(f"/user/{user['id']}").status_code == 200


Loss = Callable[[Flask, Client, dict[str, Any]], None]


@pytest.mark.parametrize(
    ("loss", "method", "path", "body", "status"),
    [
        (demote, "PATCH", "/user/{me}", {"role": "admin"}, 403),
        (deactivate, "PATCH", "/user/{me}", {"is_active": True}, 401),
        (archive, "PATCH", "/user/{me}", {"first_name": "Back"}, 401),
        (demote, "POST", "/signup", "administrator", 403),
        (deactivate, "POST", "/signup", "administrator", 401),
        (deactivate, "POST", "/patients", "patient", 401),
        (demote, "PATCH", "/user/{other}", {"role": "admin"}, 403),
        (demote, "POST", "/appointment", "overbooking", 403),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_who_loses_their_rights_while_the_last_byte_is_on_its_way_is_refused(
    app: Flask, admin: Client, boss: Client, address: str, loss: Loss, method: str, path: str, body: Any, status: int
) -> None:
    other, patient = sign_up(app, "Olga"), make_patient(admin)["id"]
    named = {"first_name": "New", "last_name": "Person"}
    bodies = {
        "administrator": {**named, "email": "new@clinic.test", "password": PASSWORD, "role": "admin"},
        "patient": {**named, "phone_number": "0712 345 678"},
        "overbooking": {
            "patient_id": patient,
            "user_id": other["id"],
            "appointment_datetime": "2030-03-01T10:00",
            "overbooked": True,
            "reason": "urgent",
        },
    }
    content = json.dumps(bodies[body] if isinstance(body, str) else body).encode()
    path = path.format(me=boss.user["id"], other=other["id"])
    with all_but_the_last_byte(address, boss, method, path, content, "application/json") as finish:
        loss(app, admin, boss.user)
        before = snapshot(app)
        assert finish() == status
    assert snapshot(app) == before


def test_a_form_whose_last_byte_comes_after_the_logout_files_no_image(app: Flask, doctor: Client, address: str) -> None:
    report = make_report(doctor, make_patient(doctor)["id"])
    sent = form({"images": files(picture("JPEG"))})
    arguments = ("PATCH", f"/reports/{report['id']}", sent["data"], sent["content_type"])
    with all_but_the_last_byte(address, doctor, *arguments) as finish:
        doctor.post("/logout")
        before = snapshot(app)
        assert finish() == 401
    assert snapshot(app) == before


@pytest.mark.parametrize("loss", [deactivate, archive])
def test_images_that_are_being_sent_while_their_doctor_loses_the_account_are_taken_back(
    app: Flask, cloud_app: Flask, cloud: CloudinaryDouble, admin: Client, doctor: Client, loss: Loss
) -> None:
    sender = Client(cloud_app, doctor.token, doctor.user)
    report = make_report(sender, make_patient(doctor)["id"])
    before, stored = snapshot(app), dict(cloud.stored)
    cloud.delay = 1.0
    statuses: list[int] = []
    change = {"images": files(picture("JPEG"))}
    sending = threading.Thread(
        target=lambda: statuses.append(sender.patch(f"/reports/{report['id']}", data=change).status_code)
    )
    sending.start()
    time.sleep(0.4)
    loss(app, admin, doctor.user)
    sending.join()
    after = snapshot(app)
    assert statuses == [401]
    assert cloud.stored == stored
    assert {**before, "users": []} == {**after, "users": []}


def test_a_postgresql_of_another_isolation_level_changes_nothing(app: Flask) -> None:
    """Under REPEATABLE READ the second look at the rights would see them as they were before the wait."""
    with app.app_context():
        if db.engine.dialect.name == "sqlite":
            pytest.skip("SQLite has one writer")
        name = db.engine.url.database
        sql(app, f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
        try:
            db.engine.dispose()
            assert sql(app, "SHOW transaction_isolation") == [("read committed",)]
        finally:
            sql(app, f"ALTER DATABASE {name} RESET default_transaction_isolation")
            db.engine.dispose()
