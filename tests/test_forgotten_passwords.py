"""A link sets a new password: the server mails it, or `flask reset-link` prints it."""

import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from client import Client, at_once
from factories import NEW_PASSWORD, PASSWORD, MakeApp, log_in, reset_token, sign_in, sign_up, token_in
from flask import Flask
from smtp_double import SMTPDouble
from sql import held_up, snapshot, sql
from sqlalchemy import select, text, update
from werkzeug.test import TestResponse

from models import PasswordReset
from server.times import now


@pytest.fixture
def mailbox() -> Iterator[SMTPDouble]:
    with SMTPDouble() as double:
        yield double


@pytest.fixture
def mailing(app: Flask, make_app: MakeApp, mailbox: SMTPDouble) -> Flask:
    """The application with a mail server."""
    return make_app(
        MAIL_SERVER="127.0.0.1",
        MAIL_PORT=mailbox.port,
        MAIL_USE_TLS=False,
        MAIL_FROM="Hosi <noreply@clinic.test>",
        PASSWORD_RESET_URL="https://app.clinic.test/new-password",
    )


def ask(app: Flask, name: str, **kwargs: Any) -> TestResponse:
    return Client(app).post("/password/forgot", {"email": f"{name.lower()}@clinic.test"}, **kwargs)


def reset(app: Flask, token: str, password: str = NEW_PASSWORD) -> TestResponse:
    return Client(app).post("/password/reset", {"token": token, "password": password})


def test_a_forgotten_password_is_set_by_a_mailed_link(mailing: Flask, mailbox: SMTPDouble) -> None:
    sign_up(mailing, "Nia")
    assert ask(mailing, "Nia").status_code == 200
    [mail] = mailbox.wait()
    assert (mail.sender, mail.to) == ("noreply@clinic.test", ["nia@clinic.test"])
    assert reset(mailing, token_in(mail.text)).status_code == 200
    assert log_in(mailing, "Nia").status_code == 401
    assert log_in(mailing, "Nia", NEW_PASSWORD).status_code == 200


def test_the_link_is_the_settings_whatever_the_host_header(mailing: Flask, mailbox: SMTPDouble) -> None:
    sign_up(mailing, "Nia")
    ask(mailing, "Nia", headers={"Host": "evil.example", "X-Forwarded-Host": "evil.example"})
    [mail] = mailbox.wait()
    assert "\nhttps://app.clinic.test/new-password?token=" in mail.text
    assert "evil" not in mail.message.as_string()


def test_an_unknown_email_is_answered_as_a_known_one_and_gets_no_mail(mailing: Flask, mailbox: SMTPDouble) -> None:
    sign_up(mailing, "Nia")
    unknown, known = ask(mailing, "Nobody"), ask(mailing, "Nia")
    assert (unknown.status_code, unknown.json) == (known.status_code, known.json) == (200, known.json)
    assert [mail.to for mail in mailbox.wait()] == [["nia@clinic.test"]]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_link_that_waits_too_long_for_the_database_stops_no_other(
    app: Flask, make_app: MakeApp, mailbox: SMTPDouble, caplog: pytest.LogCaptureFixture
) -> None:
    to_us = {"MAIL_SERVER": "127.0.0.1", "MAIL_PORT": mailbox.port, "MAIL_USE_TLS": False}
    hurried = make_app(**to_us, STATEMENT_TIMEOUT=1)
    sign_up(app, "Nia")
    with held_up(app, text("LOCK TABLE password_resets")):
        assert ask(hurried, "Nia").status_code == 200
        until = time.monotonic() + 20
        while "a reset link could not be mailed" not in caplog.text and time.monotonic() < until:
            time.sleep(0.05)
    assert "a reset link could not be mailed" in caplog.text
    ask(hurried, "Nia")
    assert len(mailbox.wait()) == 1


def test_the_mail_server_is_given_its_credentials(app: Flask, make_app: MakeApp, mailbox: SMTPDouble) -> None:
    settings = {"MAIL_USE_TLS": False, "MAIL_USERNAME": "hosi", "MAIL_PASSWORD": "mail secret"}
    sign_up(app, "Nia")
    ask(make_app(MAIL_SERVER="127.0.0.1", MAIL_PORT=mailbox.port, **settings), "Nia")
    mailbox.wait()
    assert mailbox.credentials == ["\0hosi\0mail secret"]


def test_nothing_is_mailed_in_the_clear_where_tls_is_asked_for(
    app: Flask, make_app: MakeApp, mailbox: SMTPDouble, caplog: pytest.LogCaptureFixture
) -> None:
    sign_up(app, "Nia")
    assert ask(make_app(MAIL_SERVER="127.0.0.1", MAIL_PORT=mailbox.port), "Nia").status_code == 200
    wait_for(lambda: "could not be mailed" in caplog.text)
    assert mailbox.mails == []


