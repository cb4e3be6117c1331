"""What `make run` and `GET /` say before anybody has an account: where the server is, and who may sign up."""

from pathlib import Path

import pytest
from client import Client, run_cli
from factories import USUAL, MakeApp, application, sign_up
from flask import Flask

from app import create_app

PRODUCTION = {
    "FLASK_ENV": "production",
    "SECRET_KEY": "a" * 32,
    "JWT_SECRET_KEY": "b" * 32,
    "PUBLIC_URL": "https://api.clinic.example",
    "TIMEZONE": "UTC",
}
STATES = ("open", "approval", "closed")


def told(app: Flask) -> str | None:
    answer = Client(app).get("/")
    assert answer.status_code == 200
    state: str | None = answer.json["sign_up"]
    return state


# --- GET / ---


def test_without_an_administrator_the_first_one_may_sign_up_whatever_the_setting(app: Flask, make_app: MakeApp) -> None:
    sign_up(app, "Dora")
    assert told(app) == "first_administrator"
    assert told(make_app(SIGNUP="closed")) == "first_administrator"
    assert Client(app).post("/signup", application("admin")).status_code == 201
    assert told(app) == "open"


@pytest.mark.parametrize("state", STATES)
def test_with_an_administrator_the_setting_is_told(app: Flask, make_app: MakeApp, state: str) -> None:
    sign_up(app, "Ada", "admin")
    assert told(make_app(SIGNUP=state)) == state


@pytest.mark.parametrize("state", STATES)
def test_in_production_the_setting_is_told_whether_or_not_there_is_an_administrator(
    app: Flask, make_app: MakeApp, state: str
) -> None:
    assert told(make_app(**PRODUCTION, SIGNUP=state)) == state


@pytest.mark.parametrize(
    "url", ["postgresql://ward@127.0.0.1:1/clinic", "sqlite:////nowhere/hosi.db"], ids=["pg", "sqlite"]
)
def test_without_a_database_the_first_page_answers_and_leaves_it_open_who_may_sign_up(url: str, tmp_path: Path) -> None:
    app = create_app({**USUAL, "DATABASE_URL": url, "INSTANCE_PATH": tmp_path})
    assert told(app) is None


def test_a_database_without_tables_leaves_it_open_too(bare_app: Flask) -> None:
    assert told(bare_app) is None


# --- flask welcome ---


def welcome(app: Flask) -> str:
    code, said = run_cli(app, "welcome")
    assert code == 0, said
    return said


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        ("127.0.0.1", 5000, "http://127.0.0.1:5000"),
        ("0.0.0.0", 80, "http://127.0.0.1:80, and every other address of this machine"),
        ("::", 5001, "http://[::1]:5001, and every other address of this machine"),
        ("fd00::7", 5001, "http://[fd00::7]:5001"),
        ("ward.clinic.example", 5001, "http://ward.clinic.example:5001"),
    ],
)
def test_the_address_is_one_that_opens(app: Flask, make_app: MakeApp, host: str, port: int, address: str) -> None:
    lines = welcome(make_app(HOST=host, PORT=port)).splitlines()
    assert f"  address  {address}" in lines
    assert f"  try it   {address.partition(',')[0]}/docs" in lines
    assert not [line for line in lines if line.startswith("  public")]


def test_the_public_address_is_told_beside_it(app: Flask, make_app: MakeApp) -> None:
    said = welcome(make_app(PUBLIC_URL="https://api.clinic.example"))
    assert "https://api.clinic.example" in said
    assert "http://127.0.0.1:5000/docs" in said


def test_in_development_the_first_administrator_is_asked_in_and_the_demonstration_is_named(app: Flask) -> None:
    said = welcome(app)
    assert "no administrator yet" in said
    assert "POST /signup" in said
    assert "make seed" in said
    sign_up(app, "Ada", "admin")
    said = welcome(app)
    assert "no administrator" not in said
    assert "Anybody may sign up, and is active at once." in said


def test_in_production_the_command_for_the_first_administrator_is_named_until_there_is_one(
    app: Flask, make_app: MakeApp
) -> None:
    production = make_app(**PRODUCTION, SIGNUP="")
    said = welcome(production)
    assert "flask create-admin" in said
    assert "has to approve" in said
    assert "make seed" not in said
    sign_up(app, "Ada", "admin")
    assert "flask create-admin" not in welcome(production)


def test_without_tables_the_welcome_names_the_command_that_makes_them(bare_app: Flask) -> None:
    assert "flask db upgrade" in welcome(bare_app)


def test_make_run_says_what_it_does_before_it_is_silent_and_welcomes_before_it_serves() -> None:
    text = (Path(__file__).parent.parent / "Makefile").read_text("utf-8")
    packages = text.partition("$(VENV)/.run:")[2].partition("\n\n")[0]
    assert packages.index("Installing the packages") < packages.index("pip install")
    run = text.partition("\nrun:")[2].partition("\n\n")[0].splitlines()
    assert "flask welcome" in run[-2]
