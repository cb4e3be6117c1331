"""Verifies the record history: finds entries and heads that somebody changed, removed or inserted by hand."""

import hashlib
import heapq
import hmac
import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, cast

from sqlalchemy import BigInteger, Connection, Select, Table, func, literal, literal_column, select

from clinic.history import keys, macs
from clinic.history.chain import KINDS, SIGN_INS, WITHOUT_RECORD
from clinic.history.keys import Keyring
from clinic.history.macs import Chain
from models import AuditEntry, AuditHead, LoginSession, User
from server.database import reader

LONGEST_WAIT = 30  # seconds

_entries, _heads = cast(Table, AuditEntry.__table__), cast(Table, AuditHead.__table__)


def verify(head: str | None = None) -> Iterator[str]:
    """Yield a sentence for each chain with a fault, in constant memory.

    `head` is an earlier result of `head_of_all`. With it, an older copy of the whole database is found, too.
    Raises `WrongAuditKey`: with a wrong key every chain would seem to have a fault.
    """
    with snapshot() as connection:
        ring = keys.keyring(connection)
        keys.require_current(ring)
        yield from faults(connection, ring)
        if head is not None:
            yield from _verify_head(connection, head)


def faults(connection: Connection, ring: Keyring) -> Iterator[str]:
    """Yield a sentence for each chain with a fault, and for each key whose seal is broken."""
    purged_users = _purged_users(connection)
    for kind in _kinds(connection):
        if _is_word(kind):
            yield from _verify_kind(connection, ring, kind, purged_users)
        else:
            yield f"There is history of a kind that is none: {kind!a}."
    for number, period in enumerate(ring.periods[1:], 2):
        secret, head = ring.secret(number), f"{period.after}-{_digest_up_to(connection, period.after)}"
        if secret is None or not macs.same(period.seal, macs.of_seal(secret, number, head)):
            yield f"Entries up to {period.after} are not those that key number {number} sealed."


def head_of_all() -> str:
    """Return the newest entry's id and a digest of all entries up to it. Keep it outside of the database.

    Raises `StillWriting`.
    """
    newest = settled_id()
    with snapshot() as connection:
        return f"{newest}-{_digest_up_to(connection, newest)}"


_oldest_transaction = literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint", BigInteger)
# The next number that PostgreSQL gives out. A snapshot's xmax is lower: it follows the highest number that has ended.
_next_transaction = literal_column(
    "pg_snapshot_xmax(pg_current_snapshot())::text::bigint + age(pg_snapshot_xmax(pg_current_snapshot())::xid)",
    BigInteger,
)


class StillWriting(Exception):
    """A transaction takes so long that lower ids than the newest may still be committed."""


def settled_id() -> int:
    """Wait until no id below the newest entry's id can still be committed. Return the newest entry's id.

    PostgreSQL gives out ids in another order than it commits them. Each transaction gets its transaction number before
    it draws ids. So this waits for the end of all transactions that have a number when the newest entry is read. It
    takes no lock, and works on a standby, too. Raises `StillWriting` after `LONGEST_WAIT` seconds.
    """
    with reader() as connection:
        newest = select(func.coalesce(func.max(AuditEntry.id), 0))
        if connection.dialect.name == "sqlite":  # only one transaction writes at a time
            return int(connection.scalar(newest) or 0)
        found, next_number = connection.execute(newest.add_columns(_next_transaction)).one()
        end = time.monotonic() + LONGEST_WAIT
        while time.monotonic() < end:
            connection.rollback()  # the next statement gets a new snapshot
            if (connection.scalar(select(_oldest_transaction)) or 0) >= next_number:
                return int(found)
            time.sleep(0.05)
    raise StillWriting(f"Other transactions have been writing for {LONGEST_WAIT} seconds. Run this again later.")


def _verify_head(connection: Connection, head: str) -> Iterator[str]:
    match = re.fullmatch(r"([0-9]{1,18})-([0-9a-f]{64})", head.strip())
    if match is None:
        yield f"{head} is no head: give what `flask audit head` printed."
    elif not hmac.compare_digest(_digest_up_to(connection, int(match[1])), match[2]):
        yield f"The database is not the one that had {match[1]} entries, or an older copy of it was put back."


