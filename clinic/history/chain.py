"""Writes the record history: a chain of entries for each record, and 64 chains for the sign-ins.

The mac of an entry covers the entry before it, so a changed, removed or moved entry is found. The head of a chain
covers its newest entry, so removed entries at the end are found. A mac covers a digest of the changes, not the changes
themselves: a purge can blank them without breaking the chain.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, cast

import orjson
from flask import g, has_request_context
from sqlalchemy import ColumnElement, Connection, Table, bindparam, inspect, select, text, tuple_, update
from sqlalchemy.orm import Session, UOWTransaction

from clinic import timezone
from clinic.history import keys, macs
from clinic.history.keys import Key
from clinic.history.macs import Chain
from models import (
    Absence,
    Appointment,
    AuditEntry,
    AuditHead,
    Image,
    Patient,
    Record,
    Report,
    User,
    Week,
)
from server import errors
from server.database import db, insert_many, upsert
from server.times import now

_RECORDS = (User, Week, Absence, Patient, Appointment, Report, Image)
KINDS: dict[str, type[Record]] = {kind.noun(): kind for kind in _RECORDS}
SIGN_INS: Chain = ("sign-in", 0)  # of earlier releases; since then it only tells how many others there are
SIGN_IN_CHAINS = 64  # numbered from 1: sign-ins of different users seldom wait for each other
CLINIC: Chain = ("clinic", 1)  # changes of the time zone
WITHOUT_RECORD = (SIGN_INS[0], CLINIC[0])  # kinds of chains that belong to no record
LEFT_OUT = {"id", "created_at", "updated_at", "version", "deleted_at"}  # the columns of the entry tell these
SECRETS = {"password": "changed", "image_url": "set"}  # field: the word in place of its value

Changes = dict[str, list[Any]]  # field: [from, to]
Heads = dict[Chain, tuple[int, str]]  # the seq and mac of each chain's newest entry

_entries, _heads = cast(Table, AuditEntry.__table__), cast(Table, AuditHead.__table__)


@dataclass(slots=True)
class Event:
    """A change of a record, or a sign-in, that is to be written as an entry."""

    kind: str
    record_id: int
    action: str
    version: int | None
    changes: Changes
    actor_id: int | None = None

    @property
    def chain(self) -> Chain:
        """The kind and id of the record, which name its chain."""
        return self.kind, self.record_id


# --- Events ---


def write_flushed(session: Session, _: UOWTransaction) -> None:
    """Write an entry for every record that this flush created, changed or deleted. An `after_flush` listener."""
    actor_id = _actor_id()
    new = [_event(record, "create", actor_id) for record in session.new if isinstance(record, Record)]
    changed = [
        _event(record, _action(record), actor_id)
        for record in session.dirty
        if isinstance(record, Record) and session.is_modified(record, include_collections=False)
    ]
    purged = [
        Event(record.noun(), record.id, "purge", record.version, {}, actor_id)
        for record in session.deleted
        if isinstance(record, Record)
    ]
    connection = session.connection()
    if new:
        write(connection, new, heads={})
    if changed or purged:
        write(connection, [*changed, *purged])
    for event in purged:
        _blank_values(connection, event)


def created(kind: type[Record], row: Mapping[str, Any]) -> Event:
    """Return the event of a row that was inserted past the session, where the listener does not see it."""
    changes = {name: [None, _plain(value)] for name, value in row.items() if name not in LEFT_OUT}
    return Event(kind.noun(), row["id"], "create", row["version"], _masked(changes))


def note_sign_in(action: str, user_id: int | None, details: dict[str, Any]) -> None:
    """Write an entry for a sign-in, successful or not. Commits nothing."""
    connection = db.session.connection()
    chain = SIGN_INS[0], sign_in_chain(zlib.crc32(details["email"].encode()) if user_id is None else user_id)
    changes = {name: [None, value] for name, value in details.items()}
    event, heads = Event(*chain, action, None, changes, user_id), _locked_heads(connection, [chain])
    if heads:
        write(connection, [event], heads)
    else:
        _begin_sign_ins(connection, event)


def sign_in_chain(user_id: Any) -> Any:
    """Return the number of the chain of a user's sign-ins. Takes SQL expressions, too."""
    return user_id % SIGN_IN_CHAINS + 1


