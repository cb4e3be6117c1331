"""Guessed passwords: how many are judged, who is locked out, and how many requests an address may send."""

import secrets
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from client import Client, assert_refused, at_once, minutes_locked
from factories import PASSWORD, MakeApp, sign_up
from flask import Flask
from sql import snapshot, sql
from sqlalchemy import func, select, update
from werkzeug.test import TestResponse

from models import AuditEntry, LoginSession, SignInTries
from server.limits import limiter
from server.times import now

HOME, CLINIC = "198.51.100.7", "203.0.113.9"
ATTACKERS = [f"192.0.2.{number}" for number in range(1, 200)]


def log_in(app: Flask, password: str = PASSWORD, name: str = "nia", at: str = HOME, **headers: str) -> TestResponse:
    body = {"email": f"{name}@clinic.test", "password": password}
    return Client(app).post("/login", body, headers=headers, environ_base={"REMOTE_ADDR": at})


def guess(app: Flask, times: int = 1, **kwargs: Any) -> list[int]:
    """The answers to so many wrong passwords."""
    return [log_in(app, "wrong password", **kwargs).status_code for _ in range(times)]


def guess_from_everywhere(app: Flask, times: int, name: str = "nia") -> list[int]:
    """One wrong password from each of so many addresses."""
    return [guess(app, name=name, at=address)[0] for address in ATTACKERS[:times]]


def time_passes(app: Flask, **time: float) -> None:
    """As if every guess and every lock were so much longer ago."""
    moves = []
    for row in sql(app, select(SignInTries)):
        moved = {"last_try_at": row.last_try_at - timedelta(**time)}
        if row.locked_until:
            moved["locked_until"] = row.locked_until - timedelta(**time)
        mine = SignInTries.email == row.email, SignInTries.address == row.address
        moves.append(update(SignInTries).where(*mine).values(moved))
    sql(app, *moves)


@pytest.fixture(autouse=True)
def nia(app: Flask) -> dict[str, Any]:
    """The doctor whose password is guessed."""
    return sign_up(app, "Nia")


# --- Five in a row from one address ---


def test_the_sixth_guess_in_a_row_is_not_answered(app: Flask) -> None:
    assert guess(app, 6) == [401] * 5 + [429]


def test_the_right_password_does_not_open_a_locked_account(app: Flask) -> None:
    guess(app, 5)
    assert log_in(app).status_code == 429
    assert sql(app, select(LoginSession)) == []


def test_a_locked_account_says_how_long_to_wait_and_opens_then(app: Flask) -> None:
    guess(app, 5)
    refused = log_in(app)
    seconds = int(refused.headers["Retry-After"])
    assert 55 < seconds <= 60
    assert f"wait {seconds} seconds" in refused.json["msg"]
    time_passes(app, seconds=seconds)
    assert log_in(app).status_code == 200


def test_each_lock_is_twice_as_long_up_to_an_hour(app: Flask) -> None:
    locks = []
    for _ in range(8):
        assert guess(app, 5) == [401] * 5
        locks.append(minutes_locked(log_in(app)))
        time_passes(app, minutes=locks[-1], seconds=1)
    assert locks == [1, 2, 4, 8, 16, 32, 60, 60]


def test_guesses_while_locked_do_not_prolong_the_lock(app: Flask) -> None:
    guess(app, 5)
    time_passes(app, seconds=30)
    guess(app, 5)
    assert int(log_in(app).headers["Retry-After"]) <= 30


def change_email(app: Flask, token: str, nia: dict[str, Any], name: str) -> None:
    response = Client(app, token).patch(f"/user/{nia['id']}", {"email": f"{name}@clinic.test"})
    assert response.status_code == 200, response.json


def test_a_new_email_does_not_open_a_locked_account(app: Flask, nia: dict[str, Any]) -> None:
    token = log_in(app).json["access_token"]
    guess(app, 5)
    change_email(app, token, nia, "kamau")
    assert minutes_locked(log_in(app, name="kamau")) == 1


def test_a_new_email_does_not_begin_the_row_anew(app: Flask, nia: dict[str, Any]) -> None:
    token = log_in(app).json["access_token"]
    guess(app, 4)
    change_email(app, token, nia, "kamau")
    assert guess(app, 2, name="kamau") == [401, 429]


def test_guesses_of_the_current_password_are_five_whatever_the_email(app: Flask, nia: dict[str, Any]) -> None:
    me = Client(app, log_in(app).json["access_token"])
    wrong = {"current_password": "wrong password", "new_password": "a lantern over the ward"}
    answers = []
    for name in ("kamau", "otieno", "nia"):
        answers += [me.post("/me/password", wrong).status_code for _ in range(2)]
        change_email(app, me.token or "", nia, name)
    assert [*answers, me.post("/me/password", wrong).status_code] == [401] * 5 + [429] * 2


