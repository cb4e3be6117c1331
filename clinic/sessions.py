"""Opens, refreshes and ends login sessions, and finds the caller of a request by its token."""

import logging
import re
import time
from collections.abc import Collection
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple, cast

import jwt
from flask import Flask, current_app, request
from flask_jwt_extended import JWTManager, create_access_token, create_refresh_token
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Row, Select, Table, bindparam, delete, insert, select, update

from clinic import locks
from clinic.history import chain as audit
from models import LoginSession, Role, User
from schemas import SessionOut, TokensOut, UserOut
from server import errors, fast_reads
from server.database import affected_rows, db
from server.limits import client_address
from server.times import now
from server.web import LARGEST_ID

log = logging.getLogger("hosi.auth")
tokens = JWTManager()

ACCESS, REFRESH = "access", "refresh"
GRACE = timedelta(seconds=10)  # two tabs, or a retry on a bad line, may send the same refresh token
KEPT = timedelta(days=30)  # after the session ends: clinic/lockout.py reads the addresses of recent logins
_ENDED = "This login has ended. Please sign in again."


class Caller(NamedTuple):
    """The user who sent the request, and the login session of the request's token."""

    id: int
    role: str
    session_id: int

    @property
    def is_admin(self) -> bool:
        """Whether the caller is an administrator."""
        return self.role == Role.ADMIN


class Claims(BaseModel):
    """The claims of a token (RFC 7519)."""

    model_config = ConfigDict(strict=True)

    type: str
    sub: str  # the user's id
    sid: int = Field(ge=1, le=LARGEST_ID)  # the login session's id
    iat: int
    exp: int
    gen: int = 0  # in a refresh token: its generation, from 1 on


@lru_cache(maxsize=4096)
def _verified(token: str, key: str) -> Claims:
    """Return the claims of a token, and check its signature. The result is cached, so `exp` is not checked here."""
    claims = jwt.decode(
        token,
        key,
        algorithms=["HS256"],  # RFC 8725 section 3.1: never the algorithm that the token names
        options={"verify_exp": False, "verify_iat": False, "verify_nbf": False},  # the servers' clocks may differ
    )
    return Claims.model_validate(claims)


def _claims(purpose: str) -> Claims:
    """Return the claims of the request's bearer token. Raises `Unauthorized`, also for a token of another purpose."""
    scheme, _, token = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise errors.Unauthorized(f"Please sign in: this needs the header Authorization: Bearer <{purpose} token>.")
    try:
        claims = _verified(token.strip(), current_app.config["JWT_SECRET_KEY"])
    except (jwt.PyJWTError, ValueError, RecursionError):  # RecursionError: thousands of nested brackets in the token
        raise errors.Unauthorized("This token is not valid. Please sign in again.") from None
    if claims.type != purpose:
        raise errors.Unauthorized(f"This is not {'an access' if purpose == ACCESS else 'a refresh'} token.")
    if claims.exp <= time.time():
        raise errors.Unauthorized("This token has expired. Refresh it or sign in again.")
    return claims


_session_and_user = (
    select(User.id, User.role)
    .join(LoginSession, User.id == LoginSession.user_id)
    .where(LoginSession.id == bindparam("sid"), LoginSession.expires_at > bindparam("now"))
    .where(LoginSession.ended_at.is_(None), User.is_active, User.deleted_at.is_(None))
)


Reading = tuple[Select[Any], dict[str, Any]]  # a statement that reads one row, and its values


def identify(reading: Reading | None = None) -> Caller:
    """Return the caller of this request, with a single SQL statement. Raises `Unauthorized`.

    `reading` is a statement with its values that the view reads next: its row is read in the same statement.
    """
    claims = _claims(ACCESS)
    login = {"sid": claims.sid, "now": now()}
    if reading:
        row = fast_reads.read_together(_session_and_user, login, *reading)
    else:
        row = next(iter(fast_reads.read(_session_and_user, login)), None)
    if request.method not in ("GET", "HEAD"):
        fast_reads.stop()  # the SQLAlchemy session has a connection of its own
    if row is None or str(row[0]) != claims.sub:
        raise errors.Unauthorized(_ENDED)
    user_id, role = row
    return Caller(user_id, role, claims.sid)


def identify_again(caller: Caller, exclusive: Collection[int] = ()) -> Caller:
    """Return the caller with their rights as of now, and lock their account until the commit.

    It must be the first statement of the session's transaction. `exclusive` are the users whose rights or logins the
    transaction changes. Until the commit, nobody else can change the rights of the caller.
    Raises `Unauthorized` if the login has ended meanwhile.
    """
    row = db.session.execute(
        _session_and_user,
        {"sid": caller.session_id, "now": now()},
        execution_options={"preceded_by": locks.statements([caller.id], exclusive)},
    ).one_or_none()
    if row is None:
        raise errors.Unauthorized(_ENDED)
    return Caller(row.id, row.role, caller.session_id)


