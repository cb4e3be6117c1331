"""Accounts: sign up, sign in, change an account, set a new password."""

import hashlib
import logging
import secrets
from datetime import datetime, timedelta
from typing import Any

from flask import current_app, g, request
from sqlalchemy import bindparam, delete, exists, literal, select, update

import models
from clinic import lockout, locks, passwords, rights, sessions
from clinic.history import chain as audit
from models import PasswordReset, Role, User
from schemas import TokensOut, UserIn, spelled_email
from server import database, errors, fast_reads, metrics
from server.database import affected_rows, db, in_transaction, outside_transaction
from server.limits import client_address
from server.system import SignUp
from server.times import now

log = logging.getLogger("hosi.auth")

_sign_ins = metrics.counter(
    "hosi_sign_ins", "Attempts to sign in, by their outcome.", "outcome", ("good", "wrong", "locked", "inactive")
)

RESET_LIFETIME = timedelta(hours=1)
MAILED_AGAIN_AFTER = timedelta(minutes=1)  # no user gets mails faster: a stranger must not fill a mailbox


def register(account: UserIn) -> User:
    """Make an account if `SIGNUP` or a signed-in administrator allows it. Commits.

    Raises `Forbidden` if neither does, `Invalid` for a weak password, and `Conflict` for an email that is taken.
    """
    if "Authorization" in request.headers:
        rights.authenticate()
    _starts_active(account)  # a refusal comes before the hashing, which is slow
    with outside_transaction():
        password = hash_of(account)
    return in_transaction(lambda: create(account, password, _starts_active(account)))


def who_may_sign_up() -> SignUp:
    """Return who may sign up now, for a client's sign-up page: `SIGNUP`, or that the first administrator may.

    In production `flask create-admin` makes the first administrator, so there it is `SIGNUP` without a look at the
    database.
    """
    setting = current_app.config
    if setting["FLASK_ENV"] != "production" and db.session.scalar(User.admins()) is None:
        return "first_administrator"
    state: SignUp = setting["SIGNUP"]
    return state


def _starts_active(account: UserIn) -> bool:
    """Return whether a new account starts active. Raises `Forbidden` if the caller may not make it."""
    setting = current_app.config
    if "caller" in g and rights.caller().is_admin:
        return True
    if account.role == Role.ADMIN:
        if who_may_sign_up() == "first_administrator":
            return True
        raise errors.Forbidden("Only an administrator can make an administrator.")
    if setting["SIGNUP"] == "closed":
        raise errors.Forbidden("Sign-up is closed. Please ask an administrator for an account.")
    return bool(setting["SIGNUP"] == "open")


def hash_of(account: UserIn) -> str:
    """Return the hash of a new account's password. No transaction may be open. Raises `Invalid`."""
    return passwords.hash_password(account.password, account.email, account.first_name, account.last_name)


def create(account: UserIn, password_hash: str, is_active: bool) -> User:
    """Make an account. Checks no rights and commits nothing. Raises `Conflict` for a taken email."""
    return models.save(User(**account.model_dump(exclude={"password"}), password=password_hash, is_active=is_active))


def change(user: User, changes: dict[str, Any]) -> None:
    """Change an account, if the caller may change these fields. Raises `Forbidden`, `Invalid` or `Conflict`."""
    old_email = user.email
    rights.change(user, changes)
    if user.email != old_email:
        lockout.move_tries(old_email, user.email)


# A single row, also for an unknown email: whether a counter is locked, and the user who has the email.
_account_and_lock = (
    select(lockout.locks.exists().label("is_locked"), User.id, User.password, User.deleted_at)
    .select_from(select(literal(1).label("row")).subquery())
    .outerjoin(User, User.email == bindparam("email"))
)
_user_id_by_email = select(User.id).where(User.email == bindparam("email"))
_user_for_update = (
    select(User.__table__).where(User.id == bindparam("id"), User.deleted_at.is_(None)).with_for_update(key_share=True)
)


def _check_password(email: str, password: str) -> tuple[int, str] | None:
    """Return the user's id and password hash, or None for a wrong password, which is counted.

    No transaction may be open. After a right password the transaction stays open, and the calling function commits it.
    After a wrong password it is committed. Raises `TooManyRequests` while the email is locked.
    """
    address = client_address()
    values = {"email": email, "address": address, "now": now()}
    [(is_locked, user_id, known_hash, archived_at)] = fast_reads.read(_account_and_lock, values)
    fast_reads.stop()
    account = f"user {user_id}" if user_id else "an unknown email"
    try:
        if is_locked:
            with database.reader() as connection:
                lockout.refuse_while_locked(connection, email, address, connection.execute(lockout.locks, values))
        right = passwords.is_right(password, None if archived_at else known_hash)
        lockout.count_try(email, address, right)
    except errors.TooManyRequests:
        log.warning("sign-in from %s refused for %s: locked", address, account)
        _sign_ins.labels("locked").inc()
        raise
    if right and user_id and known_hash:
        return user_id, known_hash
    if db.session.scalar(_user_id_by_email, {"email": email}) != user_id:  # the email has a new owner: count again
        db.session.rollback()
        return _check_password(email, password)
    log.warning("sign-in from %s failed for %s", address, account)
    _sign_ins.labels("wrong").inc()
    audit.note_sign_in("sign-in failed", user_id, {"email": email, "address": address})
    db.session.commit()
    return None