def _begin_sign_ins(connection: Connection, event: Event) -> None:
    """Write the sign-in, and begin all chains of sign-ins, unless another transaction was faster.

    The entry goes into the chain of number 0, and its `version` tells how many chains there are. All have a head from
    the beginning. So no chain can be removed as a whole without a trace.
    """
    kind, number = SIGN_INS
    head = {"kind": kind, "record_id": number, "seq": 0, "entry_mac": macs.GENESIS, "mac": ""}
    connection.execute(upsert(AuditHead).values(head).on_conflict_do_nothing())
    heads = _locked_heads(connection, [SIGN_INS])  # keeps others out who are here, too
    chains = [(kind, n + 1) for n in range(SIGN_IN_CHAINS)]
    known = _locked_heads(connection, chains)
    if event.chain in known:
        write(connection, [event], {event.chain: known[event.chain]})
        return
    event.record_id, event.version = number, SIGN_IN_CHAINS
    write(connection, [event], heads, begun=[chain for chain in chains if chain not in known])


def _event(record: Record, action: str, actor_id: int | None) -> Event:
    return Event(record.noun(), record.id, action, record.version, _changes(record, action == "create"), actor_id)


def _actor_id() -> int | None:
    caller = g.get("caller") if has_request_context() else None
    return caller.id if caller else None


def _action(record: Record) -> str:
    history = inspect(record).attrs.deleted_at.history
    if not history.added or not (history.added[0] or history.deleted):
        return "change"
    return "archive" if history.added[0] else "restore"


def _changes(record: Record, created: bool) -> Changes:
    """Return the old and new value of every changed field; of a new record, of every field."""
    state = inspect(record)
    changes: Changes = state.info.pop("also_changed", {})  # what is not a column of the record
    for attribute in state.mapper.column_attrs:
        if attribute.key in LEFT_OUT:
            continue
        history = state.attrs[attribute.key].history
        before = None if created or not history.deleted else history.deleted[0]
        after = getattr(record, attribute.key)
        if created or (history.added and before != after):
            changes[attribute.key] = [_plain(before), _plain(after)]
    return _masked(changes)


def _masked(changes: Changes) -> Changes:
    """Replace the values of secret fields. Cloudinary's URL is secret: it opens the image for anybody."""
    for field, word in SECRETS.items():
        if field in changes:
            changes[field] = [None, word]
    return changes


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value.isoformat() if isinstance(value, date) else value


def _blank_values(connection: Connection, purged: Event) -> None:
    """Remove a purged record's values from its chain, and a purged user's values from the sign-ins."""
    for conditions in _entries_about(purged):
        connection.execute(update(_entries).where(*conditions).values(changes=None))


def _entries_about(purged: Event) -> Iterator[tuple[ColumnElement[bool], ...]]:
    yield _entries.c.kind == purged.kind, _entries.c.record_id == purged.record_id
    if purged.kind == User.noun():
        yield _entries.c.kind == SIGN_INS[0], _entries.c.actor_id == purged.record_id


# --- Entries and heads ---


def write(
    connection: Connection, events: Sequence[Event], heads: Heads | None = None, begun: Iterable[Chain] = ()
) -> None:
    """Append an entry for each event to its chain. Commits nothing.

    Takes four statements for any number of events, or three with `heads`: the heads of these chains, already locked.
    Pass `heads={}` for new records. Chains in `begun` get a head without an entry. Raises `WrongAuditKey` or
    `WrongTimezone` and writes nothing if a setting is wrong.
    """
    known = _locked_heads(connection, {event.chain for event in events}) if heads is None else heads
    ends = dict.fromkeys(begun, (0, macs.GENESIS)) | known
    ids, stored_keys, stored_zone = draw_ids(connection, len(events))
    key = keys.current(connection, stored_keys)
    timezone.settle(connection, stored_zone)
    entries = _new_entries(key, ids, events, ends)
    insert_many(connection, AuditEntry, (*macs.SPELLINGS[macs.SPELLING], "changes", "mac"), entries)
    _write_heads(connection, key, ends, known)


