"""Counts wrong passwords and locks an account for a while. The counts are in the database, for every process to see.

Five wrong passwords in a row lock an email for one address. Thirty from anywhere lock it for all addresses but those
its owner lately signed in from, so that a stranger cannot shut a doctor out.
"""

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import (
    Connection,
    Table,
    bindparam,
    case,
    delete,
    exists,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)

from models import LoginSession, SignInTries, User
from server import errors
from server.database import affected_rows, db, now, upsert

ANYWHERE = ""  # the address of the count over all addresses
TRIES = 5  # wrong passwords in a row from one address
TRIES_FROM_ANYWHERE = 30
LOCK = timedelta(minutes=1)  # doubles with each further lock
LONGEST_LOCK = timedelta(hours=1)
FORGOTTEN_AFTER = timedelta(days=1)  # since the last try
LATELY = timedelta(days=30)
SWEPT_AT_ONCE = 100  # more than the two rows that one try adds, so that guesses cannot fill the table


# The statements of a login are built once: building one takes SQLAlchemy longer than running it.
_tries = cast(Table, SignInTries.__table__)
_this_count = (_tries.c.email == bindparam("of"), _tries.c.address == bindparam("at"))
_clear = delete(_tries).where(*_this_count)
_count_on = update(_tries).where(*_this_count)
_lately_signed_in = select(
    exists()
    .where(User.email == bindparam("email"), LoginSession.user_id == User.id)
    .where(bindparam("address").in_([LoginSession.address, LoginSession.signed_in_from]))
    .where(LoginSession.last_used_at > bindparam("lately"))
)

# Inserts the two counters of an email where they are missing, and locks them until the commit, always in this order,
# so that two logins do not deadlock. SQLAlchemy's own INSERT of several rows would be compiled anew each time.
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

# The locks that hold for an email, for this address and for all addresses.
locks = select(SignInTries.address, SignInTries.locked_until).where(
    SignInTries.email == bindparam("email"),
    or_(SignInTries.address == ANYWHERE, SignInTries.address == bindparam("address")),
    SignInTries.locked_until > bindparam("now"),
)


def refuse_while_locked(connection: Connection, email: str, address: str, counts: Iterable[Any]) -> None:
    """Raise `TooManyRequests` if one of the counters is locked, for an unknown email just as for a known one."""
    moment = now()
    locked: dict[str, datetime] = {
        count.address: count.locked_until for count in counts if count.locked_until and count.locked_until > moment
    }
    lately = {"email": email, "address": address, "lately": moment - LATELY}
    if ANYWHERE in locked and connection.scalar(_lately_signed_in, lately):
        del locked[ANYWHERE]
    if locked:
        seconds = max(1, math.ceil((max(locked.values()) - moment).total_seconds()))
        raise errors.TooManyRequests(
            f"Too many attempts to sign in. Please wait {seconds} seconds.", headers={"Retry-After": str(seconds)}
        )


def count_try(email: str, address: str, right: bool) -> None:
    """Count a wrong password, or clear the counter of this address after a right one. Raises `TooManyRequests`.

    The password was hashed before. Concurrent guesses are counted one by one under the lock: five are judged, the rest
    get 429, a right password among them too. Right passwords sent at once all get in.
    """
    connection = db.session.connection()
    counts = connection.execute(_locked_counts, {"email": email, "address": address, "now": now()})
    anywhere, here = sorted(counts, key=lambda count: count.address == address)
    refuse_while_locked(connection, email, address, (anywhere, here))
    if right:
        if here.failures:  # the owner mistyped: those failures leave the other counter, too
            left = {"of": email, "at": ANYWHERE, "failures": max(0, anywhere.failures - here.failures)}
            connection.execute(_count_on, left)
        connection.execute(_clear, {"of": email, "at": address})
        return
    moment = now()
    for count, where, limit in ((here, address, TRIES), (anywhere, ANYWHERE, TRIES_FROM_ANYWHERE)):
        failures = 1 if moment - count.last_try_at > FORGOTTEN_AFTER else count.failures + 1
        counted: dict[str, Any] = {"of": email, "at": where, "failures": failures, "last_try_at": moment}
        times_locked, rest = divmod(failures, limit)
        if not rest:
            counted["locked_until"] = moment + min(LOCK * 2 ** min(times_locked - 1, 10), LONGEST_LOCK)
        connection.execute(_count_on, counted)
    forget_old_tries(SWEPT_AT_ONCE)


def forget_old_tries(limit: int | None = None) -> int:
    """Delete counters without effect, at most `limit`, and return how many. Skips counters that are locked."""
    old = (
        select(SignInTries.email, SignInTries.address)
        .where(SignInTries.last_try_at < now() - FORGOTTEN_AFTER)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return affected_rows(delete(SignInTries).where(tuple_(SignInTries.email, SignInTries.address).in_(old)))


def forget_tries(email: str) -> None:
    """Delete all counters of this email."""
    _lock_counts_of(email)
    db.session.execute(delete(SignInTries).where(SignInTries.email == email))


def move_tries(old_email: str, new_email: str) -> None:
    """Take the counters along to a new email, so that a change of the email lifts no lock."""
    theirs = SignInTries.email == old_email
    _lock_counts_of(old_email)
    counts = SignInTries.failures, SignInTries.last_try_at, SignInTries.locked_until
    moved = upsert(SignInTries).from_select(
        ["email", "address", *(count.key for count in counts)],
        select(literal(new_email), SignInTries.address, *counts).where(theirs),
    )
    larger = {}
    for count in counts:
        is_larger = count.is_(None) | (moved.excluded[count.key] > count)
        larger[count.key] = case((is_larger, moved.excluded[count.key]), else_=count)
    db.session.execute(moved.on_conflict_do_update(index_elements=["email", "address"], set_=larger))
    db.session.execute(delete(SignInTries).where(theirs))


def _lock_counts_of(email: str) -> None:
    mine = SignInTries.email == email
    db.session.execute(select(SignInTries.address).where(mine).order_by(SignInTries.address).with_for_update())
