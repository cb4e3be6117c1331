"""Who is calling and what they may do: passwords, tokens, login sessions, the guard, and the one table of rights."""

import hashlib
import ipaddress
import logging
import math
import re
import secrets
import time
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import cache, lru_cache, wraps
from threading import Lock
from typing import Any, TypeVar, cast

import jwt
from flask import Flask, Response, current_app, g, request
from flask_bcrypt import Bcrypt
from flask_jwt_extended import JWTManager, create_access_token, create_refresh_token
from flask_limiter import Limiter, RateLimitExceeded
from flask_limiter.util import get_qualified_name
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import (
    Connection,
    CursorResult,
    Delete,
    Row,
    Table,
    Update,
    bindparam,
    delete,
    exists,
    insert,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)

import models
from clinic import history as audit
from models import (
    LARGEST_ID,
    Appointment,
    LoginSession,
    PasswordReset,
    Patient,
    Record,
    Report,
    Role,
    SignInTries,
    User,
    db,
    now,
)
from schemas import PASSWORD_LENGTH, TokensOut, UserIn, UserOut, spelled_email
from server import database, errors
from server import fast_reads as reading
from server.endpoint import check_if_match

log = logging.getLogger("hosi.auth")
bcrypt = Bcrypt()
tokens = JWTManager()

# --- Who may do what ---


class Who(Enum):
    ANYONE = "anyone"
    SIGNED_IN = "signed in"
    ADMIN = "admin"


# Who gets past the guard of each route, by the name of its view. Whose record it must be besides: OWNER.
POLICY = {
    "index": Who.ANYONE,
    "healthz": Who.ANYONE,
    "readyz": Who.ANYONE,
    "openapi_document": Who.ANYONE,
    "docs": Who.ANYONE,
    "signup": Who.ANYONE,
    "login": Who.ANYONE,
    "refresh": Who.ANYONE,  # the refresh token is in the header and checked there
    "forgot_password": Who.ANYONE,
    "reset_password": Who.ANYONE,
    "media_file": Who.ANYONE,  # by its signed link alone
    "logout": Who.SIGNED_IN,
    "get_me": Who.SIGNED_IN,
    "change_my_password": Who.SIGNED_IN,
    "list_my_sessions": Who.SIGNED_IN,
    "end_my_session": Who.SIGNED_IN,
    "list_audit": Who.ADMIN,
    "list_users": Who.SIGNED_IN,
    "get_user": Who.SIGNED_IN,
    "update_user": Who.SIGNED_IN,
    "delete_user": Who.ADMIN,
    "get_user_history": Who.SIGNED_IN,
    "restore_user": Who.ADMIN,
    "list_patients": Who.SIGNED_IN,
    "create_patient": Who.SIGNED_IN,
    "get_patient": Who.SIGNED_IN,
    "update_patient": Who.SIGNED_IN,
    "delete_patient": Who.ADMIN,
    "get_patient_history": Who.SIGNED_IN,
    "restore_patient": Who.ADMIN,
    "list_appointments": Who.SIGNED_IN,
    "create_appointment": Who.SIGNED_IN,
    "get_appointment": Who.SIGNED_IN,
    "update_appointment": Who.SIGNED_IN,
    "delete_appointment": Who.SIGNED_IN,
    "get_appointment_history": Who.SIGNED_IN,
    "restore_appointment": Who.ADMIN,
    "list_reports": Who.SIGNED_IN,
    "create_report": Who.SIGNED_IN,
    "get_report": Who.SIGNED_IN,
    "update_report": Who.SIGNED_IN,
    "delete_report": Who.SIGNED_IN,
    "get_report_history": Who.SIGNED_IN,
    "restore_report": Who.ADMIN,
}

# The column that says whose a record is. A doctor changes only their own; a patient is everybody's.
OWNER: dict[type[Record], str | None] = {User: "id", Patient: None, Appointment: "user_id", Report: "user_id"}

# What only an administrator may change. The same value sent back is no change.
ADMIN_FIELDS: dict[type[Record], set[str]] = {User: {"role", "is_active"}, Appointment: {"overbooked"}}

