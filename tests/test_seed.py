"""The demonstration clinic that `flask seed` makes."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from client import Client
from factories import make_patient
from flask import Flask
from sql import empty_tables, snapshot

SMALL = ("--patients", "30", "--doctors", "3", "--appointments", "60", "--reports", "3", "--first-day", "2026-03-02")


def seed(app: Flask, *options: str, fails: bool = False) -> str:
    result = app.test_cli_runner().invoke(args=["seed", *options])
    assert bool(result.exit_code) == fails, result.output
    return result.output


def test_it_makes_a_clinic_and_says_how_to_sign_in(app: Flask) -> None:
    said = seed(app, *SMALL)
    password = re.search("password: (.*)", said)[1]  # type: ignore[index]
    logins = dict(re.findall(r"  (admin|receptionist|doctor) +(\S+@\S+)", said))
    assert list(logins) == ["admin", "receptionist", "doctor"]
    for email in logins.values():
        answer = Client(app).post("/login", {"email": email, "password": password})
        assert answer.status_code == 200, answer.json
    client = Client(app, answer.json["access_token"])
    assert len(client.get("/users").json) == 5
    assert len({patient["mrn"] for patient in client.get("/patients").json}) == 30
    assert len(client.get("/patients?q=+254 7").json) == len(client.get("/patients?q=2547").json) > 0
    booked = client.get("/appointment").json
    assert len({(one["appointment_datetime"], one["user_id"]) for one in booked}) == 60
    assert len({(one["appointment_datetime"], one["patient_id"]) for one in booked}) == 60
    assert {one["appointment_datetime"][:10] for one in booked} <= {f"2026-03-{day:02}" for day in range(2, 14)}
    reports = client.get("/reports").json
    assert len(reports) == 3
    ids = [user["id"] for user in client.get("/users?role=doctor").json]
    assert [len(client.get(f"/user/{user}/hours").json) for user in ids] == [5, 5, 0]
    assert [len(client.get(f"/user/{user}/absences").json) for user in ids] == [1, 1, 0]
    assert client.get(reports[0]["images"][0]["image_url"]).mimetype == "image/png"


def test_its_records_can_be_changed_and_have_a_history(app: Flask) -> None:
    seed(app, *SMALL)
    assert "whole" in app.test_cli_runner().invoke(args=["audit", "verify"]).output
    user = {"email": "admin@hosi.example", "password": "demo clinic password"}
    admin = Client(app, Client(app).post("/login", user).json["access_token"])
    assert admin.patch("/patient/1", {"status": "healed"}).json["version"] == 2
    history = admin.get("/patient/1/history").json
    assert [entry["action"] for entry in history] == ["create", "change"]
    assert history[0]["changes"]["mrn"]["to"] == admin.get("/patient/1").json["mrn"]
    made = admin.post("/patients", {"first_name": "A", "last_name": "B", "phone_number": "0700 000 000"})
    assert made.json["id"] == 31


def made_by(app: Flask, *options: str) -> dict[str, Any]:
    empty_tables(app)
    seed(app, *options)
    rows = snapshot(app)
    users = [[value for value in row if not str(value).startswith("$2b$")] for row in rows["users"]]
    return {"users": users, **{kind: rows[kind] for kind in ("patients", "appointments")}}


def test_the_same_seed_makes_the_same_clinic(app: Flask) -> None:
    options = (*SMALL[:-4], "--reports", "0", *SMALL[-2:])
    first = made_by(app, *options)
    assert made_by(app, *options) == first
    assert made_by(app, *options, "--seed", "2") != first


def test_a_second_time_it_only_says_how_to_sign_in(app: Flask) -> None:
    seed(app, *SMALL)
    before = snapshot(app)
    assert "admin@hosi.example" in seed(app, *SMALL)
    assert snapshot(app) == before


def test_where_others_have_patients_it_makes_nothing_and_names_no_login_that_there_is_not(
    app: Flask, admin: Client
) -> None:
    make_patient(admin)
    before = snapshot(app)
    said = seed(app, *SMALL)
    assert "--add" in said
    assert "hosi.example" not in said
    assert snapshot(app) == before


def test_asked_to_it_adds_to_what_there_is(app: Flask) -> None:
    seed(app, *SMALL)
    seed(app, *SMALL, "--add")
    assert {kind: len(rows) for kind, rows in snapshot(app).items() if kind != "files"} | {"images": 0} == {
        "users": 8,
        "weeks": 4,
        "working_hours": 20,
        "absences": 4,
        "patients": 60,
        "appointments": 120,
        "reports": 6,
        "images": 0,
        "uploads": 0,
    }


def test_appointments_need_patients_and_doctors(app: Flask) -> None:
    assert "give some of both" in seed(app, "--doctors", "0", fails=True)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_production_is_left_alone_unless_forced(app: Flask, make_app: Callable[..., Flask]) -> None:
    secrets = {name: name * 5 for name in ("SECRET_KEY", "JWT_SECRET_KEY", "AUDIT_KEY")}
    live = make_app(FLASK_ENV="production", PUBLIC_URL="https://api.clinic.example", TIMEZONE="UTC", **secrets)
    assert "--force" in seed(live, *SMALL, fails=True)
    assert not snapshot(app)["patients"]
    seed(live, *SMALL, "--force")
    assert len(snapshot(app)["patients"]) == 30
