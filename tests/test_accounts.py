"""Accounts: sign-up, the rules for passwords, changing a password, and the last administrator."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from client import Client, at_once
from factories import (
    NEW_PASSWORD,
    PASSWORD,
    MakeApp,
    application,
    log_in,
    make_appointment,
    make_patient,
    reset_token,
    sign_in,
    sign_up,
)
from flask import Flask
from sql import snapshot, sql
from sqlalchemy import func, select, update
from werkzeug.test import TestResponse

from models import LoginSession, PasswordReset, User
from server.times import now


def production(make_app: MakeApp, **settings: Any) -> Flask:
    return make_app(
        FLASK_ENV="production",
        SECRET_KEY="s" * 32,
        JWT_SECRET_KEY="j" * 32,
        AUDIT_KEY="a" * 32,
        TIMEZONE="UTC",
        PUBLIC_URL="https://api.clinic.test",
        **settings,
    )


# --- Who may sign up ---


def test_where_sign_up_is_open_a_doctor_is_active_at_once(app: Flask) -> None:
    response = Client(app).post("/signup", application())
    assert response.status_code == 201
    assert response.headers["Location"] == f"/user/{response.json['id']}"
    assert (response.json["role"], response.json["is_active"]) == ("doctor", True)
    assert log_in(app, "Nia").status_code == 200


def test_the_answer_to_a_sign_up_has_neither_the_password_nor_its_hash(app: Flask) -> None:
    response = Client(app).post("/signup", application())
    assert PASSWORD not in response.text
    assert "$2b$" not in response.text
    assert "password" not in response.json


def test_in_development_the_first_administrator_may_sign_up(app: Flask) -> None:
    response = Client(app).post("/signup", application("admin"))
    assert (response.status_code, response.json["role"], response.json["is_active"]) == (201, "admin", True)


def test_in_development_the_first_administrator_may_sign_up_even_where_doctors_may_not(
    app: Flask, make_app: MakeApp
) -> None:
    response = Client(make_app(SIGNUP="closed")).post("/signup", application("admin"))
    assert (response.status_code, response.json["is_active"]) == (201, True)


def test_once_there_is_an_administrator_nobody_signs_up_as_one(app: Flask, admin: Client) -> None:
    before = snapshot(app)
    assert Client(app).post("/signup", application("admin")).status_code == 403
    assert snapshot(app) == before


def test_in_production_not_even_the_first_administrator_signs_up(app: Flask, make_app: MakeApp) -> None:
    assert Client(production(make_app)).post("/signup", application("admin")).status_code == 403
    assert snapshot(app)["users"] == []


def test_in_production_a_doctor_waits_for_approval(app: Flask, make_app: MakeApp) -> None:
    response = Client(production(make_app, SIGNUP="")).post("/signup", application())
    assert (response.status_code, response.json["is_active"]) == (201, False)


def test_who_waits_for_approval_signs_in_only_after_it(app: Flask, admin: Client, make_app: MakeApp) -> None:
    nia = Client(make_app(SIGNUP="approval")).post("/signup", application()).json
    refused = log_in(app, "Nia")
    assert refused.status_code == 403
    assert "not active" in refused.json["msg"]
    assert admin.patch(f"/user/{nia['id']}", {"is_active": True}).status_code == 200
    assert log_in(app, "Nia").status_code == 200


def test_a_wrong_password_does_not_tell_that_an_account_waits_for_approval(app: Flask, make_app: MakeApp) -> None:
    Client(make_app(SIGNUP="approval")).post("/signup", application())
    assert log_in(app, "Nia", "wrong password").status_code == 401


def test_where_sign_up_is_closed_nobody_signs_up(app: Flask, make_app: MakeApp) -> None:
    assert Client(make_app(SIGNUP="closed")).post("/signup", application()).status_code == 403
    assert snapshot(app)["users"] == []


@pytest.mark.parametrize("signup", ["open", "approval", "closed"])
@pytest.mark.parametrize("role", ["doctor", "admin"])
def test_an_administrator_creates_users_of_any_role_active_at_once(
    app: Flask, admin: Client, make_app: MakeApp, signup: str, role: str
) -> None:
    clinic = make_app(SIGNUP=signup, JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"])
    response = Client(clinic, admin.token).post("/signup", application(role))
    assert (response.status_code, response.json["role"], response.json["is_active"]) == (201, role, True)


def test_a_doctors_token_gives_a_sign_up_no_more_than_none(app: Flask, doctor: Client, make_app: MakeApp) -> None:
    assert doctor.post("/signup", application("admin")).status_code == 403
    approval = make_app(SIGNUP="approval", JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"])
    assert Client(approval, doctor.token).post("/signup", application()).json["is_active"] is False


def test_a_sign_up_with_a_bad_token_is_refused_and_creates_nobody(app: Flask) -> None:
    assert Client(app, "not.a.token").post("/signup", application()).status_code == 401
    assert snapshot(app)["users"] == []


def test_an_email_is_taken_whatever_its_case(app: Flask) -> None:
    sign_up(app, "Nia")
    before = snapshot(app)
    response = Client(app).post("/signup", application(email="NIA@Clinic.Test"))
    assert response.status_code == 409
    assert "email" in response.json["errors"]
    assert snapshot(app) == before


def test_one_email_signed_up_eight_times_at_once_is_one_account(app: Flask) -> None:
    answers = at_once(*[lambda: Client(app).post("/signup", application())] * 8)
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    assert len(snapshot(app)["users"]) == 1


# --- Commands ---


def create_admin(app: Flask, **fields: str) -> Any:
    account = {"email": "ada@clinic.test", "first-name": "Ada", "last-name": "Otieno", "password": PASSWORD, **fields}
    options = [f"--{name}={value}" for name, value in account.items()]
    return app.test_cli_runner().invoke(args=["create-admin", *options])


def test_create_admin_makes_an_administrator_who_can_sign_in(app: Flask) -> None:
    assert create_admin(app).exit_code == 0
    assert log_in(app, "Ada").json["user"]["role"] == "admin"


@pytest.mark.parametrize(
    "fields", [{"password": "password123"}, {"password": "short"}, {"email": "not an email"}, {"first-name": ""}]
)
def test_create_admin_refuses_what_sign_up_refuses(app: Flask, fields: dict[str, str]) -> None:
    result = create_admin(app, **fields)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert snapshot(app)["users"] == []


def test_create_admin_refuses_the_email_as_password(app: Flask) -> None:
    assert create_admin(app, password="ada@clinic.test").exit_code == 1
    assert snapshot(app)["users"] == []


def test_create_admin_refuses_an_email_that_is_taken(app: Flask) -> None:
    sign_up(app, "Ada")
    before = snapshot(app)
    result = create_admin(app)
    assert result.exit_code == 1
    assert "taken" in result.output
    assert snapshot(app) == before


def test_reset_link_prints_a_link_that_sets_a_password(app: Flask) -> None:
    sign_up(app, "Dora")
    result = app.test_cli_runner().invoke(args=["reset-link", "Dora@Clinic.test"])
    assert result.exit_code == 0
    token = result.output.strip().partition("token=")[2]
    assert Client(app).post("/password/reset", {"token": token, "password": NEW_PASSWORD}).status_code == 200
    assert log_in(app, "Dora", NEW_PASSWORD).status_code == 200


def test_reset_link_says_that_there_is_no_such_user(app: Flask) -> None:
    result = app.test_cli_runner().invoke(args=["reset-link", "nobody@clinic.test"])
    assert result.exit_code == 1
    assert "no active user" in result.output


# --- Me, and changing my password ---


def test_me_says_who_i_am(app: Flask) -> None:
    nia = sign_up(app, "Nia")
    assert sign_in(app, "Nia").get("/me").json == nia


def test_one_changes_ones_own_password(app: Flask) -> None:
    sign_up(app, "Nia")
    nia = sign_in(app, "Nia")
    response = nia.post("/me/password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD})
    assert response.status_code == 200
    assert Client(app, response.json["access_token"]).get("/me").status_code == 200
    assert log_in(app, "Nia").status_code == 401
    assert log_in(app, "Nia", NEW_PASSWORD).status_code == 200


def test_a_change_of_password_takes_the_current_one(app: Flask) -> None:
    sign_up(app, "Nia")
    nia = sign_in(app, "Nia")
    before = snapshot(app)
    response = nia.post("/me/password", {"current_password": "wrong password", "new_password": NEW_PASSWORD})
    assert response.status_code == 401
    assert snapshot(app) == before


def test_guesses_of_the_current_password_lock_the_account_too(app: Flask) -> None:
    sign_up(app, "Nia")
    nia = sign_in(app, "Nia")
    guess = {"current_password": "wrong password", "new_password": NEW_PASSWORD}
    assert [nia.post("/me/password", guess).status_code for _ in range(6)] == [401] * 5 + [429]
    right = nia.post("/me/password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD})
    assert right.status_code == 429


def test_a_change_of_password_ends_the_row_of_wrong_ones(app: Flask) -> None:
    sign_up(app, "Nia")
    nia = sign_in(app, "Nia")

    def change(current: str) -> TestResponse:
        return nia.post("/me/password", {"current_password": current, "new_password": NEW_PASSWORD})

    assert [change("wrong password").status_code for _ in range(4)] == [401] * 4
    nia.token = change(PASSWORD).json["access_token"]
    assert [change("wrong password").status_code for _ in range(6)] == [401] * 5 + [429]


@pytest.mark.parametrize("weak", ["password123", "nia@clinic.test", "otieno1234"])
def test_a_weak_new_password_is_refused_by_the_name_of_its_field(app: Flask, weak: str) -> None:
    sign_up(app, "Nia")
    nia = sign_in(app, "Nia")
    before = snapshot(app)
    response = nia.post("/me/password", {"current_password": PASSWORD, "new_password": weak})
    assert response.status_code == 422
    assert list(response.json["errors"]) == ["new_password"]
    assert snapshot(app) == before


# --- One's own account ---


def test_one_changes_ones_own_name_and_email_and_signs_in_by_it(app: Flask) -> None:
    user = f"/user/{sign_up(app, 'Nia')['id']}"
    changed = sign_in(app, "Nia").patch(user, {"last_name": "Mwangi", "email": "N.Mwangi@clinic.test"})
    assert (changed.json["last_name"], changed.json["email"]) == ("Mwangi", "n.mwangi@clinic.test")
    assert log_in(app, "N.Mwangi").status_code == 200
    assert log_in(app, "Nia").status_code == 401


# --- The last administrator ---


@pytest.mark.parametrize("how", [{"role": "doctor"}, {"is_active": False}, "archive"])
@pytest.mark.parametrize("others", ["none", "inactive", "archived"])
def test_the_last_active_administrator_stays_one(app: Flask, admin: Client, how: Any, others: str) -> None:
    if others != "none":
        other = f"/user/{admin.post('/signup', application('admin')).json['id']}"
        assert (admin.delete(other) if others == "archived" else admin.patch(other, {"is_active": False})).json
    before = snapshot(app)
    me = f"/user/{admin.user['id']}"
    response = admin.delete(me) if how == "archive" else admin.patch(me, how)
    assert response.status_code == 409
    assert "last active administrator" in response.json["msg"]
    assert snapshot(app) == before
    assert admin.get("/me").status_code == 200


@pytest.mark.parametrize("how", [{"role": "doctor"}, {"is_active": False}, "archive"])
def test_an_administrator_may_step_down_where_there_is_another(app: Flask, admin: Client, how: Any) -> None:
    admin.post("/signup", application("admin"))
    me = f"/user/{admin.user['id']}"
    assert (admin.delete(me) if how == "archive" else admin.patch(me, how)).status_code == 200


def test_the_last_administrator_may_change_their_name(app: Flask, admin: Client) -> None:
    me = f"/user/{admin.user['id']}"
    assert admin.patch(me, {**admin.user, "last_name": "Mwangi"}).status_code == 200


@pytest.mark.parametrize("step", ["demote", "archive"])
def test_of_two_administrators_who_remove_each_other_at_once_one_stays(app: Flask, admin: Client, step: str) -> None:
    admin.post("/signup", application("admin"))
    nia = sign_in(app, "Nia")

    def remove(actor: Client, other: Client) -> Callable[[], TestResponse]:
        address = f"/user/{other.user['id']}"
        return lambda: actor.delete(address) if step == "archive" else actor.patch(address, {"role": "doctor"})

    answers = at_once(remove(admin, nia), remove(nia, admin))
    assert sorted(answer.status_code for answer in answers)[0] == 200
    assert {answer.status_code for answer in answers} & {401, 403, 409}
    [(left,)] = sql(app, select(func.count()).select_from(User.admins().subquery()))
    assert left == 1


def test_two_administrators_who_both_step_down_at_once_leave_one(app: Flask, admin: Client) -> None:
    admin.post("/signup", application("admin"))
    nia = sign_in(app, "Nia")
    answers = at_once(
        *[lambda who=who: who.patch(f"/user/{who.user['id']}", {"role": "doctor"}) for who in (admin, nia)]
    )
    assert sorted(answer.status_code for answer in answers) == [200, 409]


def test_a_user_with_appointments_to_come_is_not_archived(app: Flask, admin: Client, doctor: Client) -> None:
    patient = make_patient(doctor)["id"]
    for day in (1, 2):
        make_appointment(doctor, patient, at=f"2030-03-0{day}T10:00")
    before = snapshot(app)
    response = admin.delete(f"/user/{doctor.user['id']}")
    assert response.status_code == 409
    assert "2 appointments" in response.json["msg"]
    assert snapshot(app) == before
    assert doctor.get("/me").status_code == 200


def test_purge_forgets_what_has_had_no_effect_for_long(app: Flask) -> None:
    sign_up(app, "Nia")
    sign_up(app, "Otto")
    nia, otto = sign_in(app, "Nia"), sign_in(app, "Otto")
    reset_token(app, "nia")
    log_in(app, "Nia", "wrong password")
    long_ago = now() - timedelta(days=31)
    mine = LoginSession.user_id == nia.user["id"]
    sql(app, update(LoginSession).where(mine).values(ended_at=long_ago))
    sql(app, update(PasswordReset).values(expires_at=long_ago))
    result = app.test_cli_runner().invoke(args=["purge"])
    assert result.exit_code == 0, result.output
    assert sql(app, select(LoginSession.user_id)) == [(otto.user["id"],)]
    assert sql(app, select(PasswordReset.user_id)) == []
    assert otto.get("/me").status_code == 200


def test_purge_forgets_logins_a_month_after_their_end(app: Flask) -> None:
    sign_up(app, "Nia")
    for column in ("expires_at", "ended_at"):
        for days in (31, 29):
            sign_in(app, "Nia")
            newest = LoginSession.id == select(func.max(LoginSession.id)).scalar_subquery()
            sql(app, update(LoginSession).where(newest).values({column: now() - timedelta(days)}))
    sign_in(app, "Nia")
    assert app.test_cli_runner().invoke(args=["purge"]).exit_code == 0
    assert sql(app, select(LoginSession.id).order_by(LoginSession.id)) == [(2,), (4,), (5,)]


def test_one_signs_in_by_an_address_as_it_was_typed_at_sign_up(app: Flask) -> None:
    sign_up(app, "Nia", email="Nia@XN--BCHER-KVA.example")
    body = {"email": "Nia@XN--BCHER-KVA.example", "password": PASSWORD}
    assert Client(app).post("/login", body).status_code == 200