def sign_in(email: str, password: str) -> TokensOut:
    """Return tokens for the right password.

    Raises `Unauthorized`, `TooManyRequests` while locked, or `Forbidden` for an account that is not active.
    """
    email = spelled_email(email) or ""  # people type their password here: store nothing but possible emails
    proved = _check_password(email, password)
    if proved is None:
        raise errors.Unauthorized("The email or the password is wrong.", errors.Code.WRONG_CREDENTIALS)
    user_id, known_hash = proved
    rehashed = None
    if passwords.is_outdated(known_hash):
        with outside_transaction():
            rehashed = passwords.rehash(password)
    user = db.session.connection().execute(_user_for_update, {"id": user_id}).one_or_none()
    if user is None or (user.password, user.email) != (known_hash, email):  # changed during the hashing
        db.session.rollback()
        return sign_in(email, password)
    if not user.is_active:
        _sign_ins.labels("inactive").inc()
        audit.note_sign_in("sign-in refused", user.id, {"email": email, "address": client_address()})
        db.session.commit()
        text = "Your account is not active. An administrator has to approve it."
        raise errors.Forbidden(text, code=errors.Code.INACTIVE)
    if rehashed:
        # The password itself stays the same: the record gets no new version, and other logins go on.
        db.session.execute(
            update(User).where(User.id == user.id).values(password=rehashed, updated_at=User.updated_at),
            execution_options={"synchronize_session": False},
        )
    _sign_ins.labels("good").inc()
    return sessions.open_session(user)


def change_own_password(current: str, new: str) -> TokensOut:
    """Set the caller's password, end all of the caller's logins and open a new one.

    Commits, and hashes outside of a transaction. Raises `Unauthorized` if `current` is wrong, and `Conflict` if the
    account changes meanwhile.
    """
    user = models.find(User, rights.caller().id)
    email, names = user.email, (user.first_name, user.last_name)
    with outside_transaction():
        proved = _check_password(email, current)
        if proved is None:
            raise errors.Unauthorized("The current password is wrong.", errors.Code.WRONG_CREDENTIALS)
        db.session.commit()
        new_hash = passwords.hash_password(new, email, *names, field="new_password")

    def set_password() -> TokensOut:
        user = models.find_for_update(User, rights.caller().id)
        if (user.id, user.password) != proved or user.email != email or not user.is_active:
            raise errors.Conflict("Your account was changed just now. Please sign in again.")
        user.change({"password": new_hash})
        return sessions.open_session(user)

    return in_transaction(set_password)


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_reset_link(email: str, unless_since: datetime | None = None) -> str | None:
    """Return a link to set a new password, valid once and for an hour. It replaces the user's old link. Commits.

    Returns None if there is no active user with this email, or if the user got a link after `unless_since`.
    """
    owner = User.live().where(User.email == spelled_email(email), User.is_active)
    user = db.session.scalar(owner.with_for_update(key_share=True))
    if user is None:
        return None
    old_link = PasswordReset.user_id == user.id
    if unless_since:
        fresh = exists().where(old_link, PasswordReset.expires_at > unless_since + RESET_LIFETIME)
        if db.session.scalar(select(fresh)):
            return None
    token = secrets.token_urlsafe(32)
    db.session.execute(delete(PasswordReset).where(old_link))
    db.session.add(PasswordReset(token_sha256=_sha256(token), user_id=user.id, expires_at=now() + RESET_LIFETIME))
    db.session.commit()
    address: str = current_app.config["PASSWORD_RESET_URL"]
    return f"{address}{'&' if '?' in address else '?'}token={token}"


def reset_link_to_mail(email: str) -> str | None:
    """Return a new link as `new_reset_link` does; None if the user got a link within `MAILED_AGAIN_AFTER`. Commits."""
    return new_reset_link(email, unless_since=now() - MAILED_AGAIN_AFTER)


def reset_password(token: str, password: str) -> None:
    """Set the password by the token of a reset link. Commits, and hashes outside of a transaction.

    Raises `Invalid` for a token that is unknown, used or too old.
    """
    good = PasswordReset.token_sha256 == _sha256(token), PasswordReset.expires_at > now()
    refusal = errors.Invalid(token="This link is not valid any more. Please ask for a new one.")
    user = db.session.scalar(User.live().join(PasswordReset, PasswordReset.user_id == User.id).where(*good))
    if user is None:
        raise refusal
    user_id, email = user.id, user.email
    with outside_transaction():
        new_hash = passwords.hash_password(password, email, user.first_name, user.last_name)

    def set_password() -> None:
        locks.lock_account(user_id)
        lockout.forget_tries(email)  # before the user's row, in the order of a login, so that they do not deadlock
        user = models.find_for_update(User, user_id)
        if not affected_rows(delete(PasswordReset).where(*good)):
            raise refusal
        user.change({"password": new_hash})

    in_transaction(set_password)


def sweep() -> int:
    """Delete login sessions that ended a month ago, old counters and expired reset links. Return how many."""
    expired = affected_rows(delete(PasswordReset).where(PasswordReset.expires_at < now()))
    return sessions.forget_old_sessions() + expired + lockout.forget_old_tries()