def test_a_mail_server_that_is_away_is_logged_and_not_told(
    app: Flask, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    sign_up(app, "Nia")
    assert ask(make_app(MAIL_SERVER="127.0.0.1", MAIL_PORT=1), "Nia").status_code == 200
    wait_for(lambda: "could not be mailed" in caplog.text)
    assert "token=" not in caplog.text


def test_without_a_mail_server_the_log_says_what_to_do(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(app, "Nia").status_code == 200
    wait_for(lambda: "flask reset-link" in caplog.text)


@pytest.mark.parametrize("typed", ["nia@bücher.example", "Nia@XN--BCHER-KVA.example", "nia@BÜCHER.example"])
def test_a_link_reaches_an_internationalised_domain(mailing: Flask, mailbox: SMTPDouble, typed: str) -> None:
    sign_up(mailing, "Nia", email="nia@bücher.example")
    assert Client(mailing).post("/password/forgot", {"email": typed}).status_code == 200
    [mail] = mailbox.wait()
    assert mail.to == [mail.message["To"]] == ["nia@xn--bcher-kva.example"]
    assert reset(mailing, token_in(mail.text)).status_code == 200


def test_a_link_reaches_a_mailbox_of_other_letters_if_the_mail_server_can(mailing: Flask, mailbox: SMTPDouble) -> None:
    mailbox.smtputf8 = True
    sign_up(mailing, "Zoë", email="zoë@bücher.example")
    Client(mailing).post("/password/forgot", {"email": "zoë@bücher.example"})
    [mail] = mailbox.wait()
    assert mail.to == [mail.message["To"]] == ["zoë@xn--bcher-kva.example"]
    assert reset(mailing, token_in(mail.text)).status_code == 200


def test_a_mail_server_that_cannot_is_one_line_in_the_log(
    mailing: Flask, mailbox: SMTPDouble, caplog: pytest.LogCaptureFixture
) -> None:
    sign_up(mailing, "Zoë", email="zoë@clinic.test")
    assert Client(mailing).post("/password/forgot", {"email": "zoë@clinic.test"}).status_code == 200
    wait_for(lambda: "could not be mailed" in caplog.text)
    [record] = [record for record in caplog.records if record.name == "hosi.mail"]
    assert ("SMTPUTF8" in record.getMessage(), record.exc_info) == (True, None)
    assert mailbox.mails == []


@pytest.mark.parametrize(
    "sender", ["Hosi <noreply@bücher.example>", "noreply@bücher.example", "Bücher <noreply@bücher>"]
)
def test_a_sender_at_an_internationalised_domain_sends(
    app: Flask, make_app: MakeApp, mailbox: SMTPDouble, sender: str
) -> None:
    sign_up(app, "Nia")
    sending = make_app(MAIL_SERVER="127.0.0.1", MAIL_PORT=mailbox.port, MAIL_USE_TLS=False, MAIL_FROM=sender)
    ask(sending, "Nia")
    [mail] = mailbox.wait()
    assert mail.sender.replace(".example", "") == "noreply@xn--bcher-kva"
    assert mail.message["From"].addresses[0].display_name == sender.rpartition(" <")[0]


def test_a_slow_mail_server_does_not_tell_that_the_email_exists(mailing: Flask, mailbox: SMTPDouble) -> None:
    sign_up(mailing, "Nia")
    mailbox.awake.clear()
    assert ask(mailing, "Nia").status_code == 200
    assert mailbox.mails == []
    mailbox.awake.set()
    assert len(mailbox.wait()) == 1


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_nobodys_mailbox_is_filled(mailing: Flask, mailbox: SMTPDouble) -> None:
    sign_up(mailing, "Nia")
    sign_up(mailing, "Otto")
    for _ in range(5):
        ask(mailing, "Nia")
    ask(mailing, "Otto")
    assert [mail.to for mail in mailbox.wait(2)] == [["nia@clinic.test"], ["otto@clinic.test"]]


def test_no_second_link_is_mailed_within_a_minute(mailing: Flask, mailbox: SMTPDouble) -> None:
    sign_up(mailing, "Nia")
    sign_up(mailing, "Otto")
    ask(mailing, "Nia")
    mailbox.wait()
    sql(mailing, update(PasswordReset).values(expires_at=now() + timedelta(minutes=59, seconds=30)))
    for name in ("Nia", "Otto"):
        ask(mailing, name)
    assert [mail.to for mail in mailbox.wait(2)] == [["nia@clinic.test"], ["otto@clinic.test"]]


def test_a_second_link_is_mailed_after_a_minute_and_the_first_is_void(mailing: Flask, mailbox: SMTPDouble) -> None:
    sign_up(mailing, "Nia")
    ask(mailing, "Nia")
    mailbox.wait()
    sql(mailing, update(PasswordReset).values(expires_at=now() + timedelta(minutes=58)))
    ask(mailing, "Nia")
    first, second = mailbox.wait(2)
    assert reset(mailing, token_in(first.text)).status_code == 422
    assert reset(mailing, token_in(second.text)).status_code == 200


def test_a_link_is_good_once(app: Flask) -> None:
    sign_up(app, "Nia")
    token = reset_token(app, "nia")
    assert reset(app, token).status_code == 200
    before = snapshot(app)
    assert reset(app, token, "another lantern here").status_code == 422
    assert snapshot(app) == before


def test_a_link_used_four_times_at_once_is_good_once(app: Flask) -> None:
    sign_up(app, "Nia")
    token = reset_token(app, "nia")
    answers = at_once(*[lambda: reset(app, token)] * 4)
    assert sorted(answer.status_code for answer in answers) == [200, 422, 422, 422]


def test_a_link_is_good_for_an_hour(app: Flask) -> None:
    sign_up(app, "Nia")
    token = reset_token(app, "nia")
    [(expires_at,)] = sql(app, select(PasswordReset.expires_at))
    assert timedelta(minutes=59) < expires_at - now() <= timedelta(hours=1)
    sql(app, update(PasswordReset).values(expires_at=now()))
    before = snapshot(app)
    assert reset(app, token).status_code == 422
    assert snapshot(app) == before


def test_a_link_is_kept_only_as_a_hash(app: Flask) -> None:
    sign_up(app, "Nia")
    token = reset_token(app, "nia")
    [(kept,)] = sql(app, select(PasswordReset.token_sha256))
    assert re.fullmatch(r"[0-9a-f]{64}", kept)
    assert token not in kept


@pytest.mark.parametrize("token", ["", "x", "a" * 200, "0" * 64, "é", "' OR 1=1 --"])
def test_a_made_up_link_sets_no_password(app: Flask, token: str) -> None:
    sign_up(app, "Nia")
    reset_token(app, "nia")
    before = snapshot(app)
    assert reset(app, token).status_code == 422
    assert snapshot(app) == before


def test_the_hash_of_a_link_sets_no_password(app: Flask) -> None:
    sign_up(app, "Nia")
    reset_token(app, "nia")
    [(kept,)] = sql(app, select(PasswordReset.token_sha256))
    assert reset(app, kept).status_code == 422


@pytest.mark.parametrize("weak", ["password123", "nia@clinic.test", "otieno1234"])
def test_a_weak_password_does_not_use_the_link_up(app: Flask, weak: str) -> None:
    sign_up(app, "Nia")
    token = reset_token(app, "nia")
    assert reset(app, token, weak).status_code == 422
    assert reset(app, token).status_code == 200


def test_a_reset_ends_every_login(app: Flask) -> None:
    sign_up(app, "Nia")
    nia = sign_in(app, "Nia")
    reset(app, reset_token(app, "nia"))
    assert nia.get("/me").status_code == 401


def test_a_reset_opens_a_locked_account(app: Flask) -> None:
    sign_up(app, "Nia")
    for _ in range(6):
        log_in(app, "Nia", "wrong password")
    reset(app, reset_token(app, "nia"))
    assert log_in(app, "Nia", NEW_PASSWORD).status_code == 200


def test_a_link_does_not_come_back_with_an_archived_account(app: Flask, admin: Client) -> None:
    nia = sign_up(app, "Nia")
    token = reset_token(app, "nia")
    admin.delete(f"/user/{nia['id']}")
    admin.post(f"/user/{nia['id']}/restore")
    assert reset(app, token).status_code == 422


@pytest.mark.parametrize("what", ["password", "email", "is_active", "archive"])
def test_a_link_ends_with_the_password_the_email_and_the_account(app: Flask, admin: Client, what: str) -> None:
    user = f"/user/{sign_up(app, 'Nia')['id']}"
    nia = sign_in(app, "Nia")
    token = reset_token(app, "nia")
    done = {
        "password": lambda: nia.post("/me/password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD}),
        "email": lambda: nia.patch(user, {"email": "nia.kamau@clinic.test"}),
        "is_active": lambda: admin.patch(user, {"is_active": False}),
        "archive": lambda: admin.delete(user),
    }[what]()
    assert done.status_code == 200
    before = snapshot(app)
    assert reset(app, token, "yet another lantern").status_code == 422
    assert snapshot(app) == before


def test_a_link_outlives_a_change_of_the_name(app: Flask, admin: Client) -> None:
    nia = sign_up(app, "Nia")
    token = reset_token(app, "nia")
    assert admin.patch(f"/user/{nia['id']}", {**nia, "last_name": "Mwangi"}).status_code == 200
    assert reset(app, token).status_code == 200


def test_who_is_not_active_gets_no_link(app: Flask, admin: Client) -> None:
    admin.patch(f"/user/{sign_up(app, 'Nia')['id']}", {"is_active": False})
    assert app.test_cli_runner().invoke(args=["reset-link", "nia@clinic.test"]).exit_code == 1
