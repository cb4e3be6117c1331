"""Counts wrong passwords, and locks an email for a while. All processes share the counters, which are in the database.

Five wrong passwords in a row from an address lock the email for this address. Thirty from all addresses lock it for all
addresses, except those of the owner's recent logins: a stranger must not lock a doctor out.
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
from server import errors, metrics
from server.database import affected_rows, db, upsert
from server.times import now

_locked = metrics.counter(
    "hosi_sign_in_locks", "Locks after wrong passwords, by what they lock.", "of", ("address", "email")
)

ANYWHERE = ""  # the address of the counter for all addresses
TRIES = 5  # wrong passwords in a row from an address
TRIES_FROM_ANYWHERE = 30
LOCK = timedelta(minutes=1)  # the first lock; each further lock takes twice as long
LONGEST_LOCK = timedelta(hours=1)
FORGOTTEN_AFTER = timedelta(days=1)  # since the last try
RECENTLY = timedelta(days=30)
SWEPT_AT_ONCE = 100  # rows; a try adds two rows at most, so guesses cannot fill the table


# The statements of a login are built at import: SQLAlchemy takes longer to build them than to run them.
_tries = cast(Table, SignInTries.__table__)
_this_count = (_tries.c.email == bindparam("of"), _tries.c.address == bindparam("at"))
_clear = delete(_tries).where(*_this_count)
_set_count = update(_tries).where(*_this_count)
_recently_signed_in = select(
    exists()
    .where(User.email == bindparam("email"), LoginSession.user_id == User.id)
    .where(bindparam("address").in_([LoginSession.address, LoginSession.signed_in_from]))
    .where(LoginSession.last_used_at > bindparam("since"))
)

# Inserts the two counters of an email if they are missing, and locks both until the commit. The order is always the
# same, so that two logins do not deadlock. SQLAlchemy would compile its own INSERT of several rows at each login.
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

# The locks of an email now: for this address, and for all addresses.
locks = select(SignInTries.address, SignInTries.locked_until).where(
    SignInTries.email == bindparam("email"),
    or_(SignInTries.address == ANYWHERE, SignInTries.address == bindparam("address")),
    SignInTries.locked_until > bindparam("now"),
)


def refuse_while_locked(connection: Connection, email: str, address: str, counts: Iterable[Any]) -> None:
    """Raise `TooManyRequests` if a counter is locked. Unknown emails have counters, too."""
    moment = now()
    locked: dict[str, datetime] = {
        count.address: count.locked_until for count in counts if count.locked_until and count.locked_until > moment
    }
    recent = {"email": email, "address": address, "since": moment - RECENTLY}
    if ANYWHERE in locked and connection.scalar(_recently_signed_in, recent):
        del locked[ANYWHERE]
    if locked:
        seconds = max(1, math.ceil((max(locked.values()) - moment).total_seconds()))
        raise errors.TooManyRequests(
            f"Too many attempts to sign in. Please wait {seconds} seconds.",
            headers={"Retry-After": str(seconds)},
            code=errors.Code.LOCKED,
        )


def count_try(email: str, address: str, right: bool) -> None:
    """Count a wrong password, or clear the counter of this address after a right password.

    Raises `TooManyRequests` while locked. Concurrent guesses are counted one by one under the lock of the counters:
    five are judged, the rest get 429, even with the right password. Concurrent right passwords all succeed.
    """
    connection = db.session.connection()
    counts = connection.execute(_locked_counts, {"email": email, "address": address, "now": now()})
    anywhere, here = sorted(counts, key=lambda count: count.address == address)
    refuse_while_locked(connection, email, address, (anywhere, here))
    if right:
        if here.failures:  # the owner mistyped: the counter for all addresses forgets these failures, too
            left = {"of": email, "at": ANYWHERE, "failures": max(0, anywhere.failures - here.failures)}
            connection.execute(_set_count, left)
        connection.execute(_clear, {"of": email, "at": address})
        return
    moment = now()
    for count, where, limit in ((here, address, TRIES), (anywhere, ANYWHERE, TRIES_FROM_ANYWHERE)):
        failures = 1 if moment - count.last_try_at > FORGOTTEN_AFTER else count.failures + 1
        counted: dict[str, Any] = {"of": email, "at": where, "failures": failures, "last_try_at": moment}
        times_locked, rest = divmod(failures, limit)
        if not rest:
            _locked.labels("address" if where else "email").inc()
            counted["locked_until"] = moment + min(LOCK * 2 ** min(times_locked - 1, 10), LONGEST_LOCK)
        connection.execute(_set_count, counted)
    forget_old_tries(SWEPT_AT_ONCE)


def forget_old_tries(limit: int | None = None) -> int:
    """Delete counters that are a day old, at most `limit`. Return how many. Skips rows that a transaction locks."""
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
    """Move the counters to a new email, so that a changed email lifts no lock. The larger of two values stays."""
    of_old_email = SignInTries.email == old_email
    _lock_counts_of(old_email)
    counts = SignInTries.failures, SignInTries.last_try_at, SignInTries.locked_until
    moved = upsert(SignInTries).from_select(
        ["email", "address", *(count.key for count in counts)],
        select(literal(new_email), SignInTries.address, *counts).where(of_old_email),
    )
    larger = {}
    for count in counts:
        is_larger = count.is_(None) | (moved.excluded[count.key] > count)
        larger[count.key] = case((is_larger, moved.excluded[count.key]), else_=count)
    db.session.execute(moved.on_conflict_do_update(index_elements=["email", "address"], set_=larger))
    db.session.execute(delete(SignInTries).where(of_old_email))


def _lock_counts_of(email: str) -> None:
    counters = select(SignInTries.address).where(SignInTries.email == email)
    db.session.execute(counters.order_by(SignInTries.address).with_for_update())
