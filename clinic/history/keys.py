"""Keeps track of the keys of the record history, and refuses a wrong `AUDIT_KEY`.

The keys are numbered from 1. The database keeps a check value of each key, not the key itself. `AUDIT_KEY` is the
newest key, which writes entries. `AUDIT_KEY_PREVIOUS` lists the earlier keys, which only verify entries.
"""

import json
import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from flask import current_app, has_request_context
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from clinic.history import macs
from models import AuditEntry, Clinic
from server import errors
from server.database import reader, upsert

log = logging.getLogger("hosi")

WRONG = (
    "AUDIT_KEY is not the key that the record history in this database was written with. Set AUDIT_KEY to that key. "
    "flask audit rotate --help says how to change the key."
)
EARLIER = (
    "AUDIT_KEY is an earlier key of the record history. Set AUDIT_KEY to the newest key, "
    "and list the earlier keys in AUDIT_KEY_PREVIOUS."
)
NEW = (
    "AUDIT_KEY is a new key for the record history in this database. Run `flask audit rotate` to change to it, "
    "or set AUDIT_KEY back to the key in use."
)
MISSING = "AUDIT_KEY_PREVIOUS lacks key number {}, so the entries written with it cannot be verified. Add that key."


class WrongAuditKey(errors.Unavailable):
    """The history cannot be written or verified with the keys in the settings."""


class Key(NamedTuple):
    """A key of the history, with its number."""

    number: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class Period:
    """The time during which a key wrote, as the database keeps it."""

    check: str  # the check value of the key
    after: int = 0  # the newest entry of the earlier keys: entries with a higher id belong to this key
    seal: str = ""  # over all entries of the earlier keys; "" for the first key


def audit_key() -> bytes:
    """Return `AUDIT_KEY`."""
    return str(current_app.config["AUDIT_KEY"]).encode()


def _known_secrets() -> dict[str, bytes]:
    """Return the keys in the settings by their check values."""
    secrets = [audit_key(), *(key.encode() for key in current_app.config["AUDIT_KEY_PREVIOUS"])]
    return {macs.of_key(secret): secret for secret in secrets}


def dumped(periods: Sequence[Period]) -> str:
    """Return the periods as the column `Clinic.audit_keys` keeps them."""
    return json.dumps([astuple(period) for period in periods])


def _loaded(stored: Any) -> list[Period]:
    """Return the periods of a value of `Clinic.audit_keys`. Raises `WrongAuditKey` for a value of another form."""
    try:
        periods = [Period(str(check), int(after), str(seal)) for check, after, seal in json.loads(stored)]
    except (ValueError, TypeError):
        periods = []
    if not periods:
        raise WrongAuditKey("The check values of AUDIT_KEY in table clinic were changed by hand: restore a backup.")
    return periods


# --- The key that writes ---


def current(connection: Connection, stored: str | None) -> Key:
    """Return the key for a new entry.

    `stored` is `Clinic.audit_keys`, which this transaction reads under its lock. Before the first entry it is None:
    then the check value of `AUDIT_KEY` is stored. Raises `WrongAuditKey`.
    """
    return _current(_store_first_check(connection) if stored is None else stored, audit_key())


@lru_cache(maxsize=16)
def _current(stored: str, secret: bytes) -> Key:
    periods, check = _loaded(stored), macs.of_key(secret)
    if not macs.same(periods[-1].check, check):
        if has_request_context():
            log.error("AUDIT_KEY is not the current key of the record history: nothing is written")
        raise WrongAuditKey(_complaint(periods))
    return Key(len(periods), secret)


def _complaint(periods: list[Period]) -> str:
    checks = [period.check for period in periods]
    if macs.of_key(audit_key()) in checks:
        return EARLIER
    return NEW if checks[-1] in _known_secrets() else WRONG


def _store_first_check(connection: Connection) -> str:
    """Store the check value of `AUDIT_KEY`, unless another transaction was faster. Return the stored value."""
    if not _wrote_oldest_entry(connection, audit_key()):
        raise WrongAuditKey(WRONG)
    insert = upsert(Clinic).values(id=1, audit_keys=dumped([Period(macs.of_key(audit_key()))]))
    first = func.coalesce(Clinic.audit_keys, insert.excluded.audit_keys)
    insert = insert.on_conflict_do_update(index_elements=["id"], set_={"audit_keys": first})
    return str(connection.scalar(insert.returning(Clinic.audit_keys)))


def _wrote_oldest_entry(connection: Connection, secret: bytes) -> bool:
    """Return whether this key wrote the oldest entry, or there is no entry. Earlier releases stored no check value."""
    at = macs.stored_time(connection.dialect.name).label("at")
    columns = [at if column.name == "at" else column for column in AuditEntry.__table__.columns]
    entry = connection.execute(select(*columns).order_by(AuditEntry.id).limit(1)).one_or_none()
    if entry is None:
        return True
    mac = entry.spelling in macs.SPELLINGS and macs.of_entry(secret, macs.GENESIS, dict(entry._mapping))
    return bool(mac) and macs.same(entry.mac, str(mac))


# --- The keys that verify ---


class Keyring:
    """Every key of the history, by its number."""

    def __init__(self, stored: str | None, periods: list[Period], secrets: list[bytes]) -> None:
        self.stored, self.periods, self._secrets = stored, periods, secrets
        self._ends = [period.after for period in periods[1:]]

    @property
    def newest_secret(self) -> bytes:
        """The key that writes now, if `require_current` has passed."""
        return self._secrets[-1]

    def secret(self, number: Any) -> bytes | None:
        """Return the key with this number; None for any other value, since a SQLite column may hold any."""
        return self._secrets[number - 1] if isinstance(number, int) and 0 < number <= len(self._secrets) else None

    def secret_of(self, entry_id: int, key_number: Any) -> bytes | None:
        """Return the key of an entry; None if the entry names a key that did not write at that time."""
        right = bisect_left(self._ends, entry_id) + 1
        return self.secret(key_number) if key_number == right else None


def keyring(connection: Connection) -> Keyring:
    """Return the keys of this database's history. Raises `WrongAuditKey` if the settings lack any of them."""
    stored, secrets = connection.scalar(select(Clinic.audit_keys)), _known_secrets()
    if stored is not None:
        periods = _loaded(stored)
    else:
        first = next((c for c, secret in secrets.items() if _wrote_oldest_entry(connection, secret)), None)
        if first is None:
            raise WrongAuditKey(WRONG)
        periods = [Period(first)]
    if periods[-1].check not in secrets:
        raise WrongAuditKey(_complaint(periods))
    if missing := [number for number, period in enumerate(periods, 1) if period.check not in secrets]:
        raise WrongAuditKey(MISSING.format(missing[0]))
    return Keyring(stored, periods, [secrets[period.check] for period in periods])


def require_current(keys: Keyring) -> None:
    """Raise `WrongAuditKey` unless `AUDIT_KEY` is the newest of these keys."""
    if keys.periods[-1].check != macs.of_key(audit_key()):
        raise WrongAuditKey(_complaint(keys.periods))


# --- Checks before the server serves ---


def check_audit_key() -> bool:
    """Compare `AUDIT_KEY` with the check value in the database. Raises `WrongAuditKey`.

    Returns True if the key is right. Returns False if the database does not answer, or has no schema yet.
    """
    try:
        with reader() as connection:
            stored = connection.scalar(select(Clinic.audit_keys))
            if stored is None and not _wrote_oldest_entry(connection, audit_key()):
                raise WrongAuditKey(WRONG)
    except (DBAPIError, PoolTimeout):
        return False
    if stored is not None:
        _current(stored, audit_key())
    return True
