"""The record history: who changed what, when. Written by the session itself, and evident when it is tampered with.

Every record has a chain of entries, and sign-ins have one. An entry's `mac` covers the entry before it, so none can be
changed, taken out or moved; a chain's head covers its newest one, so no tail can be cut off. All are keyed by
`AUDIT_KEY`, which is not in the database. An entry covers the digest of its values, not the values: a purge may blank
them and say so.
"""

import hashlib
import heapq
import hmac
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from itertools import groupby, product
from typing import Any, cast
from urllib.parse import urlencode

import orjson
from flask import Flask, current_app, g, has_request_context, request
from pydantic import TypeAdapter
from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Table,
    Text,
    bindparam,
    event,
    func,
    inspect,
    literal,
    select,
    text,
    tuple_,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy.orm import Session, UOWTransaction

from models import (
    Appointment,
    AuditEntry,
    AuditHead,
    Image,
    LoginSession,
    Patient,
    Record,
    Report,
    User,
    db,
    insert_many,
    now,
    upsert,
)
from schemas import AuditQuery, HistoryOut
from server import errors
from server.database import reader
from server.endpoint import Many

KINDS: dict[str, type[Record]] = {kind.noun(): kind for kind in (User, Patient, Appointment, Report, Image)}
SIGN_INS = ("sign-in", 0)  # the chain that belongs to no record
UNTOLD = {"id", "created_at", "updated_at", "version", "deleted_at"}  # what the entry says by itself
SECRETS = {"password": "changed", "image_url": "set"}  # told without the value: Cloudinary's URL is a key to the image
GENESIS = ""  # before a chain's first entry

Chain = tuple[str, int]
Changes = dict[str, list[Any]]  # field: [from, to]
Heads = dict[Chain, tuple[int, str]]  # of each chain the seq and mac of its newest entry


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value.isoformat() if isinstance(value, date) else value


_covered = json.JSONEncoder(default=repr).encode  # made once: `json.dumps` makes an encoder for each call


def _mac(key: bytes, *parts: object) -> str:
    """Of these parts as JSON. History is verified for as long as there are records: never spell it otherwise."""
    return hmac.digest(key, _covered(parts).encode(), "sha256").hex()


def _key() -> bytes:
    return str(current_app.config["AUDIT_KEY"]).encode()


COVERED = ("id", "kind", "record_id", "seq", "at", "actor_id", "action", "version", "request_id", "digest")


def _entry_mac(key: bytes, before: str, entry: Mapping[str, Any]) -> str:
    """`at` is told as text, in UTC: `_AT` if it is to be written, `_stored_at` if it was read."""
    return _mac(key, before, *(entry[name] for name in COVERED))


_AT = "%Y-%m-%d %H:%M:%S.%f"


def _stored_at(dialect: str) -> ColumnElement[str]:
    """The text of an entry's time as the database has it, be it a time or not."""
    if dialect == "sqlite":
        return type_coerce(AuditEntry.at, Text)
    utc = AuditEntry.at.op("AT TIME ZONE")(literal("UTC"))
    return func.replace(func.to_char(utc, "YYYY-MM-DD HH24:MI:SS.US BC"), " AD", "")


def _head_mac(key: bytes, chain: Chain, seq: int, entry_mac: str) -> str:
    return _mac(key, "head", *chain, seq, entry_mac)


def _digest(key: bytes, chain: Chain, changes: str) -> str:
    return _mac(key, "changes", *chain, changes)


@dataclass(slots=True)
class Event:
    """One thing that happened to one chain, about to be written."""

    kind: str
    record_id: int
    action: str
    version: int | None
    changes: Changes
    actor_id: int | None = None

    @property
    def chain(self) -> Chain:
        return self.kind, self.record_id


