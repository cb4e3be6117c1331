"""Tokens that are not ours, or are no tokens, are refused."""

import base64
import hmac
import json
import time
from typing import Any

import pytest
from client import Client
from factories import claims_of, forged, refresh
from flask import Flask
from werkzeug.test import TestResponse


def unsigned(claims: dict[str, Any], algorithm: str) -> str:
    """A token with no signature, whatever its header says."""
    header = {"alg": algorithm, "typ": "JWT"}
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, claims))
    return ".".join(parts) + "."


def test_a_token_with_the_right_claims_and_key_is_ours(app: Flask, nia: dict[str, Any]) -> None:
    """So that the refusals below are for what they say."""
    assert Client(app, forged(app, claims_of(nia["access_token"]))).get("/me").status_code == 200


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "HS256", ""])
def test_an_unsigned_token_is_refused(app: Flask, nia: dict[str, Any], algorithm: str) -> None:
    assert Client(app, unsigned(claims_of(nia["access_token"]), algorithm)).get("/me").status_code == 401


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_another_algorithm_is_refused_with_the_right_key(app: Flask, nia: dict[str, Any], algorithm: str) -> None:
    token = forged(app, claims_of(nia["access_token"]), algorithm=algorithm)
    assert Client(app, token).get("/me").status_code == 401


def test_another_key_is_refused(app: Flask, nia: dict[str, Any]) -> None:
    claims = claims_of(nia["access_token"])
    for key in ("k" * 64, app.config["SECRET_KEY"], app.config["JWT_SECRET_KEY"][:-1] + "~"):
        assert Client(app, forged(app, claims, key)).get("/me").status_code == 401


def test_a_changed_claim_breaks_the_signature(app: Flask, nia: dict[str, Any], admin: Client) -> None:
    header, _, signature = nia["access_token"].split(".")
    claims = {**claims_of(nia["access_token"]), "sub": str(admin.user["id"])}
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    assert Client(app, f"{header}.{payload}.{signature}").get("/me").status_code == 401


@pytest.mark.parametrize("purpose", ["refresh", "reset", "", None, ["access"], 1])
def test_a_token_of_another_purpose_is_refused(app: Flask, nia: dict[str, Any], purpose: Any) -> None:
    token = forged(app, {**claims_of(nia["access_token"]), "type": purpose})
    assert Client(app, token).get("/me").status_code == 401


def test_an_expired_token_is_refused_though_it_was_good_before(app: Flask, nia: dict[str, Any]) -> None:
    expires = int(time.time()) + 3
    client = Client(app, forged(app, {**claims_of(nia["access_token"]), "exp": expires}))
    assert client.get("/me").status_code == 200
    time.sleep(max(0, expires - time.time()))
    assert client.get("/me").status_code == 401


@pytest.mark.parametrize("exp", [0, -1, "2099-01-01", None, True, 1e9, [9999999999]])
def test_an_expiry_that_is_past_or_no_time_is_refused(app: Flask, nia: dict[str, Any], exp: Any) -> None:
    assert Client(app, forged(app, {**claims_of(nia["access_token"]), "exp": exp})).get("/me").status_code == 401


def test_a_token_of_a_server_whose_clock_is_ahead_is_good(app: Flask, nia: dict[str, Any]) -> None:
    ahead = int(time.time()) + 60
    token = forged(app, {**claims_of(nia["access_token"]), "iat": ahead, "nbf": ahead})
    assert Client(app, token).get("/me").status_code == 200


ODD = [[1], {"a": 1}, "1", "x", 2**31, 2**63, 2**200, 0, -1, 1.5, True, None, "1; DROP TABLE users"]


@pytest.mark.parametrize("sid", ODD)
@pytest.mark.parametrize("purpose", ["access", "refresh"])
def test_a_session_that_is_no_id_is_refused(app: Flask, nia: dict[str, Any], sid: Any, purpose: str) -> None:
    token = forged(app, {**claims_of(nia[f"{purpose}_token"]), "sid": sid})
    assert who(app, token, purpose).status_code == 401


