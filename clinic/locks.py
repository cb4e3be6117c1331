"""Locks accounts for a transaction: a write and a change of its sender's rights cannot overlap.

On PostgreSQL these are advisory locks by user id. Row locks fail here: `FOR SHARE` on login_sessions waits, then
returns the old role, and `FOR SHARE` on users deadlocks two bookings of a doctor. SQLite allows a single writer, so it
needs no such locks.
"""

from collections.abc import Collection

from sqlalchemy import text

from server.database import db

_CLASS = 0x486F7369  # the first of the two keys of an advisory lock: it marks locks of accounts


def statements(shared: Collection[int], exclusive: Collection[int]) -> str:
    """Return the SQL that takes the locks until the commit, in the order of ids; "" on SQLite.

    `shared` are users who write; `exclusive` are users whose rights or logins the transaction changes.
    """
    if db.engine.dialect.name != "postgresql":
        return ""
    return "; ".join(
        f"SELECT pg_advisory_xact_lock{'' if user_id in exclusive else '_shared'}({_CLASS}, {int(user_id)})"
        for user_id in sorted({*shared, *exclusive})
    )


def lock_account(user_id: int) -> None:
    """Lock an account before this transaction ends its logins. It must be the first statement of the transaction."""
    if sql := statements((), (user_id,)):
        db.session.execute(text(sql))
