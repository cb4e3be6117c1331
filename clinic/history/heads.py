"""Tells the head of the whole history, and whether the database still has what a head tells."""

import hashlib
import re
import time
from typing import NamedTuple

from sqlalchemy import BigInteger, Connection, func, literal_column, select

from clinic.history import snapshots
from models import AuditEntry
from server.database import reader

LONGEST_WAIT = 30  # seconds

NO_HEAD = "{} is no head: give what `flask audit head` printed."
OLDER = (
    "The database is older than this head: it ends at entry {newest}, and {missing}. "
    "Either the newest entries were lost, or an older copy of it was put back."
)
ANOTHER = "The database is not the one that had {entry} entries, or an older copy of it was put back."


class Head(NamedTuple):
    """What `flask audit head` prints. Heads of earlier releases have no count and no mark."""

    entry: int  # the id of the newest entry
    digest: str  # of all entries up to this one
    entries: int | None = None  # how many these are
    mark: str | None = None  # the beginning of the newest entry's mac

    def __str__(self) -> str:
        return f"{self.entry}-{self.digest}-{self.entries}-{self.mark}"


class HeadRefused(Exception):
    """The database lacks something that a head tells; the message says what."""


def read(line: str) -> Head:
    """Return the head that a line tells. Raises `HeadRefused`."""
    match = re.fullmatch(r"([0-9]{1,18})-([0-9a-f]{64})(?:-([0-9]{1,18})-([0-9a-f]{16}))?", line.strip())
    if match is None:
        raise HeadRefused(NO_HEAD.format(line))
    entry, digest, count, mark = match.groups()
    return Head(int(entry), digest, None if count is None else int(count), mark)


def head_of_all(kept: str | None = None) -> Head:
    """Return the head of all entries. Keep it outside of the database.

    `kept` is an earlier head: raises `HeadRefused` if the database lacks any of its entries. Raises `StillWriting`.
    """
    newest = settled_id()
    with snapshots.snapshot() as connection:
        after, digest = 0, hashlib.sha256()
        if kept is not None:
            head = read(kept)
            require_entries(connection, head)
            after = head.entry
            _require_digest(head, add_entries(digest, connection, 0, after))
        if newest < after:  # another process wrote meanwhile
            newest = after
        add_entries(digest, connection, after, newest)
        return Head(newest, digest.hexdigest(), _count_up_to(connection, newest), mark_of(connection, newest))


def require_entries(connection: Connection, head: Head) -> None:
    """Raise `HeadRefused` if the database seems to lack an entry that the head tells. Reads an index, no entries.

    Heads of earlier releases have no count: then this only compares the newest ids.
    """
    newest = connection.scalar(select(func.coalesce(func.max(AuditEntry.id), 0))) or 0
    if head.entries is None:
        if newest < head.entry:
            raise HeadRefused(OLDER.format(newest=newest, missing=f"entries up to {head.entry} are missing"))
        return
    there = _count_up_to(connection, head.entry)
    if there < head.entries:
        missing = f"{head.entries - there} of the {head.entries} entries up to entry {head.entry} are missing"
        raise HeadRefused(OLDER.format(newest=newest, missing=missing))
    if there > head.entries or mark_of(connection, head.entry) != head.mark:
        raise HeadRefused(ANOTHER.format(entry=head.entry))


def require_digest(connection: Connection, head: Head) -> None:
    """Raise `HeadRefused` unless the entries up to the head are those that it was made of. Reads all their macs."""
    _require_digest(head, add_entries(hashlib.sha256(), connection, 0, head.entry))


def _require_digest(head: Head, digest: "hashlib._Hash") -> None:
    if digest.hexdigest() != head.digest:
        raise HeadRefused(ANOTHER.format(entry=head.entry))


def digest_up_to(connection: Connection, newest: int) -> str:
    """Return the digest of all entries up to the id `newest`."""
    return add_entries(hashlib.sha256(), connection, 0, newest).hexdigest()


def add_entries(digest: "hashlib._Hash", connection: Connection, after: int, newest: int) -> "hashlib._Hash":
    """Add the entries after the id `after`, up to the id `newest`, to the digest, and return it."""
    entries = select(AuditEntry.id, AuditEntry.mac).where(AuditEntry.id > after, AuditEntry.id <= newest)
    for entry_id, mac in connection.execute(entries.order_by(AuditEntry.id).execution_options(yield_per=5000)):
        digest.update(f"{entry_id}:{mac}\n".encode(errors="surrogatepass"))
    return digest


def _count_up_to(connection: Connection, newest: int) -> int:
    return int(connection.scalar(select(func.count()).select_from(AuditEntry).where(AuditEntry.id <= newest)) or 0)


def mark_of(connection: Connection, entry_id: int) -> str:
    """Return the beginning of an entry's mac, which no other database has at this id."""
    mac = connection.scalar(select(AuditEntry.mac).where(AuditEntry.id == entry_id))
    return hashlib.sha256(str(mac).encode(errors="surrogatepass")).hexdigest()[:16]


# --- Ids that are settled ---

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
    it draws ids. So this waits for the end of all transactions that have a number when the newest entry is read, also
    of those in other databases of the server. It takes no lock, and works on a standby, too. Raises `StillWriting`
    after `LONGEST_WAIT` seconds.
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
    raise StillWriting(
        f"Other transactions have been writing for {LONGEST_WAIT} seconds, in this database or another one of the same "
        "server. Run this again later."
    )