@pytest.mark.parametrize("worse", ["old", "new"])
def test_of_the_counts_of_the_old_and_the_new_email_the_worse_ones_stay(
    app: Flask, nia: dict[str, Any], worse: str
) -> None:
    token = log_in(app).json["access_token"]
    guess(app, 5 if worse == "old" else 3)
    guess(app, 3 if worse == "old" else 5, name="kamau")
    before = [sql(app, select(column)) for column in (SignInTries.locked_until, SignInTries.last_try_at)]
    change_email(app, token, nia, "kamau")
    kept = sql(app, select(SignInTries).order_by(SignInTries.address))
    assert [(row.email, row.address, row.failures) for row in kept] == [
        ("kamau@clinic.test", "", 5),
        ("kamau@clinic.test", HOME, 5),
    ]
    assert {row.locked_until for row in kept} == {None, *(time for (time,) in before[0] if time)}
    assert [row.last_try_at for row in kept] == [max(time for (time,) in before[1])] * 2
    assert log_in(app, name="kamau").status_code == 429


def test_a_right_password_ends_the_row(app: Flask) -> None:
    assert guess(app, 4) == [401] * 4
    assert log_in(app).status_code == 200
    assert guess(app, 5) == [401] * 5


def test_a_right_password_ends_the_doubling(app: Flask) -> None:
    guess(app, 5)
    time_passes(app, minutes=1, seconds=1)
    assert log_in(app).status_code == 200
    guess(app, 5)
    assert minutes_locked(log_in(app)) == 1


def test_guesses_are_forgotten_after_a_day_without_one(app: Flask) -> None:
    guess(app, 4)
    time_passes(app, days=1, seconds=1)
    assert guess(app, 5) == [401] * 5


def test_a_lock_at_one_address_keeps_nobody_out_at_another(app: Flask) -> None:
    guess(app, 6, at=ATTACKERS[0])
    assert log_in(app, at=HOME).status_code == 200


def test_a_lock_of_one_account_keeps_no_other_out(app: Flask) -> None:
    sign_up(app, "Otto")
    guess(app, 6)
    assert log_in(app, name="otto").status_code == 200


def test_an_email_in_another_case_is_no_other_count(app: Flask) -> None:
    names = ["nia", "NIA", "Nia", "nIa", "niA", "NiA"]
    assert [guess(app, name=name)[0] for name in names] == [401] * 5 + [429]


def test_an_unknown_email_is_counted_locked_and_answered_like_a_known_one(app: Flask) -> None:
    def answers(name: str) -> list[tuple[int, Any, bool]]:
        responses = [log_in(app, "wrong password", name=name) for _ in range(7)]
        return [(one.status_code, one.json, "Retry-After" in one.headers) for one in responses]

    assert answers("nobody") == answers("nia")
    time_passes(app, minutes=1, seconds=1)
    assert answers("nobody") == answers("nia")


@pytest.mark.parametrize("times", [6, 20])
def test_of_guesses_in_parallel_five_are_answered(app: Flask, times: int) -> None:
    answers = at_once(*[lambda: log_in(app, "wrong password")] * times)
    assert sorted(answer.status_code for answer in answers) == [401] * 5 + [429] * (times - 5)
    assert log_in(app).status_code == 429


def test_guesses_in_parallel_from_all_over_are_thirty(app: Flask) -> None:
    calls = [lambda at=at: log_in(app, "wrong password", at=at) for at in ATTACKERS[:40]]
    answers = [answer.status_code for batch in (calls[:20], calls[20:]) for answer in at_once(*batch)]
    assert sorted(answers) == [401] * 30 + [429] * 10


def test_a_right_password_among_guesses_in_parallel_is_no_way_around_the_lock(app: Flask) -> None:
    guess(app, 5)
    answers = at_once(*[lambda: log_in(app)] * 4, *[lambda: log_in(app, "wrong password")] * 4)
    assert {answer.status_code for answer in answers} == {429}


def test_right_passwords_in_parallel_all_get_in(app: Flask) -> None:
    answers = at_once(*[lambda: log_in(app)] * 12)
    assert [answer.status_code for answer in answers] == [200] * 12
    assert guess(app, 5) == [401] * 5


