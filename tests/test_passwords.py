"""Passwords: which are accepted, and how they are kept."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from client import Client, at_once
from factories import (
    NEW_PASSWORD,
    PASSWORD,
    MakeApp,
    application,
    credentials,
    log_in,
    reset_token,
    sign_in,
    sign_up,
)
from flask import Flask
from sql import held_up, snapshot, sql
from sqlalchemy import select, update
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from models import LoginSession, User


def stored_hash(app: Flask, name: str) -> str:
    return str(sql(app, select(User.password).where(User.email == f"{name.lower()}@clinic.test"))[0][0])


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