def _new_entries(key: Key, ids: Sequence[int], events: Sequence[Event], ends: Heads) -> list[Sequence[Any]]:
    """Return the rows of the events' entries, and update `ends` to the new ends of the chains."""
    moment, request_id = now(), errors.request_id()
    at = moment.strftime(macs.TIME_FORMAT)
    rows: list[Sequence[Any]] = []
    for event, entry_id in zip(events, ids, strict=True):
        seq, before = ends.get(event.chain, (0, macs.GENESIS))
        changes = orjson.dumps(event.changes).decode()
        entry: dict[str, Any] = {
            "id": entry_id,
            "kind": event.kind,
            "record_id": event.record_id,
            "seq": seq + 1,
            "at": at,
            "actor_id": event.actor_id,
            "action": event.action,
            "version": event.version,
            "request_id": request_id,
            "digest": macs.of_changes(key.secret, event.chain, changes),
            "spelling": macs.SPELLING,
            "key_number": key.number,
        }
        mac = macs.of_entry(key.secret, before, entry)
        ends[event.chain] = entry["seq"], mac
        entry["at"] = moment
        rows.append((*entry.values(), changes, mac))
    return rows


_update_head = update(_heads).where(
    _heads.c.kind == bindparam("of_kind"), _heads.c.record_id == bindparam("of_record_id")
)


def _write_heads(connection: Connection, key: Key, ends: Heads, known: Heads) -> None:
    """Insert the heads of new chains, and update the heads of `known` chains."""
    names = ("seq", "entry_mac", "mac", "key_number")
    heads = {
        chain: (seq, mac, macs.of_head(key.secret, chain, seq, mac), key.number) for chain, (seq, mac) in ends.items()
    }
    if added := [(*chain, *head) for chain, head in heads.items() if chain not in known]:
        insert_many(connection, AuditHead, ("kind", "record_id", *names), added)
    moving = ("of_kind", "of_record_id", *names)
    if moved := [dict(zip(moving, (*chain, *heads[chain]), strict=True)) for chain in known]:
        connection.execute(_update_head, moved)


_last_id = text(
    "SELECT (SELECT seq FROM sqlite_sequence WHERE name = 'audit_entries'), (SELECT audit_keys FROM clinic), "
    "(SELECT timezone FROM clinic)"
)
# The transaction first takes the lock of its INSERT, which clinic/history/rotation.py waits for. Then it gets a number,
# which `settled_id` waits for. Then it draws ids, and reads the keys under the lock, all in a single round trip.
_drawn_ids = text(
    "LOCK TABLE audit_entries IN ROW EXCLUSIVE MODE; "
    "SELECT pg_current_xact_id(); "
    "SELECT ARRAY(SELECT nextval('audit_entries_id_seq') FROM generate_series(1, :count)), "
    "(SELECT audit_keys FROM clinic), (SELECT timezone FROM clinic)"
)


def draw_ids(connection: Connection, count: int) -> tuple[list[int], str | None, str | None]:
    """Return new ids of entries, `Clinic.audit_keys` and `Clinic.timezone`.

    Ids are drawn before the INSERT: the macs cover them.
    """
    if connection.dialect.name == "sqlite":  # only one transaction writes at a time
        last, stored_keys, stored_zone = connection.execute(_last_id).one()
        first = (last or 0) + 1
        return list(range(first, first + count)), stored_keys, stored_zone
    drawn, stored_keys, stored_zone = connection.execute(_drawn_ids, {"count": count}).one()
    return sorted(drawn), stored_keys, stored_zone


_chosen_heads = (
    select(AuditHead.kind, AuditHead.record_id, AuditHead.seq, AuditHead.entry_mac)
    .where(tuple_(AuditHead.kind, AuditHead.record_id).in_(bindparam("chains", expanding=True)))
    .order_by(AuditHead.kind, AuditHead.record_id)
    .with_for_update()
)


def _locked_heads(connection: Connection, chains: Iterable[Chain]) -> Heads:
    rows = connection.execute(_chosen_heads, {"chains": sorted(chains)})
    return {(row.kind, row.record_id): (row.seq, row.entry_mac) for row in rows}