def _digest_up_to(connection: Connection, newest: int) -> str:
    return add_entries(hashlib.sha256(), connection, 0, newest).hexdigest()


def add_entries(digest: "hashlib._Hash", connection: Connection, after: int, newest: int) -> "hashlib._Hash":
    """Add the entries after the id `after`, up to the id `newest`, to the digest, and return it."""
    entries = select(AuditEntry.id, AuditEntry.mac).where(AuditEntry.id > after, AuditEntry.id <= newest)
    for row in connection.execute(entries.order_by(AuditEntry.id).execution_options(yield_per=1000)):
        digest.update(f"{row.id}:{row.mac}\n".encode(errors="surrogatepass"))
    return digest


_decode = partial(str, encoding="utf-8", errors="surrogateescape")


@contextmanager
def snapshot() -> Iterator[Connection]:
    """Yield a connection whose statements all see the same state of the database, while others go on writing.

    SQLite stores any bytes as a text, so the connection also reads texts that are not UTF-8.
    """
    with reader() as connection:
        if connection.dialect.name == "postgresql":
            yield connection.execution_options(isolation_level="REPEATABLE READ")
            return
        driver: Any = connection.connection.driver_connection
        text_factory, driver.text_factory = driver.text_factory, _decode
        try:
            yield connection
        finally:
            driver.text_factory = text_factory


# --- Reading all chains of a kind ---


def _verify_kind(connection: Connection, ring: Keyring, kind: str, purged_users: set[int]) -> Iterator[str]:
    for record_id, parts in groupby(_parts(connection, kind), key=lambda part: part.record_id):
        chain = _VerifiedChain(ring, (kind, record_id), purged_users)
        if fault := chain.read(parts) or chain.fault_of_end():
            name = "sign-ins" if chain.is_sign_ins else f"{kind} {record_id!a}"
            yield f"{name}: {fault}."


def _purged_users(connection: Connection) -> set[int]:
    users = select(AuditEntry.record_id).where(AuditEntry.kind == User.noun(), AuditEntry.action == "purge")
    return set(connection.scalars(users))


def _kinds(connection: Connection) -> list[str]:
    """Return the kinds of all records, entries and heads, also kinds that this server never writes."""
    kinds = {*KINDS, SIGN_INS[0]}
    for column in (AuditEntry.kind, AuditHead.kind):
        kinds.update(connection.scalars(select(column).distinct()))
    return sorted(kinds, key=str)


def _is_word(kind: Any) -> bool:
    """Return whether a kind can be bound in a query and printed: a SQLite column may hold any value."""
    return isinstance(kind, str) and kind.isascii() and kind.isprintable()


def _parts(connection: Connection, kind: str) -> Iterator[Any]:
    """Yield all records, heads and entries of a kind, sorted by record id, entries in the order of their chain."""
    at = macs.stored_time(connection.dialect.name).label("at")
    columns = [at if column.name == "at" else column for column in _entries.columns]
    parts = (
        _records(connection, kind),
        _part("head", *_heads.columns).where(_heads.c.kind == kind).order_by(_heads.c.record_id),
        _part("entry", *columns).where(_entries.c.kind == kind).order_by(_entries.c.record_id, _entries.c.seq),
    )
    streams = [connection.execute(part) for part in parts if part is not None]
    return heapq.merge(*streams, key=lambda part: _sqlite_order(part.record_id))


def _part(name: str, *columns: Any) -> Select[Any]:
    return select(literal(name).label("part"), *columns).execution_options(yield_per=1000)


def _records(connection: Connection, kind: str) -> Select[Any] | None:
    """Select how far each chain must reach, by rows outside of the history; None if there are no such rows.

    A record's chain reaches the version of the record. The chain of sign-ins reaches the newest login session.
    """
    if model := KINDS.get(kind):
        return _part("record", model.id.label("record_id"), model.version.label("reached")).order_by(model.id)
    last_login = connection.scalar(select(func.max(LoginSession.id)))
    any_actor = connection.scalar(select(AuditEntry.id).where(AuditEntry.actor_id.is_not(None)).limit(1))
    if kind != SIGN_INS[0] or (last_login is None and any_actor is None):
        return None
    return _part("record", literal(SIGN_INS[1]).label("record_id"), literal(last_login or 0).label("reached"))