# What makes another slot of an appointment's.
SLOT_FIELDS = ("appointment_datetime", "duration_minutes", "patient_id", "user_id")


@dataclass(frozen=True, slots=True)
class Caller:
    """The user who sent the request, by the login session that the token belongs to."""

    id: int
    role: str
    session_id: int

    @property
    def is_admin(self) -> bool:
        return self.role == Role.ADMIN


def caller() -> Caller:
    who: Caller = g.caller
    return who


def allow(record: Record, to: str = "change") -> None:
    """Raises `Forbidden` unless the record is one that the caller may create or change as it now stands."""
    owner = OWNER[type(record)]
    if not (caller().is_admin or owner is None or getattr(record, owner) == caller().id):
        what = "accounts" if isinstance(record, User) else f"{record.noun()}s"
        raise errors.Forbidden(f"Only an administrator can {to} other people's {what}.")


Kind = TypeVar("Kind", bound=Record)


def editable(kind: type[Kind], record_id: int, *options: Any) -> Kind:
    """The record, kept from others' changes until the commit.

    Raises `NotFound`, `Forbidden`, or `PreconditionFailed` when the client's If-Match names another version.
    """
    record = models.find_for_update(kind, record_id, *options)
    allow(record)
    check_if_match(record.version)
    return record


def with_history(kind: type[Kind], record_id: int) -> Kind:
    """A record whose history the caller may read: who may edit it, and of an archived one administrators."""
    record = (models.find_any if caller().is_admin else models.find)(kind, record_id)
    allow(record, "read the history of")
    return record


def change(record: Record, changes: dict[str, Any]) -> None:
    """Changes the record's fields as far as the caller may. Raises `Forbidden`."""
    for field in ADMIN_FIELDS.get(type(record), set()) & changes.keys():
        if changes[field] != (getattr(record, field) or False) and not caller().is_admin:
            raise errors.Forbidden(f"Only an administrator can change {field}.")
    moved = isinstance(record, Appointment) and any(
        field in changes and changes[field] != getattr(record, field) for field in SLOT_FIELDS
    )
    record.change(changes)
    if moved and isinstance(record, Appointment) and record.overbooked and not caller().is_admin:
        record.overbooked = False  # it was allowed for another slot
    allow(record, "change" if record.id else "create")  # nor may a doctor put a record on somebody else


def create(kind: type[Kind], fields: dict[str, Any]) -> Kind:
    """A new record, the caller's own unless it names another. Raises `Forbidden`."""
    record = kind()
    if "user_id" in fields and fields["user_id"] is None:
        fields = {**fields, "user_id": caller().id}
    change(record, fields)
    return record


# --- Passwords ---


FEWEST_GUESSES = 10**6  # after which a password may be found; of those that people choose most, all are found sooner
JUDGED = 30  # characters: of strange signs, a hundred would take seconds
_estimate = Lock()


def _guesses(password: str, user_inputs: list[str]) -> int:
    """How many guesses find what the password begins with, as zxcvbn estimates; the whole takes no fewer."""
    from zxcvbn import zxcvbn  # a large module, needed when a password is chosen

    with _estimate:  # it keeps the `user_inputs` where every thread reads them
        return int(zxcvbn(password[:JUDGED], user_inputs)["guesses"])


def hash_password(password: str, email: str, *names: str, field: str = "password") -> str:
    """The bcrypt hash of a new password. Raises `Invalid` for a well-known one (NIST SP 800-63B section 5.1.1.2).

    `names` are its owner's, which anybody would try; `field` is what the client calls it.
    """
    db.session.rollback()  # an estimate, too, takes its time
    plain = _as_typed_anywhere(password).strip()  # as it will be checked: an é is one character
    if len(plain) < PASSWORD_LENGTH:
        raise errors.Invalid({field: [f"A password has at least {PASSWORD_LENGTH} characters."]})
    plain, mailbox = plain.lower(), email.partition("@")[0]
    if plain in (email, mailbox) or len(set(plain)) < 3 or _guesses(plain, [email, mailbox, *names]) < FEWEST_GUESSES:
        raise errors.Invalid({field: ["This password is among the first that anybody would try. Choose another."]})
    return _hash(password)


