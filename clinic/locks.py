"""Locks accounts for a transaction, so that of a write and a change of its sender's rights one is first.

On PostgreSQL these are advisory locks by user id: row locks do not serve (`FOR SHARE` on login_sessions waits and then
returns the old role; on users it deadlocks two bookings of one doctor). SQLite needs none: it has one writer.
"""

from collections.abc import Collection

from sqlalchemy import text

from server.database import db

_CLASS = 0x486F7369  # the first key of our advisory locks


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
    """Lock an account whose logins this transaction is to end. It must be the first statement of the transaction."""
    if sql := statements((), (user_id,)):
        db.session.execute(text(sql))