def _sqlite_order(value: Any) -> tuple[int, Any]:
    """Return a key that sorts as SQLite does: numbers, then texts by their bytes, then bytes. An id may be any."""
    if isinstance(value, str):
        return 1, value.encode(errors="surrogateescape")
    return 2 * isinstance(value, bytes), value


# --- One chain ---


@dataclass(slots=True)
class _VerifiedChain:
    """Verifies the chain of a record: reads the record, its head and its entries, and returns the first fault."""

    ring: Keyring
    name: Chain
    purged_users: set[int]
    record: Any = None
    head: Any = None
    newest: Any = None  # the entry read last
    with_values: int = 0  # entries
    without_values: int = 0  # entries whose values are gone, although their user was not purged
    last_login: int = 0

    @property
    def is_sign_ins(self) -> bool:
        """Whether this is the chain of sign-ins, which has no record."""
        return self.name == SIGN_INS

    def read(self, parts: Iterable[Any]) -> str:
        """Read all parts of the chain. Return the fault of an entry, or ""."""
        for part in parts:
            if part.part == "record":
                self.record = part
            elif part.part == "head":
                self.head = part
            elif fault := self._fault_of_entry(part):
                return fault
            else:
                self._count_values(part)
                self.newest = part
        return ""

    def _fault_of_entry(self, entry: Any) -> str:
        seq = self.newest.seq + 1 if self.newest else 1
        before = self.newest.mac if self.newest else macs.GENESIS
        if entry.seq != seq:
            return f"entry {seq} was removed"
        key = self.ring.secret_of(entry)
        if key is None or entry.spelling not in macs.SPELLINGS:
            return f"entry {seq} was changed, or put in"
        if not macs.same(entry.mac, macs.of_entry(key, before, entry._mapping)):
            return f"entry {seq} was changed, or put in"
        if entry.changes is not None and not macs.same(entry.digest, macs.of_changes(key, self.name, entry.changes)):
            return f"entry {seq} has other values than were written"
        if seq == 1 and self.name[0] not in WITHOUT_RECORD and entry.action != "create":
            return "its history was removed, and begun anew"
        return ""

    def _count_values(self, entry: Any) -> None:
        if entry.changes is None:
            self.without_values += not self.is_sign_ins or entry.actor_id not in self.purged_users
            return
        self.with_values += 1
        if self.is_sign_ins:
            self.last_login = max(self.last_login, _login_in(entry.changes))

    def fault_of_end(self) -> str:
        """Compare the end of the chain with its head and its record. Return the fault, or ""."""
        if self.newest is None:
            return "its history was removed"
        if self.head is None:
            return "its head was removed"
        key = self.ring.secret(self.head.key_number)
        if not key or not macs.same(self.head.mac, macs.of_head(key, self.name, self.head.seq, self.head.entry_mac)):
            return "its head was changed"
        if (self.head.seq, self.head.entry_mac) != (self.newest.seq, self.newest.mac):
            return f"it ends at entry {self.newest.seq} where {self.head.seq} were written"
        return self._fault_of_values() or self._fault_of_record()

    def _fault_of_values(self) -> str:
        purged = self.newest.action == "purge"
        if purged and self.record:
            return "it is there though its history says that it was purged"
        if purged and self.with_values:
            return "values are in its history though it was purged"
        if self.without_values and not purged:
            return "values were removed from its history, but by no purge"
        return ""

    def _fault_of_record(self) -> str:
        if self.is_sign_ins:
            return "its newest entries were removed" if self.record and self.record.reached > self.last_login else ""
        if self.record is None and self.newest.action != "purge" and self.name[0] not in WITHOUT_RECORD:
            return "the record was removed, but by no purge"
        if self.record and self.record.reached != self.newest.version:
            return f"it is at version {self.record.reached!a}, its history at {self.newest.version}"
        return ""


def _login_in(changes: str) -> int:
    _, login = json.loads(changes).get("login", (None, 0))
    return int(login)