def write(connection: Connection, events: Sequence[Event], heads: Heads | None = None) -> None:
    """Appends the events to their chains, in the caller's transaction: four statements however many events there are.

    With the `heads` of the chains, none for records just made, three.
    """
    key, moment, request_id = _key(), now(), errors.request_id()
    at = moment.strftime(_AT)
    known = _locked_heads(connection, {one.chain for one in events}) if heads is None else heads
    ends = dict(known)  # chain: (seq, mac) of its newest entry
    entries: list[Sequence[Any]] = []
    for one, entry_id in zip(events, _new_ids(connection, len(events)), strict=True):
        seq, before = ends.get(one.chain, (0, GENESIS))
        changes = orjson.dumps(one.changes).decode()
        entry: dict[str, Any] = {
            "id": entry_id,
            "kind": one.kind,
            "record_id": one.record_id,
            "seq": seq + 1,
            "at": at,
            "actor_id": one.actor_id,
            "action": one.action,
            "version": one.version,
            "request_id": request_id,
            "digest": _digest(key, one.chain, changes),
        }
        mac = _entry_mac(key, before, entry)
        ends[one.chain] = entry["seq"], mac
        entry["at"] = moment
        entries.append((*entry.values(), changes, mac))
    insert_many(connection, AuditEntry, (*COVERED, "changes", "mac"), entries)
    macs = {chain: (seq, mac, _head_mac(key, chain, seq, mac)) for chain, (seq, mac) in ends.items()}
    if added := [(*chain, *head) for chain, head in macs.items() if chain not in known]:
        insert_many(connection, AuditHead, ("kind", "record_id", "seq", "entry_mac", "mac"), added)
    if moved := [dict(zip(_MOVE, (*chain, *macs[chain]), strict=True)) for chain in known]:
        connection.execute(_move_head, moved)


_heads, _entries = cast(Table, AuditHead.__table__), cast(Table, AuditEntry.__table__)
_MOVE = ("at_kind", "at_record", "seq", "entry_mac", "mac")
_move_head = update(_heads).where(_heads.c.kind == bindparam("at_kind"), _heads.c.record_id == bindparam("at_record"))


_last_id = text("SELECT seq FROM sqlite_sequence WHERE name = 'audit_entries'")
# The lock, in one message with it, is that of the INSERT to come: `_snapshot` shall wait for it as from here on.
_drawn_ids = text(
    "LOCK TABLE audit_entries IN ROW EXCLUSIVE MODE; "
    "SELECT nextval('audit_entries_id_seq') FROM generate_series(1, :count)"
)


def _new_ids(connection: Connection, count: int) -> list[int]:
    """Known before the entries are written, since their macs cover them."""
    if connection.dialect.name == "sqlite":  # where one transaction writes at a time
        last = connection.scalar(_last_id) or 0
        return list(range(last + 1, last + 1 + count))
    return sorted(connection.scalars(_drawn_ids, {"count": count}))


_chosen_heads = (
    select(AuditHead.kind, AuditHead.record_id, AuditHead.seq, AuditHead.entry_mac)
    .where(tuple_(AuditHead.kind, AuditHead.record_id).in_(bindparam("chains", expanding=True)))
    .order_by(AuditHead.kind, AuditHead.record_id)
    .with_for_update()
)


def _locked_heads(connection: Connection, chains: Iterable[Chain]) -> Heads:
    rows = connection.execute(_chosen_heads, {"chains": sorted(chains)})
    return {(row.kind, row.record_id): (row.seq, row.entry_mac) for row in rows}


def _actor() -> int | None:
    who = g.get("caller") if has_request_context() else None
    return who.id if who else None


def _changes(record: Record, created: bool) -> Changes:
    """From and to of every field that was written; of a secret only that it was."""
    state, changes = inspect(record), {}
    for attribute in state.mapper.column_attrs:
        if attribute.key in UNTOLD:
            continue
        history = state.attrs[attribute.key].history
        before = None if created or not history.deleted else history.deleted[0]
        after = getattr(record, attribute.key)
        if created or (history.added and before != after):
            changes[attribute.key] = [_plain(before), _plain(after)]
    for secret, said in SECRETS.items():
        if secret in changes:
            changes[secret] = [None, said]
    return changes


def created(kind: type[Record], row: Mapping[str, Any]) -> Event:
    """That this row was written, past the ORM, which else would say so itself."""
    told = ((name, value) for name, value in row.items() if name not in UNTOLD)
    changes: Changes = {name: [None, value if type(value) is str else _plain(value)] for name, value in told}
    for secret, said in SECRETS.items():
        if secret in changes:
            changes[secret] = [None, said]
    return Event(kind.noun(), row["id"], "create", row["version"], changes)


def _action(record: Record) -> str:
    history = inspect(record).attrs.deleted_at.history
    if not history.added or not (history.added[0] or history.deleted):
        return "change"
    return "archive" if history.added[0] else "restore"