def _tokens(user: User | Row[Any], session_id: int, generation: int) -> TokensOut:
    identity = str(user.id)
    return TokensOut(
        user=UserOut.of(user),
        access_token=create_access_token(identity, additional_claims={"sid": session_id}),
        refresh_token=create_refresh_token(identity, additional_claims={"sid": session_id, "gen": generation}),
        expires_in=int(current_app.config["JWT_ACCESS_TOKEN_EXPIRES"].total_seconds()),
    )


def _refresh_lifetime() -> timedelta:
    lifetime: timedelta = current_app.config["JWT_REFRESH_TOKEN_EXPIRES"]
    return lifetime


_sessions = cast(Table, LoginSession.__table__)
_new_session = insert(_sessions).returning(_sessions.c.id)


def open_session(user: User | Row[Any]) -> TokensOut:
    """Open a login session for the user, add the sign-in to the history, and return tokens. Commits nothing."""
    address = client_address()
    session = {
        "user_id": user.id,
        "expires_at": now() + _refresh_lifetime(),
        "device": request.headers.get("User-Agent", "")[:200].replace("\0", ""),
        "address": address,
        "signed_in_from": address,
    }
    session_id: int = db.session.connection().execute(_new_session, session).scalar_one()
    audit.note_sign_in("sign-in", user.id, {"email": user.email, "address": address, "login": session_id})
    return _tokens(user, session_id, generation=1)


def refresh_session() -> TokensOut:
    """Return a new pair of tokens for the request's refresh token. Raises `Unauthorized`.

    A token that is used again after `GRACE` may be stolen: its session ends, and this is committed.
    """
    claims = _claims(REFRESH)
    if not re.fullmatch(r"[1-9][0-9]{0,8}", claims.sub, re.ASCII):
        raise errors.Unauthorized(_ENDED)
    locks.lock_account(int(claims.sub))  # this transaction may end the login
    session = db.session.scalar(
        select(LoginSession)
        .where(LoginSession.id == claims.sid, LoginSession.ended_at.is_(None), LoginSession.expires_at > now())
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    user = db.session.scalar(User.live().where(User.id == session.user_id, User.is_active)) if session else None
    if session is None or user is None or str(user.id) != claims.sub or not 0 < claims.gen <= session.generation:
        raise errors.Unauthorized(_ENDED)
    moment, earliest = now(), (now() - GRACE).timestamp()
    first_uses = {gen: used for gen, used in (session.first_uses or {}).items() if used >= earliest}
    if claims.gen == session.generation:
        session.first_uses = {**first_uses, str(claims.gen): moment.timestamp()}
        session.generation += 1
        session.last_used_at = moment
        session.expires_at = moment + _refresh_lifetime()
        session.address = client_address()
    elif str(claims.gen) not in first_uses:
        session.ended_at = moment
        db.session.commit()
        log.warning("refresh token of login session %d was used again: session ended", session.id)
        raise errors.Unauthorized("This refresh token was used before. The login has ended; please sign in again.")
    return _tokens(user, session.id, session.generation)


def list_sessions(caller: Caller) -> list[SessionOut]:
    """Return the caller's open login sessions, the one used last first."""
    logins = db.session.scalars(LoginSession.open(caller.id).order_by(LoginSession.last_used_at.desc()))
    answers = [SessionOut.of(login) for login in logins]
    return [answer.model_copy(update={"current": answer.id == caller.session_id}) for answer in answers]


def end_sessions(user_id: int, only: int | None = None) -> int:
    """Lock the account and end its open login sessions, or the session `only`. Return how many were open."""
    locks.lock_account(user_id)
    ended = update(LoginSession).where(*LoginSession.is_open(user_id)).values(ended_at=now())
    return affected_rows(ended if only is None else ended.where(LoginSession.id == only))


def log_out(caller: Caller, everywhere: bool) -> None:
    """End the caller's login session and, with `everywhere`, all others.

    A session that has ended meanwhile ends no others: its login may be stolen.
    """
    if end_sessions(caller.id, caller.session_id) and everywhere:
        end_sessions(caller.id)


def forget_old_sessions() -> int:
    """Delete the sessions that ended or expired longer ago than `KEPT`. Return how many."""
    past = now() - KEPT
    return affected_rows(delete(LoginSession).where((LoginSession.expires_at < past) | (LoginSession.ended_at < past)))


def init_app(app: Flask) -> None:
    """Set up Flask-JWT-Extended, which makes the tokens."""
    tokens.init_app(app)