@pytest.mark.parametrize("sub", [[1], {"a": 1}, "x", "2", "01", " 1", "", str(2**63), "9" * 400, "1.0", None])
@pytest.mark.parametrize("purpose", ["access", "refresh"])
def test_a_subject_that_is_not_the_sessions_user_is_refused(
    app: Flask, nia: dict[str, Any], sub: Any, purpose: str
) -> None:
    token = signed_by_hand(app, {**claims_of(nia[f"{purpose}_token"]), "sub": sub})
    assert who(app, token, purpose).status_code == 401


@pytest.mark.parametrize("gen", [[1], "1", 2**200, -1, 1.5, None, 0, 99])
def test_a_generation_that_never_was_is_refused(app: Flask, nia: dict[str, Any], gen: Any) -> None:
    claims = claims_of(nia["refresh_token"])
    assert Client(app, forged(app, {**claims, "gen": gen})).post("/refresh").status_code == 401
    assert refresh(app, nia).status_code == 200


@pytest.mark.parametrize(
    ("purpose", "claim"),
    [(purpose, claim) for purpose in ("access", "refresh") for claim in ("sub", "sid", "exp", "type", "iat")]
    + [("refresh", "gen")],
)
def test_a_missing_claim_is_refused(app: Flask, nia: dict[str, Any], claim: str, purpose: str) -> None:
    claims = claims_of(nia[f"{purpose}_token"])
    token = forged(app, {name: value for name, value in claims.items() if name != claim})
    assert who(app, token, purpose).status_code == 401


def who(app: Flask, token: str, purpose: str) -> TestResponse:
    client = Client(app, token)
    return client.get("/me") if purpose == "access" else client.post("/refresh")


def signed_by_hand(app: Flask, claims: Any, header: bytes | None = None) -> str:
    """A token with our signature over whatever is given, which the library would not write."""
    header = header or json.dumps({"alg": "HS256", "typ": "JWT"}).encode()
    head, body = (base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, json.dumps(claims).encode()))
    signature = hmac.digest(app.config["JWT_SECRET_KEY"].encode(), head + b"." + body, "sha256")
    return b".".join((head, body, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


@pytest.mark.parametrize("claims", [[], "text", 1, None])
def test_claims_that_are_no_object_are_refused(app: Flask, claims: Any) -> None:
    assert Client(app, signed_by_hand(app, claims)).get("/me").status_code == 401


BRACKETS = base64.urlsafe_b64encode(b"[" * 6000).decode()


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Bearer a.b.c",
        "Bearer ..",
        "Basic bmlhOnBhc3N3b3Jk",
        "Token abc",
        "Bearer ü.ü.ü",
        "Bearer \x7f",
        f"Bearer {'a' * 7000}",
        f"Bearer {BRACKETS}.e30.e30",
        f"Bearer e30.{BRACKETS}.e30",
        "Bearer bnVsbA.bnVsbA.bnVsbA",
        "Bearer eyJhbGciOlsiSFMyNTYiXX0.e30.e30",
        "Bearer eyJhbGciOiJIUzI1NiIsImtpZCI6MX0.e30.e30",
        "Bearer eyJhbGciOiJIUzI1NiIsImI2NCI6ZmFsc2V9..e30",
    ],
)
def test_a_header_that_is_no_token_is_a_401(app: Flask, header: str) -> None:
    response = Client(app).get("/me", headers={"Authorization": header})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_token_counts_in_no_other_place(app: Flask, nia: dict[str, Any]) -> None:
    token = nia["access_token"]
    client = Client(app)
    client.http.set_cookie("access_token_cookie", token)
    assert client.get(f"/me?access_token={token}&jwt={token}", headers={"X-Access-Token": token}).status_code == 401


def test_the_word_bearer_is_read_whatever_its_case(app: Flask, nia: dict[str, Any]) -> None:
    """RFC 9110 section 11.1."""
    assert Client(app).get("/me", headers={"Authorization": f"bearer {nia['access_token']}"}).status_code == 200