def _after_flush(session: Session, _: UOWTransaction) -> None:
    """Writes down what this flush wrote. Nothing else does, so no route can forget to."""
    actor = _actor()
    created = [
        Event(record.noun(), record.id, "create", record.version, _changes(record, created=True), actor)
        for record in session.new
        if isinstance(record, Record)
    ]
    changed = [
        Event(record.noun(), record.id, _action(record), record.version, _changes(record, created=False), actor)
        for record in session.dirty
        if isinstance(record, Record) and session.is_modified(record, include_collections=False)
    ]
    purged = [
        Event(record.noun(), record.id, "purge", record.version, {}, actor)
        for record in session.deleted
        if isinstance(record, Record)
    ]
    connection = session.connection()
    if created:
        write(connection, created, heads={})
    if changed or purged:
        write(connection, [*changed, *purged])
    for one in purged:
        for theirs in _values_of(one):
            connection.execute(update(_entries).where(*theirs).values(changes=None))


def _values_of(purged: Event) -> Iterator[tuple[ColumnElement[bool], ...]]:
    """Where values of a purged record are: in its own chain, and of a user in their sign-ins."""
    yield _entries.c.kind == purged.kind, _entries.c.record_id == purged.record_id
    if purged.kind == User.noun():
        yield _entries.c.kind == SIGN_INS[0], _entries.c.actor_id == purged.record_id


def note_sign_in(action: str, user_id: int | None, details: dict[str, Any]) -> None:
    """Writes down a sign-in, or one that failed. The commit is the caller's."""
    connection = db.session.connection()
    heads: Heads | None = _locked_heads(connection, [SIGN_INS])
    if not heads:  # the one chain that two may want to begin at once
        head = {"seq": 0, "entry_mac": GENESIS, "mac": _head_mac(_key(), SIGN_INS, 0, GENESIS)}
        connection.execute(
            upsert(AuditHead).values(kind=SIGN_INS[0], record_id=SIGN_INS[1], **head).on_conflict_do_nothing()
        )
        heads = None
    changes = {name: [None, value] for name, value in details.items()}
    write(connection, [Event(*SIGN_INS, action, None, changes, user_id)], heads)


# --- Reading ---


_written = TypeAdapter(list[HistoryOut])


def _read(entries: FromClause) -> Select[Any]:
    """These entries, with their actors' names."""
    actor = (User.first_name + " " + User.last_name).label("actor_name")
    return select(entries, actor).outerjoin_from(entries, User, User.id == entries.c.actor_id)


def _newest(entries: FromClause) -> tuple[Any, Any]:
    return entries.c.at.desc(), entries.c.id.desc()


def history(record: Record) -> list[HistoryOut]:
    """Every change of the record, the oldest first; a report's includes its images'."""
    mine = (AuditEntry.kind == record.noun()) & (AuditEntry.record_id == record.id)
    if isinstance(record, Report):
        images = select(Image.id).where(Image.report_id == record.id)
        mine |= (AuditEntry.kind == Image.noun()) & AuditEntry.record_id.in_(images)
    return [HistoryOut.of(row) for row in db.session.execute(_read(_entries).where(mine).order_by(AuditEntry.id))]


def _branches(query: AuditQuery) -> list[list[ColumnElement[bool]]]:
    """What is asked for, apart by actor and kind."""
    actors = [AuditEntry.actor_id == actor for actor in dict.fromkeys(query.actor)]
    kinds = [AuditEntry.kind == kind for kind in dict.fromkeys(query.kind)]
    if actors and not kinds:
        kinds = [AuditEntry.kind == kind for kind in (*KINDS, SIGN_INS[0])]
    return [list(one) for one in product(*(several for several in (actors, kinds) if several))]


