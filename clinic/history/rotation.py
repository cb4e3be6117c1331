"""Changes the key of the record history: `flask audit rotate`."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import OperationalError

from clinic.history import heads, keys, macs, verification
from clinic.history.keys import Keyring, Period
from models import AuditEntry, Clinic
from server import errors
from server.database import db, upsert

TRIES = 20  # to lock out writers; each waits a second at most


class RotationRefused(Exception):
    """The key was not changed; the message says why."""


def rotate() -> int:
    """Make `AUDIT_KEY` the key of new entries, and return its number. Commits.

    Verifies the history first. The new key seals the entries of the earlier keys, so a stolen earlier key cannot
    rewrite them. Raises `RotationRefused` if the history has a fault or `AUDIT_KEY` is not a new key.
    """
    settled = heads.settled_id()
    with verification.reading() as (connection, ring, together):
        if macs.of_key(keys.audit_key()) in [period.check for period in ring.periods]:
            raise RotationRefused(
                "AUDIT_KEY has been a key of this history already. Set AUDIT_KEY to a new key, "
                "and add the key in use to AUDIT_KEY_PREVIOUS."
            )
        for fault in verification.faults(connection, ring, together):
            raise RotationRefused(f"The history is not whole: {fault} Run `flask audit verify` with the key in use.")
        digest = heads.add_entries(hashlib.sha256(), connection, 0, settled)
    with _writers_kept_out() as connection:
        if connection.scalar(select(Clinic.audit_keys)) != ring.stored:
            raise RotationRefused("The key was changed by another process meanwhile.")
        newest = connection.scalar(select(func.max(AuditEntry.id))) or 0
        head = f"{newest}-{heads.add_entries(digest, connection, settled, newest).hexdigest()}"
        _store_key(connection, ring, newest, head)
    return len(ring.periods) + 1


def _store_key(connection: Connection, ring: Keyring, newest: int, head: str) -> None:
    number, secret = len(ring.periods) + 1, keys.audit_key()
    added = Period(macs.of_key(secret), newest, macs.of_seal(secret, number, head))
    stored = keys.dumped([*ring.periods, added])
    insert = upsert(Clinic).values(id=1, audit_keys=stored)
    connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_={"audit_keys": stored}))


@contextmanager
def _writers_kept_out() -> Iterator[Connection]:
    """Yield a connection in a transaction during which nobody else writes history. Commits it after the block.

    Waits for writers that have drawn ids. All writers queue behind a waiting lock, so it gives up after a second, lets
    them pass, and tries again. Raises `RotationRefused` after `TRIES` tries.
    """
    for _ in range(TRIES):
        with db.engine.connect() as connection:
            if _locks_out_writers(connection):
                yield connection
                connection.commit()
                return
        time.sleep(0.5)
    raise RotationRefused("The table audit_entries is locked, by a VACUUM perhaps. Run this again later.")


def _locks_out_writers(connection: Connection) -> bool:
    if connection.dialect.name == "sqlite":  # only one transaction writes at a time
        return True
    try:
        connection.exec_driver_sql("SET LOCAL lock_timeout = 1000; LOCK TABLE audit_entries IN SHARE MODE")
    except OperationalError as error:
        if not errors.is_passing(error):
            raise
        return False
    return True