def _rounds() -> int:
    rounds: int = current_app.config["BCRYPT_LOG_ROUNDS"]
    return rounds


def _cost(password_hash: str) -> int:
    return int(password_hash.split("$")[2])


def _as_typed_anywhere(password: str) -> str:
    """One form of what keyboards write in several, an é say (NIST SP 800-63B section 5.1.1.2).

    Not for a long one: of a million combining marks it would take hours, and nobody types it.
    """
    return unicodedata.normalize("NFKC", password) if len(password) <= 1000 else password


def _hash(password: str) -> str:
    """Slow on purpose, so no transaction may be open."""
    db.session.rollback()
    return str(bcrypt.generate_password_hash(_as_typed_anywhere(password), _rounds()), "ascii")


def _nobodys_hash(rounds: int) -> str:
    """A hash of this cost that no password has."""
    return f"$2b${rounds:02}${'.' * 53}"


def _is_right(password: str, password_hash: str | None) -> bool:
    """Whether the password is the hash's. Takes as long where there is no hash, or one from before the cost was raised:
    the time must not tell who has an account."""
    db.session.rollback()
    password = _as_typed_anywhere(password)
    right = bcrypt.check_password_hash(password_hash or _nobodys_hash(_rounds()), password)
    if password_hash:
        for missing in range(_cost(password_hash), _rounds()):  # 2^n + 2^n + 2^(n+1) + … + 2^(m-1) = 2^m
            bcrypt.check_password_hash(_nobodys_hash(missing), password)
    return bool(right and password_hash)


# --- Addresses and limits ---


def client_address() -> str:
    """Where the request came from; of IPv6 the /64 that one subscriber has, since they may pick any address in it."""
    text = re.sub(r"^\[(.+)\](:\d+)?$|^([\d.]+):\d+$", r"\1\3", request.remote_addr or "")  # some proxies add the port
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


# Without its storage it counts in memory: a Redis that is down must keep nobody out.
limiter = Limiter(
    client_address,
    in_memory_fallback_enabled=True,
    storage_options={"socket_connect_timeout": 1, "socket_timeout": 1},  # seconds
)


def _on_rate_limit(error: RateLimitExceeded) -> Response:
    reset_at = limiter.current_limit.reset_at if limiter.current_limit else 0
    seconds = max(1, math.ceil(reset_at - time.time()))
    return errors.respond(
        errors.TooManyRequests(
            f"Too many requests from your address ({error.description}). Please wait {seconds} seconds.",
            headers={"Retry-After": str(seconds)},
        )
    )


@cache
def is_limited(view: Callable[..., Any]) -> bool:
    """Whether requests to this view are counted by address."""
    return bool(limiter.limit_manager.decorated_limits(get_qualified_name(view)))


ANYWHERE = ""
TRIES = 5  # wrong passwords in a row from one address
TRIES_FROM_ANYWHERE = 30
LOCK = timedelta(minutes=1)  # and doubled with each further lock
LONGEST_LOCK = timedelta(hours=1)
FORGOTTEN_AFTER = timedelta(days=1)  # since the last try
LATELY = timedelta(days=30)  # an address its owner has signed in from
SWEPT_AT_ONCE = 100  # forgotten counts: more than the two that a try adds, so that guesses cannot fill the table


# Statements of the login, made once: to make one takes SQLAlchemy longer than to run it.
_locks = select(SignInTries.address, SignInTries.locked_until).where(
    SignInTries.email == bindparam("email"),
    or_(SignInTries.address == ANYWHERE, SignInTries.address == bindparam("address")),
    SignInTries.locked_until > bindparam("now"),
)
_lately_signed_in = select(
    exists()
    .where(User.email == bindparam("email"), LoginSession.user_id == User.id)
    .where(bindparam("address").in_([LoginSession.address, LoginSession.signed_in_from]))
    .where(LoginSession.last_used_at > bindparam("lately"))
)
_known = (  # one row, of an unknown email too: whether something is locked, and whose the email is
    select(_locks.exists().label("is_locked"), User.id, User.password, User.deleted_at)
    .select_from(select(literal(1).label("one")).subquery())
    .outerjoin(User, User.email == bindparam("email"))
)
_whose = select(User.id).where(User.email == bindparam("email"))
_signing_in = (
    select(User.__table__).where(User.id == bindparam("id"), User.deleted_at.is_(None)).with_for_update(key_share=True)
)