def search(query: AuditQuery) -> Many[HistoryOut]:
    """A page of every record's changes, and of sign-ins, the newest first."""
    spans = []
    if query.from_:
        spans.append(AuditEntry.at >= query.from_)
    if query.to:
        spans.append(AuditEntry.at <= query.to)
    if query.before:
        then = select(AuditEntry.at).where(AuditEntry.id == query.before).scalar_subquery()
        spans.append(tuple_(AuditEntry.at, AuditEntry.id) < tuple_(then, query.before))
    branches = [  # each has an index that has its order
        select(_entries).where(*one, *spans).order_by(*_newest(_entries)).limit(query.limit + 1).subquery()
        for one in _branches(query)
    ]
    found = union_all(*(select(branch) for branch in branches)).subquery()
    rows = db.session.execute(_read(found).order_by(*_newest(found)).limit(query.limit + 1))
    entries = [HistoryOut.of(row) for row in rows]
    shown = entries[: query.limit]
    page: Many[HistoryOut] = Many(_written.dump_json(shown), mimetype="application/json")
    page.accessed = ", ".join(entry.accessed for entry in shown)
    if len(entries) > query.limit:
        given = [(name, value) for name, value in request.args.items(multi=True) if name != "before"]
        address = f"{current_app.config['PUBLIC_URL']}{request.path}"
        page.headers["Link"] = f'<{address}?{urlencode([*given, ("before", shown[-1].id)])}>; rel="next"'
    return page


# --- Verification ---


def verify(head: str | None = None) -> Iterator[str]:
    """What is wrong with the history, a sentence each; nothing if all is well. In constant memory.

    `head` is what `head_of_all` gave earlier: with it, it is also found if the database is older than that.
    """
    key = _key()
    with _snapshot() as connection:
        purged = _purged_users(connection)
        for kind in _kinds(connection):
            if not _is_word(kind):
                yield f"There is history of a kind that is none: {kind!a}."
                continue
            for record_id, parts in groupby(_side_by_side(connection, kind), key=lambda part: part.record_id):
                if fault := _fault(key, (kind, record_id), parts, purged):
                    name = "sign-ins" if (kind, record_id) == SIGN_INS else f"{kind} {record_id!a}"
                    yield f"{name}: {fault}."
        if head is not None:
            yield from _against_head(connection, head)


@contextmanager
def _snapshot() -> Iterator[Connection]:
    """Sees the database as it is now, however long it is read, and lets others write meanwhile.

    PostgreSQL gives entries their ids before they are committed: so the writers are waited for, and then for a moment
    kept waiting, that of all ids up to the newest there is none still to come. SQLite takes any bytes for a text: those
    that are none are read, too.
    """
    with reader() as connection:
        if connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ")
            with db.engine.begin() as gate:
                gate.exec_driver_sql("LOCK TABLE audit_entries IN SHARE MODE")
                connection.execute(select(1))
            yield connection
            return
        driver: Any = connection.connection.driver_connection
        kept, driver.text_factory = driver.text_factory, partial(str, encoding="utf-8", errors="surrogateescape")
        try:
            yield connection
        finally:
            driver.text_factory = kept


def _purged_users(connection: Connection) -> set[int]:
    users = select(AuditEntry.record_id).where(AuditEntry.kind == User.noun(), AuditEntry.action == "purge")
    return set(connection.scalars(users))


def _kinds(connection: Connection) -> list[str]:
    """Of all records, entries and heads, those included that we do not write."""
    kinds = {*KINDS, SIGN_INS[0]}
    for found in (AuditEntry.kind, AuditHead.kind):
        kinds.update(connection.scalars(select(found).distinct()))
    return sorted(kinds, key=str)


def _is_word(kind: Any) -> bool:
    """Whether it can be asked for and printed, as all that we write can."""
    return isinstance(kind, str) and kind.isascii() and kind.isprintable()


def _part(name: str, *columns: Any) -> Select[Any]:
    return select(literal(name).label("part"), *columns).execution_options(yield_per=1000)


def _record_part(connection: Connection, kind: str) -> Select[Any] | None:
    """What stands outside of the history and says how far each chain must reach at least."""
    if model := KINDS.get(kind):
        return _part("record", model.id.label("record_id"), model.version.label("reached")).order_by(model.id)
    last_login = connection.scalar(select(func.max(LoginSession.id)))
    someone = connection.scalar(select(AuditEntry.id).where(AuditEntry.actor_id.is_not(None)).limit(1))
    if kind != SIGN_INS[0] or (last_login is None and someone is None):
        return None
    return _part("record", literal(SIGN_INS[1]).label("record_id"), literal(last_login or 0).label("reached"))


