"""Lists the record history: the entries of a record, and the pages of `GET /audit`."""

from itertools import product
from typing import Any, cast
from urllib.parse import urlencode

from flask import current_app, request
from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, FromClause, Select, Table, select, tuple_, union_all

from clinic.history.chain import KINDS, SIGN_INS
from models import Absence, AuditEntry, Image, Patient, Record, Report, User, Week
from schemas import AuditQuery, HistoryOut
from server.database import db
from server.endpoint import StreamedList
from server.standby import snapshot

_entries = cast(Table, AuditEntry.__table__)
_page = TypeAdapter(list[HistoryOut])


def history(record: Record) -> list[HistoryOut]:
    """Return every entry of the record, oldest first.

    A report has the entries of its images, too, a user those of their hours and absences, and a patient those of the
    patients who were merged into them.
    """
    chosen = (AuditEntry.kind == record.noun()) & (AuditEntry.record_id == record.id)
    if isinstance(record, Report):
        images = select(Image.id).where(Image.report_id == record.id)
        chosen |= (AuditEntry.kind == Image.noun()) & AuditEntry.record_id.in_(images)
    if isinstance(record, User):
        absences = select(Absence.id).where(Absence.user_id == record.id)
        chosen |= (AuditEntry.kind == Week.noun()) & (AuditEntry.record_id == record.id)
        chosen |= (AuditEntry.kind == Absence.noun()) & AuditEntry.record_id.in_(absences)
    if isinstance(record, Patient) and record.merged:
        merged = [other["id"] for other in record.merged]
        chosen |= (AuditEntry.kind == Patient.noun()) & AuditEntry.record_id.in_(merged)
    rows = db.session.execute(_with_actor(_entries).where(chosen).order_by(AuditEntry.id))
    return [HistoryOut.of(row) for row in rows]


def search(query: AuditQuery) -> StreamedList[HistoryOut]:
    """Return a page of entries of all records and of sign-ins, newest first, with a `Link` to the next page."""
    with snapshot() as connection:
        found = [_entry(row) for row in connection.execute(_newest(query))]
    entries = found[: query.limit]
    page: StreamedList[HistoryOut] = StreamedList(_page.dump_json(entries), mimetype="application/json")
    page.records_shown = ", ".join(entry.records_shown for entry in entries)
    if len(found) > query.limit:
        page.headers["Link"] = f'<{_address_before(entries[-1].id)}>; rel="next"'
    return page


def _entry(row: Any) -> HistoryOut:
    """Return an entry as it is shown. The number of its chain is not the id of a record."""
    entry = HistoryOut.of(row)
    return entry.model_copy(update={"record_id": 0, "version": None}) if entry.kind == SIGN_INS[0] else entry


def _newest(query: AuditQuery) -> Select[Any]:
    """Select the entries of a page and another entry, which tells whether a page follows.

    The union has a branch for each actor and kind: the database reads each branch in the order of an index.
    """
    branches = [
        select(_entries)
        .where(*conditions, *_span(query))
        .order_by(*_newest_first(_entries))
        .limit(query.limit + 1)
        .subquery()
        for conditions in _actors_and_kinds(query)
    ]
    found = union_all(*(select(branch) for branch in branches)).subquery()
    return _with_actor(found).order_by(*_newest_first(found)).limit(query.limit + 1)


def _with_actor(entries: FromClause) -> Select[Any]:
    """Select entries with the names of their actors."""
    actor = (User.first_name + " " + User.last_name).label("actor_name")
    return select(entries, actor).outerjoin_from(entries, User, User.id == entries.c.actor_id)


def _newest_first(entries: FromClause) -> tuple[Any, Any]:
    return entries.c.at.desc(), entries.c.id.desc()


def _actors_and_kinds(query: AuditQuery) -> list[list[ColumnElement[bool]]]:
    actors = [AuditEntry.actor_id == actor for actor in dict.fromkeys(query.actor)]
    kinds = [AuditEntry.kind == kind for kind in dict.fromkeys(query.kind)]
    if actors and not kinds:
        kinds = [AuditEntry.kind == kind for kind in (*KINDS, SIGN_INS[0])]
    return [list(pair) for pair in product(*(conditions for conditions in (actors, kinds) if conditions))]


def _span(query: AuditQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if query.from_:
        conditions.append(AuditEntry.at >= query.from_)
    if query.to:
        conditions.append(AuditEntry.at <= query.to)
    if query.before:
        at = select(AuditEntry.at).where(AuditEntry.id == query.before).scalar_subquery()
        conditions.append(tuple_(AuditEntry.at, AuditEntry.id) < tuple_(at, query.before))
    return conditions


def _address_before(entry_id: int) -> str:
    """Return the address of the page that begins with the entry before this entry."""
    given = [(name, value) for name, value in request.args.items(multi=True) if name != "before"]
    return f"{current_app.config['PUBLIC_URL']}{request.path}?{urlencode([*given, ('before', entry_id)])}"
