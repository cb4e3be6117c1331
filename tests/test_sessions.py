"""Login sessions: how long they last, what prolongs them, what ends them, and which tokens are refused."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from client import Client, at_once
from factories import NEW_PASSWORD, PASSWORD, claims_of, forged, new_login, refresh, sign_in, sign_up
from flask import Flask
from sql import held_up, snapshot, sql
from sqlalchemy import select, update

from models import LoginSession, User
from server.times import now
from testing.statements import counted_statements


def refreshed(app: Flask, pair: dict[str, Any]) -> dict[str, Any]:
    response = refresh(app, pair)
    assert response.status_code == 200, response.json
    return dict(response.json)


def is_in(app: Flask, pair: dict[str, Any]) -> bool:
    return Client(app, pair["access_token"]).get("/me").status_code == 200


def seconds_pass(app: Flask, seconds: int) -> None:
    """As if every login and refresh were so much longer ago."""
    moves = []
    for row in sql(app, select(LoginSession)):
        moved: dict[str, Any] = {"last_used_at": row.last_used_at - timedelta(seconds=seconds)}
        moved["first_uses"] = {gen: used - seconds for gen, used in (row.first_uses or {}).items()}
        moves.append(update(LoginSession).where(LoginSession.id == row.id).values(moved))
    sql(app, *moves)


# --- Tokens ---


def test_an_access_token_lasts_half_an_hour_and_a_refresh_token_thirty_days(nia: dict[str, Any]) -> None:
    for name, lifetime in (("access_token", 30 * 60), ("refresh_token", 30 * 24 * 3600)):
        claims = claims_of(nia[name])
        assert claims["exp"] - claims["iat"] == lifetime


def test_whoever_gets_tokens_is_told_how_long_the_access_token_works(app: Flask, nia: dict[str, Any]) -> None:
    password = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    changed = Client(app, nia["access_token"]).post("/me/password", password).json
    for pair in (nia, changed, refreshed(app, changed)):
        claims = claims_of(pair["access_token"])
        assert pair["expires_in"] == claims["exp"] - claims["iat"]


def test_a_token_tells_nothing_of_the_password(app: Flask, nia: dict[str, Any]) -> None:
    [(kept,)] = sql(app, select(User.password))
    assert PASSWORD not in json.dumps(nia) + json.dumps(claims_of(nia["access_token"]))
    assert kept not in json.dumps(nia) + json.dumps(claims_of(nia["refresh_token"]))


# --- Refresh ---


def test_a_refresh_gives_a_new_pair(app: Flask, nia: dict[str, Any]) -> None:
    new = refreshed(app, nia)
    assert new["user"] == nia["user"]
    assert new["refresh_token"] != nia["refresh_token"]
    assert is_in(app, new)
    assert is_in(app, refreshed(app, new))


def test_a_refresh_prolongs_the_login(app: Flask, nia: dict[str, Any]) -> None:
    sql(app, update(LoginSession).values(expires_at=now() + timedelta(minutes=1)))
    refreshed(app, nia)
    [(expires_at,)] = sql(app, select(LoginSession.expires_at))
    assert expires_at > now() + timedelta(days=29)


def test_a_login_that_is_over_is_not_refreshed_and_lets_nobody_in(app: Flask, nia: dict[str, Any]) -> None:
    sql(app, update(LoginSession).values(expires_at=now()))
    assert refresh(app, nia).status_code == 401
    assert not is_in(app, nia)


def test_a_refresh_token_used_again_after_ten_seconds_ends_the_login_for_thief_and_owner(
    app: Flask, nia: dict[str, Any]
) -> None:
    new = refreshed(app, nia)
    seconds_pass(app, 11)
    assert refresh(app, nia).status_code == 401
    assert refresh(app, new).status_code == 401
    assert not is_in(app, nia)
    assert not is_in(app, new)


def test_a_refresh_token_used_again_ends_that_login_only(app: Flask, nia: dict[str, Any]) -> None:
    elsewhere = new_login(app)
    refreshed(app, nia)
    seconds_pass(app, 11)
    refresh(app, nia)
    assert is_in(app, elsewhere)


def test_a_refresh_token_used_again_within_ten_seconds_gets_the_current_generation(
    app: Flask, nia: dict[str, Any]
) -> None:
    new = refreshed(app, nia)
    seconds_pass(app, 9)
    again = refreshed(app, nia)
    assert claims_of(again["refresh_token"])["gen"] == claims_of(new["refresh_token"])["gen"]
    assert is_in(app, refreshed(app, again))


def test_using_a_refresh_token_again_and_again_does_not_stretch_the_ten_seconds(
    app: Flask, nia: dict[str, Any]
) -> None:
    refreshed(app, nia)
    seconds_pass(app, 9)
    refreshed(app, nia)
    seconds_pass(app, 2)
    assert refresh(app, nia).status_code == 401


def test_a_refresh_token_just_issued_may_be_two_generations_late(app: Flask, nia: dict[str, Any]) -> None:
    """Two tabs, the other of which was quick."""
    newest = refreshed(app, refreshed(app, nia))
    again = refreshed(app, nia)
    assert claims_of(again["refresh_token"])["gen"] == claims_of(newest["refresh_token"])["gen"]


def test_a_refresh_token_issued_long_ago_may_be_two_generations_late(app: Flask, nia: dict[str, Any]) -> None:
    """The ten seconds begin with its first use."""
    claims = claims_of(nia["refresh_token"])
    old = forged(app, {**claims, "iat": claims["iat"] - 60})
    newest = refreshed(app, refreshed(app, nia))
    again = Client(app, old).post("/refresh")
    assert claims_of(again.json["refresh_token"])["gen"] == claims_of(newest["refresh_token"])["gen"]


def test_a_refresh_token_two_generations_late_ends_the_login_ten_seconds_after_its_first_use(
    app: Flask, nia: dict[str, Any]
) -> None:
    second = refreshed(app, nia)
    seconds_pass(app, 6)
    newest = refreshed(app, second)
    seconds_pass(app, 5)
    assert is_in(app, refreshed(app, second))
    assert refresh(app, nia).status_code == 401
    assert not is_in(app, newest)


def test_first_uses_are_remembered_no_longer_than_they_count(app: Flask, nia: dict[str, Any]) -> None:
    pair = nia
    for _ in range(5):
        pair = refreshed(app, pair)
        seconds_pass(app, 6)
    [(first_uses,)] = sql(app, select(LoginSession.first_uses))
    assert first_uses.keys() == {"4", "5"}


def test_a_refresh_token_from_before_first_uses_were_kept_ends_the_login(app: Flask, nia: dict[str, Any]) -> None:
    newest = refreshed(app, nia)
    sql(app, update(LoginSession).values(first_uses=None))
    assert refresh(app, nia).status_code == 401
    assert not is_in(app, newest)


def test_parallel_refreshes_all_get_the_same_generation_and_the_login_goes_on(app: Flask, nia: dict[str, Any]) -> None:
    answers = at_once(*[lambda: refresh(app, nia)] * 6)
    assert [answer.status_code for answer in answers] == [200] * 6
    assert {claims_of(answer.json["refresh_token"])["gen"] for answer in answers} == {2}
    assert is_in(app, answers[0].json)


def test_a_refresh_that_races_a_logout_leaves_the_login_ended(app: Flask, nia: dict[str, Any]) -> None:
    at_once(lambda: refresh(app, nia), lambda: Client(app, nia["access_token"]).post("/logout"))
    assert not is_in(app, nia)
    assert refresh(app, nia).status_code == 401


def test_an_access_token_does_not_refresh(app: Flask, nia: dict[str, Any]) -> None:
    assert Client(app, nia["access_token"]).post("/refresh").status_code == 401


def test_a_refresh_token_does_not_open_a_route(app: Flask, nia: dict[str, Any]) -> None:
    response = Client(app, nia["refresh_token"]).get("/me")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_refresh_without_a_token_is_a_401(app: Flask) -> None:
    assert Client(app).post("/refresh").status_code == 401


# --- Logout, and where I am signed in ---


def test_a_logout_ends_this_login_and_no_other(app: Flask, nia: dict[str, Any]) -> None:
    elsewhere = new_login(app)
    assert Client(app, nia["access_token"]).post("/logout").status_code == 200
    assert not is_in(app, nia)
    assert refresh(app, nia).status_code == 401
    assert is_in(app, elsewhere)


@pytest.mark.parametrize("path", ["/logout", "/logout?everywhere=true"])
def test_two_logouts_at_once_both_succeed(app: Flask, nia: dict[str, Any], path: str) -> None:
    with ThreadPoolExecutor() as threads:
        with held_up(app, update(LoginSession).values(device="x")):
            answers = [threads.submit(Client(app, nia["access_token"]).post, path) for _ in range(2)]
            time.sleep(0.5)  # both are past the guard, and wait
        assert [answer.result().status_code for answer in answers] == [200, 200]
    assert not is_in(app, nia)


def test_a_logout_everywhere_ends_all_of_ones_logins_and_nobody_elses(app: Flask, nia: dict[str, Any]) -> None:
    elsewhere = new_login(app)
    sign_up(app, "Otto")
    otto = new_login(app, "Otto")
    assert Client(app, nia["access_token"]).post("/logout?everywhere=true").status_code == 200
    assert (is_in(app, nia), is_in(app, elsewhere), is_in(app, otto)) == (False, False, True)
    assert refresh(app, elsewhere).status_code == 401


def test_my_sessions_are_listed_with_device_address_and_last_use(app: Flask, nia: dict[str, Any]) -> None:
    away = {"headers": {"User-Agent": "Firefox on the ward"}, "environ_base": {"REMOTE_ADDR": "203.0.113.9"}}
    ward = new_login(app, **away)
    sign_up(app, "Otto")
    new_login(app, "Otto")
    sessions = Client(app, nia["access_token"]).get("/me/sessions").json
    assert [(one["device"], one["address"], one["current"]) for one in sessions] == [
        ("Firefox on the ward", "203.0.113.9", False),
        (sessions[1]["device"], "127.0.0.1", True),
    ]
    assert all({"id", "created_at", "last_used_at"} <= one.keys() for one in sessions)
    assert [one["current"] for one in Client(app, ward["access_token"]).get("/me/sessions").json] == [True, False]


def test_the_last_use_of_a_session_is_its_last_refresh(app: Flask, nia: dict[str, Any]) -> None:
    seconds_pass(app, 600)
    [before] = Client(app, nia["access_token"]).get("/me/sessions").json
    refresh(app, nia, environ_base={"REMOTE_ADDR": "203.0.113.9"})
    [after] = Client(app, nia["access_token"]).get("/me/sessions").json
    assert after["last_used_at"] > before["last_used_at"]
    assert after["address"] == "203.0.113.9"


def test_sessions_that_ended_or_expired_are_not_listed(app: Flask, nia: dict[str, Any]) -> None:
    Client(app, new_login(app)["access_token"]).post("/logout")
    expired = claims_of(new_login(app)["access_token"])["sid"]
    sql(app, update(LoginSession).where(LoginSession.id == expired).values(expires_at=now()))
    assert len(Client(app, nia["access_token"]).get("/me/sessions").json) == 1


def test_one_ends_one_of_ones_own_sessions(app: Flask, nia: dict[str, Any]) -> None:
    elsewhere = new_login(app)
    address = f"/me/sessions/{claims_of(elsewhere['access_token'])['sid']}"
    me = Client(app, nia["access_token"])
    assert me.delete(address).status_code == 200
    assert (is_in(app, elsewhere), is_in(app, nia)) == (False, True)
    assert me.delete(address).status_code == 404


def test_anothers_session_is_none_of_mine(app: Flask, nia: dict[str, Any], admin: Client) -> None:
    address = f"/me/sessions/{claims_of(nia['access_token'])['sid']}"
    assert admin.delete(address).status_code == 404
    assert is_in(app, nia)


def test_a_device_name_of_any_length_and_kind_is_no_trouble(app: Flask, nia: dict[str, Any]) -> None:
    new_login(app, headers={"User-Agent": "ü" * 5000})
    new_login(app, headers={"User-Agent": ""})
    sessions = Client(app, nia["access_token"]).get("/me/sessions").json
    assert sorted(len(one["device"]) for one in sessions)[::2] == [0, 200]


# --- What is felt on the very next request ---


@pytest.mark.parametrize("what", ["deactivated", "archived", "password changed", "password reset"])
def test_these_end_every_login_on_the_very_next_request(
    app: Flask, admin: Client, nia: dict[str, Any], what: str
) -> None:
    user, elsewhere = f"/user/{nia['user']['id']}", new_login(app)
    assert is_in(app, nia)
    if what == "password reset":
        link = app.test_cli_runner().invoke(args=["reset-link", "nia@clinic.test"]).output.strip()
        body = {"token": link.partition("token=")[2], "password": NEW_PASSWORD}
    change = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    done = {
        "deactivated": lambda: admin.patch(user, {"is_active": False}),
        "archived": lambda: admin.delete(user),
        "password changed": lambda: Client(app, nia["access_token"]).post("/me/password", change),
        "password reset": lambda: Client(app).post("/password/reset", body),
    }[what]()
    assert done.status_code == 200
    for pair in (nia, elsewhere):
        assert not is_in(app, pair)
        assert refresh(app, pair).status_code == 401


def test_who_is_active_again_has_to_sign_in_anew(app: Flask, admin: Client, nia: dict[str, Any]) -> None:
    user = f"/user/{nia['user']['id']}"
    admin.patch(user, {"is_active": False})
    admin.patch(user, {"is_active": True})
    assert not is_in(app, nia)
    assert refresh(app, nia).status_code == 401
    assert is_in(app, new_login(app))


def test_who_is_restored_has_to_sign_in_anew(app: Flask, admin: Client, nia: dict[str, Any]) -> None:
    user = f"/user/{nia['user']['id']}"
    admin.delete(user)
    assert admin.post(f"{user}/restore").status_code == 200
    assert not is_in(app, nia)
    assert refresh(app, nia).status_code == 401


@pytest.mark.parametrize("closed", [{"is_active": False}, {"deleted_at": now()}])
def test_the_guard_itself_looks_whether_the_account_is_open(
    app: Flask, nia: dict[str, Any], closed: dict[str, Any]
) -> None:
    sql(app, update(User).values(closed))
    assert not is_in(app, nia)
    assert refresh(app, nia).status_code == 401


def test_a_new_role_is_felt_on_the_very_next_request_and_ends_no_login(
    app: Flask, admin: Client, nia: dict[str, Any]
) -> None:
    user, me = f"/user/{nia['user']['id']}", Client(app, nia["access_token"])
    assert me.get("/audit").status_code == 403
    admin.patch(user, {"role": "admin"})
    assert me.get("/audit").status_code == 200
    admin.patch(user, {"role": "doctor"})
    assert me.get("/audit").status_code == 403


def test_a_token_from_before_a_password_change_is_void(app: Flask, nia: dict[str, Any]) -> None:
    me = Client(app, nia["access_token"])
    new = me.post("/me/password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD}).json
    before = snapshot(app)
    assert me.patch(f"/user/{nia['user']['id']}", {"first_name": "Thief"}).status_code == 401
    assert snapshot(app) == before
    assert is_in(app, new)


# --- What the guard costs ---


def test_the_guard_costs_one_sql_statement(app: Flask, doctor: Client) -> None:
    with counted_statements(app) as statements:
        assert doctor.delete("/patient/1").status_code == 403
    assert len(statements) == 1, statements


def test_a_refusal_by_the_token_alone_costs_none(app: Flask, nia: dict[str, Any]) -> None:
    with counted_statements(app) as statements:
        assert Client(app, "a.b.c").get("/me").status_code == 401
        assert Client(app, nia["refresh_token"]).get("/me").status_code == 401
    assert statements == []


def test_the_guard_keeps_no_connection(app: Flask, nia: dict[str, Any]) -> None:
    for _ in range(20):
        Client(app, nia["access_token"]).get("/me")
    with app.app_context():
        assert app.extensions["sqlalchemy"].engine.pool.checkedout() == 0


def test_each_login_is_a_session_of_its_own(app: Flask) -> None:
    sign_up(app, "Nia")
    first, second = sign_in(app, "Nia"), sign_in(app, "Nia")
    assert claims_of(first.token or "")["sid"] != claims_of(second.token or "")["sid"]


def test_a_login_that_was_ended_while_its_request_waited_ends_no_others(app: Flask, nia: dict[str, Any]) -> None:
    """A stolen login must not sign its owner out everywhere after the owner ended it."""
    owner = Client(app, nia["access_token"])
    stolen = new_login(app)
    session = next(one["id"] for one in Client(app, stolen["access_token"]).get("/me/sessions").json if one["current"])
    with ThreadPoolExecutor() as threads:
        with held_up(app, update(LoginSession).where(LoginSession.id == session).values(ended_at=now())):
            waiting = threads.submit(Client(app, stolen["access_token"]).post, "/logout?everywhere=true")
            time.sleep(0.5)  # the guard let it in; it waits for the owner's transaction
        assert waiting.result().status_code == 200
    assert owner.get("/me").status_code == 200