def _side_by_side(connection: Connection, kind: str) -> Iterator[Any]:
    """All of a kind's records, heads and entries, record by record."""
    at = _stored_at(connection.dialect.name).label("at")
    columns = [at if column.name == "at" else column for column in _entries.columns]
    parts = (
        _record_part(connection, kind),
        _part("head", *_heads.columns).where(_heads.c.kind == kind).order_by(_heads.c.record_id),
        _part("entry", *columns).where(_entries.c.kind == kind).order_by(_entries.c.record_id, _entries.c.seq),
    )
    streams = [connection.execute(part) for part in parts if part is not None]
    return heapq.merge(*streams, key=lambda part: _sqlite_order(part.record_id))


def _sqlite_order(value: Any) -> tuple[int, Any]:
    """SQLite lets a text be put where a number should be: numbers come first, then texts by their bytes, then bytes."""
    if isinstance(value, str):
        return 1, value.encode(errors="surrogateescape")
    return 2 * isinstance(value, bytes), value


def _same(stored: Any, right: str) -> bool:
    return isinstance(stored, str) and hmac.compare_digest(stored.encode(errors="surrogatepass"), right.encode())


def _fault(key: bytes, chain: Chain, parts: Iterable[Any], purged_users: set[int]) -> str:
    """What is wrong with one chain, the first thing found; "" if nothing is."""
    record = head = newest = None
    blank = told = last_login = 0
    for part in parts:
        if part.part == "record":
            record = part
        elif part.part == "head":
            head = part
        elif fault := _entry_fault(key, chain, newest, part):
            return fault
        else:
            newest = part
            if part.changes is None:
                blank += part.actor_id not in purged_users if chain == SIGN_INS else 1
            else:
                told += 1
                last_login = max(last_login, _login_in(part.changes) if chain == SIGN_INS else 0)
    if newest is None:
        return "its history was removed"
    if head is None:
        return "its head was removed"
    if not _same(head.mac, _head_mac(key, chain, head.seq, head.entry_mac)):
        return "its head was changed"
    if (head.seq, head.entry_mac) != (newest.seq, newest.mac):
        return f"it ends at entry {newest.seq} where {head.seq} were written"
    purged = newest.action == "purge"
    if purged and record:
        return "it is there though its history says that it was purged"
    if purged and told:
        return "values are in its history though it was purged"
    if blank and not purged:
        return "values were removed from its history, but by no purge"
    if chain == SIGN_INS:
        return "its newest entries were removed" if record and record.reached > last_login else ""
    if record is None and not purged:
        return "the record was removed, but by no purge"
    if record and record.reached != newest.version:
        return f"it is at version {record.reached!a}, its history at {newest.version}"
    return ""


def _entry_fault(key: bytes, chain: Chain, before: Any, entry: Any) -> str:
    seq = before.seq + 1 if before else 1
    if entry.seq != seq:
        return f"entry {seq} was removed"
    if not _same(entry.mac, _entry_mac(key, before.mac if before else GENESIS, entry._mapping)):
        return f"entry {seq} was changed, or put in"
    if entry.changes is not None and not _same(entry.digest, _digest(key, chain, entry.changes)):
        return f"entry {seq} has other values than were written"
    if seq == 1 and chain != SIGN_INS and entry.action != "create":
        return "its history was removed, and begun anew"
    return ""


def _login_in(changes: str) -> int:
    _, login = json.loads(changes).get("login", (None, 0))
    return int(login)


def _digest_to(connection: Connection, newest: int) -> str:
    digest = hashlib.sha256()
    macs = select(AuditEntry.id, AuditEntry.mac).where(AuditEntry.id <= newest).order_by(AuditEntry.id)
    for row in connection.execute(macs.execution_options(yield_per=1000)):
        digest.update(f"{row.id}:{row.mac}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def head_of_all() -> str:
    """The newest entry's id and a digest of all up to it, to be kept elsewhere."""
    with _snapshot() as connection:
        newest = connection.scalar(select(func.max(AuditEntry.id))) or 0
        return f"{newest}-{_digest_to(connection, newest)}"


def _against_head(connection: Connection, head: str) -> Iterator[str]:
    match = re.fullmatch(r"([0-9]{1,18})-([0-9a-f]{64})", head.strip())
    if match is None:
        yield f"{head} is no head: give what `flask audit head` printed."
    elif not hmac.compare_digest(_digest_to(connection, int(match[1])), match[2]):
        yield f"The database is not the one that had {match[1]} entries, or an older copy of it was put back."


def init_app(app: Flask) -> None:
    if not event.contains(Session, "after_flush", _after_flush):
        event.listen(Session, "after_flush", _after_flush)
