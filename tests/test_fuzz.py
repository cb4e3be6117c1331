"""Schemathesis sends requests that the OpenAPI document allows or forbids, and checks the answers against it.

It takes a minute, on SQLite. `make fuzz MINUTES=10` takes longer, on both engines.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from client import Client
from factories import make_appointment, make_patient, make_report, sign_up
from flask import Flask

MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))  # in all; 0: what the suite has time for
ENGINES, RUNS = 2, 3
SECONDS = int(MINUTES * 60 / ENGINES / RUNS) or 8  # for one run
pytestmark = [
    pytest.mark.slow,
    *([] if MINUTES else [pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)]),
]
OWN_LOGIN = ("logout", "change_my_password", "update_user", "delete_user", "end_my_session")  # may end the run's login


def fuzz(address: str, client: Client, folder: Path, *options: str) -> None:
    """Runs schemathesis as this client. Fails with what it says, which has a curl command for each failure."""
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            *("--config-file", str(Path(__file__).parent / "schemathesis.toml")),
            *("run", f"{address}/openapi.json", "--max-time", str(SECONDS), *options),
            *("--header", f"Authorization: Bearer {client.token}"),
            *(() if MINUTES else ("--seed", "1")),  # CI asks the same each time; `make fuzz` something new
            *("--suppress-health-check", "all", "--no-color", "--generation-database", "none", "--warnings", "off"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS * 3 + 120,
    )
    said = "\n".join(line[:5_000] for line in (run.stdout + run.stderr).splitlines())
    assert run.returncode == 0, said
    assert re.search("[1-9][0-9]* generated", said), said


def only(*names: str) -> list[str]:
    return [option for name in names for option in ("--include-operation-id", name)]


def but(*names: str) -> list[str]:
    return [option for name in names for option in ("--exclude-operation-id", name)]


@pytest.fixture
def clinic(app: Flask, admin: Client, doctor: Client) -> Iterator[Flask]:
    """Something of each kind, and tokens that last."""
    patient = make_patient(admin)["id"]
    for client in (admin, doctor):
        make_appointment(client, patient, f"2030-03-0{client.user['id']}T10:00")
        make_report(client, patient)
    usual = app.config["JWT_ACCESS_TOKEN_EXPIRES"]
    app.config["JWT_ACCESS_TOKEN_EXPIRES"] = timedelta(days=1)
    yield app
    app.config["JWT_ACCESS_TOKEN_EXPIRES"] = usual


def anew(client: Client, app: Flask) -> Client:
    """The same person, with a token that lasts."""
    answer = Client(app).post("/login", {"email": client.user["email"], "password": "correct horse battery"})
    return Client(app, answer.json["access_token"], answer.json["user"])


def test_as_an_administrator(clinic: Flask, admin: Client, address: str, tmp_path: Path) -> None:
    fuzz(address, anew(admin, clinic), tmp_path, *but(*OWN_LOGIN))


def test_as_a_doctor(clinic: Flask, doctor: Client, address: str, tmp_path: Path) -> None:
    fuzz(address, anew(doctor, clinic), tmp_path, *but(*OWN_LOGIN))


def test_on_the_own_login_and_account(clinic: Flask, admin: Client, address: str, tmp_path: Path) -> None:
    sign_up(clinic, "Eve")
    fuzz(address, anew(admin, clinic), tmp_path, *only(*OWN_LOGIN))
