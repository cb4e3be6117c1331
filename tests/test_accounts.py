"""Accounts: sign-up, the rules for passwords, changing a password, and the last administrator."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest
from client import Client, at_once
from factories import (
    NEW_PASSWORD,
    PASSWORD,
    MakeApp,
    credentials,
    log_in,
    make_appointment,
    make_patient,
    reset_token,
    sign_in,
    sign_up,
)
from flask import Flask
from sql import held_up, snapshot, sql
from sqlalchemy import func, select, update
from werkzeug.test import TestResponse
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from models import LoginSession, PasswordReset, User
from server.database import now


def application(role: str = "doctor", **fields: Any) -> dict[str, Any]:
    """What somebody sends to sign up."""
    name = {"first_name": "Nia", "last_name": "Kamau", "email": "nia@clinic.test"}
    return {**name, "password": PASSWORD, "role": role, **fields}


def stored_hash(app: Flask, name: str) -> str:
    return str(sql(app, select(User.password).where(User.email == f"{name.lower()}@clinic.test"))[0][0])


def production(make_app: MakeApp, **settings: Any) -> Flask:
    return make_app(
        FLASK_ENV="production",
        SECRET_KEY="s" * 32,
        JWT_SECRET_KEY="j" * 32,
        AUDIT_KEY="a" * 32,
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


# --- What a password may be ---


@pytest.mark.parametrize(
    "password",
    [
        "nine char",
        "password123",
        "QwertyUiop",
        "1234567890",
        "aaaaaaaaaaaaaaa",
        "0110100110",
        "          ",
        "nia.kamau@clinic.test",
        "NIA.KAMAU@clinic.test",
        "nia.kamau-otieno",
        "password１２３",  # what keyboards write in several ways is one
        "ｎｉａ.kamau@clinic.test",
        "e\u0301a\u0301i\u0301o\u0301u\u0301",  # five letters and their accents
        "  ward 7b  ",
        "0123456789",
        "  1234567890  ",
        "123123123123",
        "passwordpassword",
        "password123!",
        "p@ssw0rd123",
        "letmein1234",
        "asdfasdfasdf",
        "asdf" * 1_000,
        "Kamau12345",  # the owner's name
        "nia.kamau1",
    ],
)
def test_a_password_that_anybody_would_try_is_refused(app: Flask, password: str) -> None:
    email = f"{password.lower()}@clinic.test" if password == "nia.kamau-otieno" else "nia.kamau@clinic.test"
    response = Client(app).post("/signup", application(email=email, password=password))
    assert response.status_code == 422
    assert list(response.json["errors"]) == ["password"]
    assert password not in response.text
    assert snapshot(app)["users"] == []


@pytest.mark.parametrize(
    "password", ["ten chars!", "пароль врача", "🩺💊🏥🚑🩹🧪🔬🧬🦠💉", "  kept as it is  ", "a sentence, " * 333]
)
def test_a_password_of_any_length_and_script_signs_in(app: Flask, password: str) -> None:
    sign_up(app, "Nia", password=password)
    assert log_in(app, "Nia", password).status_code == 200
    assert log_in(app, "Nia", f"{password}.").status_code == 401


def test_each_of_the_commonest_passwords_is_refused(app: Flask) -> None:
    """Of each list the first that are long enough, and the last."""
    for words in FREQUENCY_LISTS.values():
        long = [word for word in words if len(word) >= 10]
        for word in long[:3] + long[-3:]:
            assert Client(app).post("/signup", application(password=word.title())).status_code == 422, word


def test_a_password_of_strange_signs_is_judged_quickly(app: Flask) -> None:
    """Of all the letters that they may stand for, zxcvbn tries every choice."""
    begun = time.process_time()
    sign_up(app, "Nia", password="4@8({[<369&#!1/|0$5+7%2" * 50)
    assert time.process_time() - begun < 2


def test_names_are_those_of_ones_own_sign_up_however_many_sign_up_at_once(app: Flask) -> None:
    names = ["Akinyi", "Wanjiru", "Chebet", "Mutiso", "Nyambura", "Kiprono", "Atieno", "Barasa"] * 4
    mine = [{"email": f"{n}@clinic.test", "first_name": n, "password": f"{n.lower()}1234"} for n in names]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        calls = [lambda one=one: Client(app).post("/signup", application(**one)) for one in mine]
        assert {answer.status_code for answer in at_once(*calls)} == {422}
    finally:
        sys.setswitchinterval(usual)


def test_every_character_counts_beyond_the_72_bytes_that_bcrypt_reads(app: Flask) -> None:
    sign_up(app, "Nia", password=NEW_PASSWORD * 4 + "a")
    assert log_in(app, "Nia", NEW_PASSWORD * 4 + "b").status_code == 401


def test_a_password_is_the_same_however_a_keyboard_writes_its_accents(app: Flask) -> None:
    sign_up(app, "Nia", password="café au lait noir")
    assert log_in(app, "Nia", "cafe\u0301 au lait noir").status_code == 200


def test_thousands_of_combining_marks_are_not_put_in_order_first(app: Flask) -> None:
    """Which takes the square of their number. So a very long password is read as it was written."""
    sign_up(app, "Nia", password="a" + "\u0316\u0301" * 1_200)
    assert log_in(app, "Nia", "a" + "\u0301\u0316" * 1_200).status_code == 401


@pytest.mark.parametrize("password", ["", "\0", "a\0b", "x" * 15_000, "\ud7ff\uffff"])
def test_any_string_is_read_as_a_password_at_login(app: Flask, password: str) -> None:
    sign_up(app, "Nia")
    response = log_in(app, "Nia", password)
    assert response.status_code == 401
    assert response.json["msg"] == "The email or the password is wrong."


@pytest.mark.parametrize("body", [{}, {"password": 1234567890}, {"password": None}, {"password": [PASSWORD]}])
def test_what_is_no_string_is_no_password(app: Flask, body: dict[str, Any]) -> None:
    assert Client(app).post("/login", {"email": "nia@clinic.test", **body}).status_code == 422


def test_an_email_signs_in_whatever_its_case_and_the_blanks_around_it(app: Flask) -> None:
    sign_up(app, "Nia")
    assert Client(app).post("/login", {"email": " NIA@clinic.TEST ", "password": PASSWORD}).status_code == 200


def test_an_email_signs_in_however_a_keyboard_writes_its_accents(app: Flask) -> None:
    Client(app).post("/signup", application(email="zoé@clinic.test"))
    assert Client(app).post("/login", {"email": "zoe\u0301@clinic.test", "password": PASSWORD}).status_code == 200


def test_an_email_that_in_lower_case_is_none_is_refused(app: Flask) -> None:
    """It would be refused when it is sent back: in lower case an İ is two signs."""
    response = Client(app).post("/signup", application(email="İ" * 60 + "@" + "a" * 60 + "." + "b" * 58 + ".ex"))
    assert response.status_code == 422
    assert list(response.json["errors"]) == ["email"]


def test_an_email_longer_in_lower_case_than_any_account_is_just_wrong(app: Flask) -> None:
    assert Client(app).post("/login", {"email": "İ" * 254, "password": PASSWORD}).status_code == 401


# --- How it is kept ---


def test_only_a_bcrypt_hash_is_kept(app: Flask) -> None:
    sign_up(app, "Nia")
    assert re.fullmatch(r"\$2b\$04\$.{53}", stored_hash(app, "Nia"))


def test_a_login_hashes_anew_once_the_cost_was_raised(app: Flask, make_app: MakeApp) -> None:
    sign_up(app, "Nia")
    raised = make_app(BCRYPT_LOG_ROUNDS=5)
    assert log_in(raised, "Nia").status_code == 200
    assert stored_hash(app, "Nia").startswith("$2b$05$")
    assert log_in(raised, "Nia").status_code == 200


def test_a_wrong_password_does_not_hash_anew(app: Flask, make_app: MakeApp) -> None:
    sign_up(app, "Nia")
    assert log_in(make_app(BCRYPT_LOG_ROUNDS=5), "Nia", "wrong password").status_code == 401
    assert stored_hash(app, "Nia").startswith("$2b$04$")


def test_hashing_anew_ends_no_login_and_is_no_new_version_of_the_user(app: Flask, make_app: MakeApp) -> None:
    before = sign_up(app, "Nia")
    nia = sign_in(app, "Nia")
    assert log_in(make_app(BCRYPT_LOG_ROUNDS=5), "Nia").status_code == 200
    assert nia.get("/me").json == before


def test_logins_that_all_hash_anew_at_once_all_get_in(app: Flask, make_app: MakeApp) -> None:
    sign_up(app, "Nia")
    raised = make_app(BCRYPT_LOG_ROUNDS=8)
    answers = at_once(*[lambda: log_in(raised, "Nia")] * 4)
    assert [answer.status_code for answer in answers] == [200] * 4


def test_a_login_that_hashes_anew_ends_the_row_of_wrong_ones(app: Flask, make_app: MakeApp) -> None:
    sign_up(app, "Nia")
    raised = make_app(BCRYPT_LOG_ROUNDS=5)
    passwords = ["wrong password"] * 4 + [PASSWORD] + ["wrong password"] * 6
    assert [log_in(raised, "Nia", one).status_code for one in passwords] == [401] * 4 + [200] + [401] * 5 + [429]


@contextmanager
def watched_hashing(see: Callable[[int], None]) -> Iterator[None]:
    """Calls `see` with the rounds of each bcrypt that begins meanwhile."""

    def watch(frame: FrameType, kind: str, called: Any) -> None:
        if kind == "c_call" and getattr(called, "__name__", "") in ("hashpw", "checkpw"):
            salt = next(value for value in frame.f_locals.values() if isinstance(value, bytes) and value[:2] == b"$2")
            see(2 ** int(salt.split(b"$")[2]))

    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("former_cost", [6, 4])
def test_an_unknown_email_costs_as_much_as_a_wrong_password(app: Flask, make_app: MakeApp, former_cost: int) -> None:
    """Also for a hash from before the cost was raised. bench/guesses.py takes the time."""
    Client(make_app(BCRYPT_LOG_ROUNDS=former_cost)).post("/signup", application())
    dearer = make_app(BCRYPT_LOG_ROUNDS=6)
    for body in (credentials("Nia", "wrong"), credentials("Nobody")):
        rounds: list[int] = []
        with watched_hashing(rounds.append):
            assert Client(dearer).post("/login", body).status_code == 401
        assert sum(rounds) == 2**6


def test_an_unknown_email_and_a_wrong_password_are_answered_in_the_same_words(app: Flask) -> None:
    sign_up(app, "Nia")
    wrong, unknown = log_in(app, "Nia", "wrong password"), log_in(app, "Nobody")
    assert (wrong.status_code, wrong.json) == (unknown.status_code, unknown.json) == (401, wrong.json)
    volatile = {"Date", "X-Request-ID"}
    assert {k: v for k, v in wrong.headers if k not in volatile} == {
        k: v for k, v in unknown.headers if k not in volatile
    }


@pytest.mark.parametrize("what", ["right login", "wrong login", "sign-up", "change", "reset", "rehash"])
def test_no_connection_is_held_while_hashing(app: Flask, make_app: MakeApp, what: str) -> None:
    dearer = make_app(BCRYPT_LOG_ROUNDS=5, JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"])
    nia = Client(dearer)
    if what != "sign-up":
        assert Client(app if what == "rehash" else dearer).post("/signup", application()).status_code == 201
    if what == "change":
        nia = sign_in(dearer, "Nia")
    token = reset_token(dearer, "nia") if what == "reset" else ""
    with dearer.app_context():
        pool: Any = dearer.extensions["sqlalchemy"].engine.pool
    connections: list[int] = []
    with watched_hashing(lambda _: connections.append(pool.checkedout())):
        response = {
            "right login": lambda: nia.post("/login", credentials("Nia")),
            "rehash": lambda: nia.post("/login", credentials("Nia")),
            "wrong login": lambda: nia.post("/login", credentials("Nia", "wrong password")),
            "sign-up": lambda: nia.post("/signup", application()),
            "change": lambda: nia.post("/me/password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD}),
            "reset": lambda: nia.post("/password/reset", {"token": token, "password": NEW_PASSWORD}),
        }[what]()
    assert response.status_code == {"wrong login": 401, "sign-up": 201}.get(what, 200)
    assert connections
    assert set(connections) == {0}


@contextmanager
def new_password_during_hash(app: Flask, nth: int) -> Iterator[None]:
    """Everybody has the new password from the moment that the so-manieth hash of a request is begun."""
    sign_up(app, "Otto", password=NEW_PASSWORD)
    changed = update(User).values(password=stored_hash(app, "Otto"))
    hashes: list[int] = []

    def see(rounds: int) -> None:
        hashes.append(rounds)
        if len(hashes) == nth:
            sql(app, changed)

    with watched_hashing(see):
        yield


def test_a_login_that_was_hashed_while_the_password_changed_is_refused(app: Flask) -> None:
    sign_up(app, "Nia")
    with new_password_during_hash(app, 1):
        assert log_in(app, "Nia").status_code == 401
    assert log_in(app, "Nia", NEW_PASSWORD).status_code == 200


@pytest.mark.parametrize("password", [PASSWORD, "wrong password"])
def test_a_login_that_was_hashed_while_the_email_changed_is_one_of_an_unknown_email(
    app: Flask, caplog: pytest.LogCaptureFixture, password: str
) -> None:
    """Or a guess would count for an email that the account has no more."""
    sign_up(app, "Nia")
    moved = update(User).values(email="kamau@clinic.test")
    with watched_hashing(lambda _: sql(app, moved)):
        assert log_in(app, "Nia", password).status_code == 401
    assert "failed for an unknown email" in caplog.text
    assert "user 1" not in caplog.text


def test_a_login_waits_for_a_deactivation_under_way(app: Flask) -> None:
    sign_up(app, "Nia")
    with ThreadPoolExecutor() as threads:
        with held_up(app, update(User).values(is_active=False)):
            answer = threads.submit(log_in, app, "Nia")
            time.sleep(0.5)  # it has read the account, or waits to
        assert answer.result().status_code == 403
    assert sql(app, select(LoginSession)) == []


def test_of_two_changes_of_a_password_at_once_the_second_is_refused(app: Flask) -> None:
    sign_up(app, "Nia")
    nia = sign_in(app, "Nia")
    with new_password_during_hash(app, 2):
        change = {"current_password": PASSWORD, "new_password": "a third lantern here"}
        assert nia.post("/me/password", change).status_code == 409
    assert stored_hash(app, "Nia") == stored_hash(app, "Otto")


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