def _refuse_while_locked(connection: Connection, email: str, address: str, counts: Iterable[Any]) -> None:
    """Raises `TooManyRequests` if one of these is locked, for an unknown email just as for a known one."""
    moment = now()
    locks: dict[str, datetime] = {
        count.address: count.locked_until for count in counts if count.locked_until and count.locked_until > moment
    }
    lately = {"email": email, "address": address, "lately": moment - LATELY}
    if ANYWHERE in locks and connection.scalar(_lately_signed_in, lately):
        del locks[ANYWHERE]
    if locks:
        seconds = max(1, math.ceil((max(locks.values()) - moment).total_seconds()))
        raise errors.TooManyRequests(
            f"Too many attempts to sign in. Please wait {seconds} seconds.", headers={"Retry-After": str(seconds)}
        )


_tries = cast(Table, SignInTries.__table__)
_sessions = cast(Table, LoginSession.__table__)
_new_session = insert(_sessions).returning(_sessions.c.id)
_that_count = (_tries.c.email == bindparam("of"), _tries.c.address == bindparam("at"))
_clear = delete(_tries).where(*_that_count)
_count_on = update(_tries).where(*_that_count)

# Both counts of an email, made if there are none, and kept from others until the commit: always in this order, lest
# there be a deadlock. Of several rows of VALUES, SQLAlchemy's own INSERT is compiled anew each time.
_locked_counts = (
    text(
        "INSERT INTO sign_in_tries (email, address, failures, last_try_at) "
        "VALUES (:email, '', 0, :now), (:email, :address, 0, :now) "
        "ON CONFLICT (email, address) DO UPDATE SET email = excluded.email "
        "RETURNING address, failures, last_try_at, locked_until"
    )
    .bindparams(bindparam("now", type_=_tries.c.last_try_at.type))
    .columns(_tries.c.address, _tries.c.failures, _tries.c.last_try_at, _tries.c.locked_until)
)


def _judge(email: str, address: str, right: bool) -> None:
    """Counts a wrong password; a right one clears the count of its address. Raises `TooManyRequests`.

    This comes after the hashing and under a lock, so that of guesses hashed at once five are answered and the others,
    a right one too, hear only that the account is locked; while right passwords sent at once all get in.
    """
    connection = db.session.connection()
    counts = connection.execute(_locked_counts, {"email": email, "address": address, "now": now()})
    anywhere, here = sorted(counts, key=lambda count: count.address == address)
    _refuse_while_locked(connection, email, address, (anywhere, here))
    if right:
        if here.failures:  # they were its owner's slips
            left = {"of": email, "at": ANYWHERE, "failures": max(0, anywhere.failures - here.failures)}
            connection.execute(_count_on, left)
        connection.execute(_clear, {"of": email, "at": address})
    else:
        moment = now()
        for count, where, limit in ((here, address, TRIES), (anywhere, ANYWHERE, TRIES_FROM_ANYWHERE)):
            failures = 1 if moment - count.last_try_at > FORGOTTEN_AFTER else count.failures + 1
            counted: dict[str, Any] = {"of": email, "at": where, "failures": failures, "last_try_at": moment}
            locks, rest = divmod(failures, limit)
            if not rest:
                counted["locked_until"] = moment + min(LOCK * 2 ** min(locks - 1, 10), LONGEST_LOCK)
            connection.execute(_count_on, counted)
        _forget_old_tries(SWEPT_AT_ONCE)


