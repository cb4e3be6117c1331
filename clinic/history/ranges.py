"""Verifies a range of chains of one kind, in constant memory."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnElement, Connection, Select, Table, and_, func, select

from clinic.history import macs
from clinic.history.chain import KINDS, SIGN_IN_CHAINS, SIGN_INS, sign_in_chain
from clinic.history.keys import Keyring
from clinic.history.verified_chain import ENTRY, HEAD, SignInChain, VerifiedChain
from models import AuditEntry, AuditHead, LoginSession, User

_entries, _heads = cast(Table, AuditEntry.__table__), cast(Table, AuditHead.__table__)
FETCHED = 2000  # rows at a time

Row = Sequence[Any]


class Range(NamedTuple):
    """Chains of a kind: those with one of the `ids`, or else those from the id `low` to the id before `high`."""

    kind: str
    low: int | None = None
    high: int | None = None
    ids: tuple[Any, ...] | None = None

    def holds(self, column: Any) -> ColumnElement[bool]:
        """Return the SQL condition that a record's id is in the range."""
        if self.ids is not None:
            return cast(ColumnElement[bool], column.in_(self.ids))
        lower = [] if self.low is None else [column >= self.low]
        upper = [] if self.high is None else [column < self.high]
        return and_(True, *lower, *upper)


class Since(NamedTuple):
    """A state in which the history was whole: its newest entry and the newest login session."""

    entry: int
    login: int


def faults_in(connection: Connection, ring: Keyring, part: Range) -> Iterator[str]:
    """Yield a sentence for each chain of the range that has a fault."""
    if part.kind == SIGN_INS[0]:
        yield from faults_of_sign_ins(connection, ring)
        return
    for record_id, reached, head, entries in _chains(
        _rows(connection, _select_records(part)),
        _rows(connection, _select_heads(part)),
        _rows(connection, _select_entries(connection, part)),
    ):
        chain = VerifiedChain(ring, (part.kind, record_id), reached, head)
        for entry in entries:
            chain.read(entry)
        if fault := chain.end():
            yield f"{part.kind} {record_id!a}: {fault}."


def _chains(
    records: Iterator[Row], heads: Iterator[Row], entries: Iterator[Row]
) -> Iterator[tuple[Any, Any, Row | None, Iterator[Row]]]:
    """Yield the id of each chain, how far its record says it reaches, its head and its entries.

    Read the entries before the next chain. All three are sorted by the record's id, which each record and head begins
    with. The database sorts the entries of a chain, too.
    """
    chains = groupby(entries, key=itemgetter(2))
    record, head, chain = next(records, None), next(heads, None), next(chains, None)
    while ids := {part[0] for part in (record, head, chain) if part}:
        first = ids.pop() if len(ids) == 1 else min(ids, key=_sqlite_order)
        reached, its_head = None, None
        if record and record[0] == first:
            reached, record = record[1], next(records, None)
        if head and head[0] == first:
            its_head, head = head[1:], next(heads, None)
        if chain and chain[0] == first:
            yield first, reached, its_head, chain[1]
            chain = next(chains, None)
        else:
            yield first, reached, its_head, iter(())


def _sqlite_order(value: Any) -> tuple[int, Any]:
    """Return a key that sorts as SQLite does: numbers, then texts by their bytes, then bytes. An id may be any."""
    if isinstance(value, str):
        return 1, value.encode(errors="surrogateescape")
    return 2 * isinstance(value, bytes), value


# --- Sign-ins ---


def faults_of_sign_ins(connection: Connection, ring: Keyring, since: Since | None = None) -> Iterator[str]:
    """Yield a sentence for each chain of sign-ins that has a fault; with `since`, a fault in the entries after it."""
    part, purged, last_logins = Range(SIGN_INS[0]), _purged_users(connection), dict[Any, int]()
    entries = _select_entries(connection, part)
    if since:
        entries = entries.where(_entries.c.id > since.entry)
    numbers, chains, whole = set[Any](), 0, True
    for number, reached, head, rows in _chains(
        _newest_logins(connection, since), _rows(connection, _select_heads(part)), _rows(connection, entries)
    ):
        chain = SignInChain(ring, (part.kind, number), reached, head, purged_users=purged, last_logins=last_logins)
        if since and isinstance(number, int) and (last := _last_entry(connection, number, since)):
            chain.seq, chain.mac, version = last
            chain.chains = version if version == SIGN_IN_CHAINS else None
        for row in rows:
            chain.read(row)
        numbers.add(number)
        chains = chain.chains or chains
        if fault := chain.end():
            whole = whole and number != SIGN_INS[1]
            yield f"sign-ins: {fault}."
    for _ in {n + 1 for n in range(chains)} - numbers:
        yield "sign-ins: its history was removed."
    if whole and not since and not chains and len(numbers) > 1:  # what began the other chains is gone
        yield "sign-ins: its newest entries were removed."


def _newest_logins(connection: Connection, since: Since | None) -> Iterator[Row]:
    """Return the number of each chain of sign-ins with the newest login session that it must reach.

    The chain of number 0 must be there if anybody has ever signed in.
    """
    number = sign_in_chain(LoginSession.user_id)
    sessions = select(number, func.max(LoginSession.id)).where(LoginSession.id > (since.login if since else 0))
    newest = [tuple(row) for row in connection.execute(sessions.group_by(number).order_by(number))]
    any_actor = select(AuditEntry.id).where(AuditEntry.actor_id.is_not(None)).limit(1)
    if newest or connection.scalar(any_actor) is not None:
        newest.insert(0, (SIGN_INS[1], 0))
    return iter(newest)


def _last_entry(connection: Connection, number: Any, since: Since) -> Any:
    """Select the seq, mac and version of a chain's newest entry before `since`."""
    columns = _entries.c.seq, _entries.c.mac, _entries.c.version
    its = _entries.c.kind == SIGN_INS[0], _entries.c.record_id == number, _entries.c.id <= since.entry
    return connection.execute(select(*columns).where(*its).order_by(_entries.c.seq.desc()).limit(1)).one_or_none()


def _purged_users(connection: Connection) -> set[int]:
    users = select(AuditEntry.record_id).where(AuditEntry.kind == User.noun(), AuditEntry.action == "purge")
    return set(connection.scalars(users))


# --- SQL ---


def _rows(connection: Connection, statement: Select[Any] | None) -> Iterator[Any]:
    if statement is None:
        return iter(())
    return iter(connection.execute(statement.execution_options(yield_per=FETCHED)))


def _select_records(part: Range) -> Select[Any] | None:
    model = KINDS.get(part.kind)
    if model is None:
        return None
    columns: list[Any] = [model.id, model.version]
    return select(*columns).where(part.holds(model.id)).order_by(model.id)


def _select_heads(part: Range) -> Select[Any]:
    of_range = _heads.c.kind == part.kind, part.holds(_heads.c.record_id)
    columns = [_heads.c[name] for name in ("record_id", *HEAD)]
    return select(*columns).where(*of_range).order_by(_heads.c.record_id)


def _select_entries(connection: Connection, part: Range) -> Select[Any]:
    of_range = _entries.c.kind == part.kind, part.holds(_entries.c.record_id)
    columns = [
        macs.stored_time(connection.dialect.name).label("at") if name == "at" else _entries.c[name] for name in ENTRY
    ]
    return select(*columns).where(*of_range).order_by(_entries.c.record_id, _entries.c.seq)