def test_the_failed_sign_ins_are_noted_and_nothing_else_changes(app: Flask) -> None:
    before = snapshot(app)
    guess(app, 3)
    log_in(app, "wrong password", name="nobody")
    assert snapshot(app) == before
    noted = sql(app, select(AuditEntry.action).where(AuditEntry.kind == "sign-in"))
    assert noted == [("sign-in failed",)] * 4


def test_the_log_tells_of_a_failed_sign_in_without_what_was_typed(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    typed = 'pass\nword" ERROR the sky falls'
    log_in(app, typed)
    Client(app).post("/login", {"email": f"{typed}@x", "password": typed})
    assert [record.getMessage() for record in caplog.records if record.name == "hosi.auth"] == [
        f"sign-in from {HOME} failed for user 1",
        "sign-in from 127.0.0.1 failed for an unknown email",
    ]
    assert "sky" not in caplog.text


def test_the_log_tells_of_each_try_that_is_refused_and_the_history_does_not(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    guess(app, 5)
    guess(app, 5, name="nobody")
    caplog.clear()
    log_in(app)
    log_in(app, name="nobody")
    assert [record.getMessage() for record in caplog.records if record.name == "hosi.auth"] == [
        f"sign-in from {HOME} refused for user 1: locked",
        f"sign-in from {HOME} refused for an unknown email: locked",
    ]
    assert len(sql(app, select(AuditEntry).where(AuditEntry.kind == "sign-in"))) == 10


@pytest.mark.parametrize("password", [PASSWORD, "My-P@ssw0rd-2024!", "p@ss word", "@"])
def test_a_password_typed_as_the_email_is_kept_nowhere(app: Flask, password: str) -> None:
    response = Client(app).post("/login", {"email": password, "password": PASSWORD})
    assert response.status_code == 401
    kept = sql(app, select(SignInTries.email)) + sql(app, select(AuditEntry.changes))
    assert [email for (email,) in sql(app, select(SignInTries.email))] == ["", ""]
    assert password == "@" or password.lower() not in str(kept).lower()


# --- Thirty from anywhere ---


def test_thirty_guesses_from_anywhere_lock_the_account_for_every_new_address(app: Flask) -> None:
    assert guess_from_everywhere(app, 31) == [401] * 30 + [429]
    assert minutes_locked(log_in(app, at=HOME)) == 1


def test_the_lock_for_every_address_doubles_too(app: Flask) -> None:
    guess_from_everywhere(app, 30)
    time_passes(app, minutes=1, seconds=1)
    guess_from_everywhere(app, 30)
    assert minutes_locked(log_in(app)) == 2


def test_nobody_can_shut_a_doctor_out_where_they_lately_signed_in(app: Flask) -> None:
    log_in(app, at=HOME)
    log_in(app, at=CLINIC)
    guess_from_everywhere(app, 31)
    assert log_in(app, at=HOME).status_code == 200
    assert log_in(app, at=CLINIC).status_code == 200
    assert log_in(app, at=ATTACKERS[-1]).status_code == 429


def test_a_refresh_elsewhere_does_not_make_the_place_of_the_login_unknown(app: Flask) -> None:
    refresh = log_in(app, at=HOME).json["refresh_token"]
    assert Client(app, refresh).post("/refresh", environ_base={"REMOTE_ADDR": CLINIC}).status_code == 200
    guess_from_everywhere(app, 31)
    assert log_in(app, at=HOME).status_code == 200
    assert log_in(app, at=CLINIC).status_code == 200


def test_guesses_from_the_owners_address_too_are_five(app: Flask) -> None:
    log_in(app)
    guess_from_everywhere(app, 31)
    assert guess(app, 6) == [401] * 5 + [429]


def test_an_address_not_used_for_a_month_is_no_known_one(app: Flask) -> None:
    log_in(app)
    sql(app, update(LoginSession).values(last_used_at=now() - timedelta(days=31)))
    guess_from_everywhere(app, 30)
    assert log_in(app).status_code == 429


def test_anothers_address_is_no_known_one(app: Flask) -> None:
    sign_up(app, "Otto")
    log_in(app, name="otto")
    guess_from_everywhere(app, 30)
    assert log_in(app).status_code == 429


def test_a_doctor_with_a_new_email_is_known_where_they_were(app: Flask, nia: dict[str, Any]) -> None:
    token = log_in(app).json["access_token"]
    assert Client(app, token).patch(f"/user/{nia['id']}", {"email": "kamau@clinic.test"}).status_code == 200
    guess_from_everywhere(app, 30, name="kamau")
    assert log_in(app, name="kamau").status_code == 200


def test_the_owners_own_slips_do_not_count_towards_the_thirty(app: Flask) -> None:
    for _ in range(8):
        guess(app, 4)
        assert log_in(app).status_code == 200
    assert log_in(app, at=CLINIC).status_code == 200


def test_signing_in_does_not_clear_what_others_guessed(app: Flask) -> None:
    log_in(app)
    guess_from_everywhere(app, 29)
    assert log_in(app).status_code == 200
    assert guess(app, at=CLINIC) == [401]
    assert guess(app, at=ATTACKERS[-1]) == [429]


def test_signing_in_takes_back_ones_own_slips_and_no_other_guesses(app: Flask) -> None:
    log_in(app)
    guess_from_everywhere(app, 28)
    guess(app)
    assert log_in(app).status_code == 200
    assert guess(app, at=CLINIC) + guess(app, at=ATTACKERS[-1]) == [401, 401]
    assert guess(app, at=ATTACKERS[-2]) == [429]


def test_slips_are_never_taken_back_twice(app: Flask, nia: dict[str, Any]) -> None:
    """Of the old and the new email's counts the larger stays, so those of two addresses are more than that of all."""
    token = log_in(app).json["access_token"]
    guess(app, 4, at=CLINIC)
    guess(app, 3, at=HOME, name="kamau")
    change_email(app, token, nia, "kamau")
    for address in (CLINIC, HOME):
        assert log_in(app, name="kamau", at=address).status_code == 200
    assert guess_from_everywhere(app, 31, name="kamau") == [401] * 30 + [429]


def test_counts_that_are_over_make_room_so_that_guesses_cannot_fill_the_table(app: Flask) -> None:
    for name in ("one", "two", "three"):
        guess(app, name=name)
    time_passes(app, days=1, seconds=1)
    guess(app, name="four")
    assert sql(app, select(SignInTries.email).distinct()) == [("four@clinic.test",)]


def test_guesses_while_locked_add_nothing_to_the_table(app: Flask) -> None:
    guess_from_everywhere(app, 60)
    [(count,)] = sql(app, select(func.count()).select_from(SignInTries))
    assert count == 31


def test_purge_forgets_counts_that_are_over_and_only_those(app: Flask) -> None:
    guess(app, name="one")
    time_passes(app, days=1, seconds=1)
    guess_from_everywhere(app, 2)
    sql(app, update(SignInTries).where(SignInTries.address == ATTACKERS[0]).values(last_try_at=now() - timedelta(2)))
    assert app.test_cli_runner().invoke(args=["purge"]).exit_code == 0
    kept = sql(app, select(SignInTries.email, SignInTries.address).order_by(SignInTries.address))
    assert kept == [("nia@clinic.test", ""), ("nia@clinic.test", ATTACKERS[1])]


# --- Which address it is ---


def test_x_forwarded_for_does_not_count_unless_a_proxy_is_trusted(app: Flask) -> None:
    answers = [log_in(app, "wrong", **{"X-Forwarded-For": address}).status_code for address in ATTACKERS[:6]]
    assert answers == [401] * 5 + [429]


def behind_a_proxy(app: Flask, forwarded: str, password: str = "wrong password") -> int:
    return log_in(app, password, at="10.0.0.1", **{"X-Forwarded-For": forwarded}).status_code


def test_behind_a_trusted_proxy_the_address_is_the_one_it_tells(app: Flask, make_app: MakeApp) -> None:
    proxied = make_app(TRUSTED_PROXIES=1)
    assert [behind_a_proxy(proxied, ATTACKERS[0]) for _ in range(6)] == [401] * 5 + [429]
    assert behind_a_proxy(proxied, HOME, PASSWORD) == 200


def test_what_a_caller_puts_before_the_proxys_own_word_does_not_count(app: Flask, make_app: MakeApp) -> None:
    proxied = make_app(TRUSTED_PROXIES=1)
    answers = [behind_a_proxy(proxied, f"{made_up}, {HOME}") for made_up in ATTACKERS[:6]]
    assert answers == [401] * 5 + [429]


def test_behind_two_trusted_proxies_the_first_ones_word_counts(app: Flask, make_app: MakeApp) -> None:
    proxied = make_app(TRUSTED_PROXIES=2)
    assert [behind_a_proxy(proxied, f"{HOME}, 10.0.0.2") for _ in range(6)] == [401] * 5 + [429]
    assert behind_a_proxy(proxied, f"{CLINIC}, 10.0.0.2", PASSWORD) == 200


@pytest.mark.parametrize(
    ("addresses", "counted"),
    [
        (["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::"], 1),
        (["2001:db8::1", "2001:db8:0:1::1"], 2),
        (["::ffff:198.51.100.7", "198.51.100.7"], 1),
        (["198.51.100.7:4711", "198.51.100.7:4712"], 1),
        (["[2001:db8::1]:4711", "2001:db8::9"], 1),
        (["fe80::1%eth0", "fe80::2"], 1),
        (["unix:", "", "nonsense" * 50], 1),
    ],
)
def test_an_address_is_counted_once_however_it_is_written(app: Flask, addresses: list[str], counted: int) -> None:
    """Of IPv6, the /64 that one subscriber has is one address."""
    for address in addresses:
        assert guess(app, at=address) == [401]
    [(rows,)] = sql(app, select(func.count()).select_from(SignInTries))
    assert rows == counted + 1


# --- Requests per address ---


@pytest.fixture(params=["memory", "redis"])
def limited(request: pytest.FixtureRequest, app: Flask, make_app: MakeApp) -> Iterator[Flask]:
    """The application with requests per address limited, counted in memory or in a real Redis."""
    uri = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    prefix = f"hosi-test-{secrets.token_hex(8)}"
    limiter._key_prefix = ""  # the extension remembers the first application's
    yield make_app(RATELIMIT_ENABLED=True, RATELIMIT_STORAGE_URI=uri, RATELIMIT_KEY_PREFIX=prefix)
    limiter.enabled = False
    if request.param == "redis":
        with redis.Redis.from_url(uri.removeprefix("redis+")) as connection:
            counted = list(connection.scan_iter(f"*{prefix}*"))
            assert counted, "no request was counted in Redis"
            connection.delete(*counted)
        limiter.storage.storage.close()  # type: ignore[attr-defined]


LIMITS = {"/signup": 30, "/login": 60, "/refresh": 300, "/password/forgot": 10, "/password/reset": 10}


@pytest.mark.parametrize("path", LIMITS)
def test_requests_of_one_address_are_limited(limited: Flask, path: str) -> None:
    answers = [Client(limited).post(path).status_code for _ in range(LIMITS[path] + 1)]
    assert 429 not in answers[:-1]
    assert answers[-1] == 429
    elsewhere = Client(limited).post(path, environ_base={"REMOTE_ADDR": HOME})
    assert elsewhere.status_code != 429


def test_a_clinic_sets_its_own_limits(app: Flask, make_app: MakeApp) -> None:
    limiter._key_prefix = ""
    strict = make_app(RATELIMIT_ENABLED=True, RATELIMIT_LOGIN="3 per minute; 100 per hour")
    try:
        assert [Client(strict).post("/login").status_code for _ in range(4)] == [415] * 3 + [429]
        assert Client(strict).post("/signup").status_code == 415
    finally:
        limiter.enabled = False


def test_a_limited_request_says_how_long_to_wait(limited: Flask) -> None:
    refused = [Client(limited).post("/password/forgot") for _ in range(11)][-1]
    assert_refused(refused, 429)
    assert refused.json["code"] == "too_many_requests"
    assert 1 <= int(refused.headers["Retry-After"]) <= 61
    assert f"wait {refused.headers['Retry-After']} seconds" in refused.json["msg"]


def test_a_limit_on_one_route_is_none_on_another(limited: Flask) -> None:
    for _ in range(11):
        Client(limited).post("/password/forgot")
    assert log_in(limited, at="127.0.0.1").status_code == 200


def test_a_limit_does_not_change_how_long_a_locked_account_says_to_wait(limited: Flask) -> None:
    guess(limited, 5)
    time_passes(limited, seconds=50)
    assert int(log_in(limited).headers["Retry-After"]) <= 10


def test_a_limited_address_counts_an_ipv6_subscriber_once(limited: Flask) -> None:
    answers = [
        Client(limited).post("/password/forgot", environ_base={"REMOTE_ADDR": f"2001:db8::{number}"}).status_code
        for number in range(1, 12)
    ]
    assert answers[-1] == 429


def test_where_redis_is_down_nobody_is_kept_out_and_the_limit_holds(app: Flask, make_app: MakeApp) -> None:
    limiter._storage_dead = False
    away = make_app(RATELIMIT_ENABLED=True, RATELIMIT_STORAGE_URI="redis://127.0.0.1:1")
    try:
        assert log_in(away).status_code == 200
        assert [Client(away).post("/password/forgot").status_code for _ in range(11)] == [415] * 10 + [429]
    finally:
        limiter.enabled, limiter._storage_dead = False, False


def test_without_rate_limits_only_the_lockout_counts(app: Flask) -> None:
    assert [Client(app).post("/password/forgot").status_code for _ in range(15)] == [415] * 15
    assert guess(app, 6)[-1] == 429