def _forget_old_tries(limit: int | None = None) -> int:
    """Sweeps counts that have no effect any more; passes over those that somebody is just counting on."""
    old = (
        select(SignInTries.email, SignInTries.address)
        .where(SignInTries.last_try_at < now() - FORGOTTEN_AFTER)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    statement = delete(SignInTries).where(tuple_(SignInTries.email, SignInTries.address).in_(old))
    return _rows_of(statement)


def _forget_tries(email: str) -> None:
    mine = SignInTries.email == email
    db.session.execute(select(SignInTries.address).where(mine).order_by(SignInTries.address).with_for_update())
    db.session.execute(delete(SignInTries).where(mine))


def _rows_of(statement: Delete | Update) -> int:
    swept: CursorResult[Any] = db.session.execute(  # type: ignore[assignment]
        statement, execution_options={"synchronize_session": False}
    )
    return swept.rowcount


# --- Tokens and login sessions ---

ACCESS, REFRESH = "access", "refresh"
GRACE = timedelta(seconds=10)  # two tabs, or a retry on a bad line, may send one refresh token twice


class Claims(BaseModel):
    """What a token of ours says."""

    model_config = ConfigDict(strict=True)

    type: str
    sub: str  # the user's id
    sid: int = Field(ge=1, le=LARGEST_ID)  # the login session's
    iat: int
    exp: int
    gen: int = 0  # the session's generation that a refresh token belongs to, from 1 on


@lru_cache(maxsize=4096)
def _verified(token: str, key: str) -> Claims:
    """The claims of a token of ours. Remembered by token, since they cannot change; `exp` is checked at each use."""
    claims = jwt.decode(
        token,
        key,
        algorithms=["HS256"],  # RFC 8725 section 3.1: never the algorithm that the token names
        options={"verify_exp": False, "verify_iat": False, "verify_nbf": False},  # the servers' clocks may differ
    )
    return Claims.model_validate(claims)


def _claims(purpose: str) -> Claims:
    """The claims of the bearer token, one of this purpose. Raises `Unauthorized`."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise errors.Unauthorized(f"Please sign in: this needs the header Authorization: Bearer <{purpose} token>.")
    try:
        claims = _verified(token.strip(), current_app.config["JWT_SECRET_KEY"])
    except (jwt.PyJWTError, ValueError, RecursionError):  # the last for a header of brackets
        raise errors.Unauthorized("This token is not valid. Please sign in again.") from None
    if claims.type != purpose:
        raise errors.Unauthorized(f"This is not {'an access' if purpose == ACCESS else 'a refresh'} token.")
    if claims.exp <= now().timestamp():
        raise errors.Unauthorized("This token has expired. Refresh it or sign in again.")
    return claims


_session_and_user = (
    select(User.id, User.role)
    .join(LoginSession, User.id == LoginSession.user_id)
    .where(LoginSession.id == bindparam("sid"), LoginSession.expires_at > bindparam("now"))
    .where(LoginSession.ended_at.is_(None), User.is_active, User.deleted_at.is_(None))
)
_ENDED = "This login has ended. Please sign in again."


def identify() -> Caller:
    """The caller, by one SQL statement whatever it checks. Raises `Unauthorized`."""
    claims = _claims(ACCESS)
    rows = reading.read(_session_and_user, {"sid": claims.sid, "now": now()})
    if request.method not in ("GET", "HEAD"):
        reading.stop()  # the session has a connection of its own
    if not rows or str(rows[0][0]) != claims.sub:
        raise errors.Unauthorized(_ENDED)
    [(user_id, role)] = rows
    return Caller(user_id, role, claims.sid)


View = TypeVar("View", bound=Callable[..., Any])


def guard() -> Callable[[View], View]:
    """Lets a view be called by those alone whom `POLICY` names. A view without a row there cannot be defined."""

    def decorate(view: View) -> View:
        rule = POLICY[view.__name__]

        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            g.caller = identify()
            if rule is Who.ADMIN and not g.caller.is_admin:
                raise errors.Forbidden("Only an administrator can do this.")
            return view(*args, **kwargs)

        guarded.guarded = True  # type: ignore[attr-defined]
        return guarded  # type: ignore[return-value]

    return decorate


def _tokens(user: User | Row[Any], session_id: int, generation: int) -> TokensOut:
    identity = str(user.id)
    return TokensOut(
        user=UserOut.of(user),
        access_token=create_access_token(identity, additional_claims={"sid": session_id}),
        refresh_token=create_refresh_token(identity, additional_claims={"sid": session_id, "gen": generation}),
    )


def _refresh_lifetime() -> timedelta:
    lifetime: timedelta = current_app.config["JWT_REFRESH_TOKEN_EXPIRES"]
    return lifetime


def open_session(user: User | Row[Any]) -> TokensOut:
    """A new login of this user on the calling device, and its line in the history."""
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


def _prove(email: str, password: str) -> tuple[int, str] | None:
    """The user's id and password hash if the password is right; then the commit is the caller's.

    Raises `TooManyRequests` while locked.
    """
    address = client_address()
    mine = {"email": email, "address": address, "now": now()}
    [(is_locked, user_id, known_hash, archived_at)] = reading.read(_known, mine)
    reading.stop()
    whose = f"user {user_id}" if user_id else "an unknown email"
    try:
        if is_locked:
            with database.reader() as connection:
                _refuse_while_locked(connection, email, address, connection.execute(_locks, mine))
        right = _is_right(password, None if archived_at else known_hash)
        _judge(email, address, right)
    except errors.TooManyRequests:
        log.warning("sign-in from %s refused for %s: locked", address, whose)
        raise
    if right and user_id and known_hash:
        return user_id, known_hash
    if db.session.scalar(_whose, {"email": email}) != user_id:  # its counts are another email's by now
        db.session.rollback()
        return _prove(email, password)
    log.warning("sign-in from %s failed for %s", address, whose)
    audit.note_sign_in("sign-in failed", user_id, {"email": email, "address": address})
    db.session.commit()
    return None


def sign_in(email: str, password: str) -> TokensOut:
    """Tokens for the right password. Raises `Unauthorized`, `TooManyRequests`, or `Forbidden` for a closed account."""
    email = spelled_email(email) or ""  # of no form that an account can have, it may be a password: kept nowhere
    proved = _prove(email, password)
    if proved is None:
        raise errors.Unauthorized("The email or the password is wrong.")
    user_id, known_hash = proved
    rehashed = None
    if _cost(known_hash) < _rounds():
        db.session.commit()
        rehashed = _hash(password)
    user = db.session.connection().execute(_signing_in, {"id": user_id}).one_or_none()
    if user is None or (user.password, user.email) != (known_hash, email):  # changed since it was looked at
        return sign_in(email, password)
    if not user.is_active:
        audit.note_sign_in("sign-in refused", user.id, {"email": email, "address": client_address()})
        db.session.commit()
        raise errors.Forbidden("Your account is not active. An administrator has to approve it.")
    if rehashed:
        # No change of the record as people see it, so neither a new version nor the end of the other logins.
        db.session.execute(
            update(User).where(User.id == user.id).values(password=rehashed, updated_at=User.updated_at),
            execution_options={"synchronize_session": False},
        )
    return open_session(user)


def refresh_session() -> TokensOut:
    """A new pair for a refresh token. One used again later than `GRACE` ends its session. Raises `Unauthorized`."""
    claims = _claims(REFRESH)
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


def end_sessions(only: int | None = None) -> int:
    """Ends the caller's own logins, or this one alone. Returns how many were still open."""
    ended = update(LoginSession).where(*LoginSession.is_open(caller().id)).values(ended_at=now())
    return _rows_of(ended if only is None else ended.where(LoginSession.id == only))


# --- Accounts ---


def register(account: UserIn) -> User:
    """A new account, by the rules of `SIGNUP` or a signed-in administrator. Raises `Forbidden` or `Conflict`."""
    if "Authorization" in request.headers:
        g.caller = identify()
    by_admin = "caller" in g and caller().is_admin
    setting = current_app.config
    first = (
        not by_admin
        and account.role == Role.ADMIN
        and setting["FLASK_ENV"] != "production"
        and db.session.scalar(User.admins()) is None
    )
    if not by_admin and not first:
        if account.role == Role.ADMIN:
            raise errors.Forbidden("Only an administrator can make an administrator.")
        if setting["SIGNUP"] == "closed":
            raise errors.Forbidden("Sign-up is closed. Please ask an administrator for an account.")
    user = User(**account.model_dump(exclude={"password"}), is_active=by_admin or first or setting["SIGNUP"] == "open")
    user.password = hash_password(account.password, account.email, account.first_name, account.last_name)
    return models.save(user)


def change_own_password(current: str, new: str) -> TokensOut:
    """Ends all of the caller's logins and opens a new one. Raises `Unauthorized` if `current` is wrong."""
    user = models.find(User, caller().id)
    email, names = user.email, (user.first_name, user.last_name)
    proved = _prove(email, current)
    if proved is None:
        raise errors.Unauthorized("The current password is wrong.")
    db.session.commit()
    new_hash = hash_password(new, email, *names, field="new_password")
    user = models.find_for_update(User, caller().id)
    if (user.id, user.password) != proved or user.email != email or not user.is_active:
        raise errors.Conflict("Your account was changed just now. Please sign in again.")
    user.change({"password": new_hash})
    return open_session(user)


RESET_LIFETIME = timedelta(hours=1)
MAILED_AGAIN_AFTER = timedelta(minutes=1)  # nobody shall fill another's mailbox


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_reset_link(email: str, unless_since: datetime | None = None) -> str | None:
    """A link to set a new password, good once and for an hour. Commits.

    None where there is no such active user, or where one was made after `unless_since`.
    """
    mine = User.live().where(User.email == spelled_email(email), User.is_active)
    user = db.session.scalar(mine.with_for_update(key_share=True))
    if user is None:
        return None
    former = PasswordReset.user_id == user.id
    if unless_since:
        fresh = exists().where(former, PasswordReset.expires_at > unless_since + RESET_LIFETIME)
        if db.session.scalar(select(fresh)):
            return None
    token = secrets.token_urlsafe(32)
    db.session.execute(delete(PasswordReset).where(former))
    db.session.add(PasswordReset(token_sha256=_sha256(token), user_id=user.id, expires_at=now() + RESET_LIFETIME))
    db.session.commit()
    address: str = current_app.config["PASSWORD_RESET_URL"]
    return f"{address}{'&' if '?' in address else '?'}token={token}"


def reset_link_to_mail(email: str) -> str | None:
    """A new link, None where there is no such active user, or where one was mailed a moment ago. Commits."""
    return new_reset_link(email, unless_since=now() - MAILED_AGAIN_AFTER)


def reset_password(token: str, password: str) -> None:
    """Sets the password by a link's token. Raises `Invalid` for one that is unknown, used or too old."""
    good = PasswordReset.token_sha256 == _sha256(token), PasswordReset.expires_at > now()
    refusal = errors.Invalid(token="This link is not valid any more. Please ask for a new one.")
    user = db.session.scalar(User.live().join(PasswordReset, PasswordReset.user_id == User.id).where(*good))
    if user is None:
        raise refusal
    user_id, email = user.id, user.email
    new_hash = hash_password(password, email, user.first_name, user.last_name)
    _forget_tries(email)  # before the user is locked: a login, too, locks first the tries and then the user
    user = models.find_for_update(User, user_id)
    if not _rows_of(delete(PasswordReset).where(*good)):
        raise refusal
    user.change({"password": new_hash})


def sweep() -> int:
    """Forgets logins that ended a month ago, and counts and links without effect. Returns how many."""
    past = now() - LATELY
    ended = delete(LoginSession).where((LoginSession.expires_at < past) | (LoginSession.ended_at < past))
    return (
        _rows_of(ended) + _rows_of(delete(PasswordReset).where(PasswordReset.expires_at < now())) + _forget_old_tries()
    )


def init_app(app: Flask) -> None:
    bcrypt.init_app(app)
    tokens.init_app(app)
    hooks: Any = app.before_request_funcs[None], app.after_request_funcs[None], app.teardown_request_funcs[None]
    known = [len(several) for several in hooks]
    limiter.init_app(app)
    app.register_error_handler(RateLimitExceeded, _on_rate_limit)
    for several, others in zip(hooks, known, strict=True):
        several[others:] = [_where_limited(hook) for hook in several[others:]]


def _where_limited(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Flask-Limiter's hooks look for limits at every request, which costs more than most requests; few have any."""

    def hooked(*args: Any) -> Any:
        view = current_app.view_functions.get(request.endpoint or "")
        if view and is_limited(view):
            return hook(*args)
        return args[0] if args else None  # what a hook after a request is given, it gives back

    return hooked
