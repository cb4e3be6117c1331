"""Lists the appointments and reports of a patient, the newest first."""

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, cast

import orjson
from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Table,
    and_,
    bindparam,
    func,
    literal_column,
    select,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy.types import NullType

from clinic import rights
from clinic.collections import APPOINTMENTS, PATIENTS, PEOPLE, REPORTS, Collection, Fields, ToRecords, streamed
from clinic.image_links import image_links
from clinic.query import from_json
from models import Appointment, Patient, Report, User
from schemas import TimelineQuery
from server.cursor import make_cursor, next_link, read_cursor
from server.database import UTCDateTime
from server.endpoint import StreamedList
from server.fast_reads import Row, read
from server.web import LARGEST_ID

Kinds = tuple[Collection[Any], ...]

TIMES = {Appointment: "appointment_datetime", Report: "created_at"}  # the `at` of an entry
BOTH: Kinds = (APPOINTMENTS, REPORTS)  # entries of the same instant have this order
LATEST = "9999-12-31T00:00:00Z"  # where the first page begins


def of(patient_id: int, query: TimelineQuery) -> StreamedList[Any]:
    """Return a page of the patient's timeline; without a limit, a stream of all of it.

    Raises `NotFound`. Raises `Invalid` for a cursor of another timeline.
    """
    PATIENTS.fields_of(patient_id)
    kinds = _kinds_shown()
    scope = f"timeline|{patient_id}|{len(kinds)}"
    at, *ids = read_cursor(query.cursor, scope) if query.cursor else [LATEST, *[LARGEST_ID] * len(kinds)]
    values = {"patient": patient_id, "at": from_json(at, _AT), **{f"before_{n}": one for n, one in enumerate(ids)}}
    headers = {"X-Total-Count": str(read(_count(kinds), values)[0][0])} if query.total else {}
    if query.limit is None:
        return streamed([_statement(kinds)], values, _converter(kinds), _records_shown, headers)
    rows = read(_statement(kinds, limited=True), values | {"limit": query.limit + 1})
    entries = _converter(kinds)(rows[: query.limit])
    if len(rows) > query.limit:
        headers["Link"] = next_link(make_cursor(_key(rows[query.limit - 1], kinds), scope))
    page: StreamedList[Any] = StreamedList(orjson.dumps(entries), headers=headers, mimetype="application/json")
    page.records_shown = _records_shown(entries)
    return page


def _kinds_shown() -> Kinds:
    """Return the kinds of record that the caller may read."""
    return BOTH if rights.caller().role in rights.CLINICIANS else (APPOINTMENTS,)


def _key(row: Row, kinds: Kinds) -> list[Any]:
    """Return where the next page begins: the instant of the row, and for each kind the id below which it goes on.

    Of the records of that instant, this page or one before showed all of the kinds before the row's, and none of the
    kinds after it.
    """
    kind, record_id, at = row[:3]
    return [at, *(0 if n < kind else record_id if n == kind else LARGEST_ID for n in range(len(kinds)))]


# --- Statements ---

_AT: ColumnElement[datetime] = bindparam("at", type_=UTCDateTime)


@cache
def _statement(kinds: Kinds, limited: bool = False) -> Select[Any]:
    """Select the entries of a timeline, or with a limit those of a page.

    First the ids are read, `limit` of each kind by an index, and the newest chosen. Only these are then read whole. A
    row has the number of the kind, the id, the instant, the columns of each kind, and the patient and doctor.
    """
    limit = bindparam("limit", type_=Integer) if limited else None
    branches = [_ids(n, kind).limit(limit).subquery() for n, kind in enumerate(kinds)]
    ids = union_all(*(select(branch) for branch in branches)).subquery("found")
    newest = select(ids).order_by(*_newest_first(ids)).limit(limit).subquery("entry")
    patient, doctor = cast(Table, Patient.__table__), cast(Table, User.__table__)
    tables = [cast(Table, kind.kind.__table__) for kind in kinds]
    source: FromClause = newest.join(patient, patient.c.id == bindparam("patient", type_=Integer))
    for n, table in enumerate(tables):
        source = source.outerjoin(table, and_(newest.c.kind == n, table.c.id == newest.c.id))
    doctor_id = tables[0].c.user_id if len(tables) == 1 else func.coalesce(*(table.c.user_id for table in tables))
    source = source.join(doctor, doctor.c.id == doctor_id)
    columns: list[ColumnElement[Any]] = [newest.c.kind, newest.c.id, type_coerce(newest.c.at, NullType)]
    for kind in kinds:
        columns += list(kind.statements.rows.selected_columns)[: -len(PEOPLE)]
    return select(*columns, *PEOPLE).select_from(source).order_by(*_newest_first(newest))


def _ids(number: int, kind: Collection[Any]) -> Select[Any]:
    """Select the ids of the patient's records of a kind, the newest first, each with the number of the kind."""
    columns = cast(Table, kind.kind.__table__).c
    at = columns[TIMES[kind.kind]]  # type: ignore[index]
    bounds = tuple_(_AT, bindparam(f"before_{number}", type_=Integer))
    return (
        select(literal_column(str(number), Integer).label("kind"), columns.id, at.label("at"))
        .where(
            columns.patient_id == bindparam("patient"), columns.deleted_at.is_(None), tuple_(at, columns.id) < bounds
        )
        .order_by(at.desc(), columns.id.desc())
    )


def _newest_first(entries: FromClause) -> Sequence[ColumnElement[Any]]:
    return entries.c.at.desc(), entries.c.kind, entries.c.id.desc()


@cache
def _count(kinds: Kinds) -> Select[Any]:
    tables = [cast(Table, kind.kind.__table__) for kind in kinds]
    counts: list[ColumnElement[int]] = [
        select(func.count())
        .select_from(table)
        .where(table.c.patient_id == bindparam("patient"), table.c.deleted_at.is_(None))
        .scalar_subquery()
        for table in tables
    ]
    return select(sum(counts[1:], counts[0]))


# --- Entries ---


def _converter(kinds: Kinds) -> ToRecords:
    """Return a function that turns rows into entries: each record as its own address answers it."""
    parts = []  # for each kind: its noun, its time, where its columns begin and end, and how they become fields
    start = 3
    for kind in kinds:
        end = start + len(kind.statements.rows.selected_columns) - len(PEOPLE)
        to_records = kind.converter(image_links() if kind is REPORTS else None)
        parts.append((kind.kind.noun(), TIMES[kind.kind], start, end, to_records))  # type: ignore[index]
        start = end

    def to_entries(rows: Sequence[Row]) -> list[Fields]:
        of_kind = []
        for n, (noun, time, first, last, to_records) in enumerate(parts):
            records = to_records([(*row[first:last], *row[-len(PEOPLE) :]) for row in rows if row[0] == n])
            of_kind.append(iter([{"kind": noun, "at": fields[time], **fields} for fields in records]))
        return [next(of_kind[row[0]]) for row in rows]

    return to_entries


def _records_shown(entries: list[Fields]) -> str:
    """Return the ids of the reports for the access log."""
    return REPORTS.ids_of([entry for entry in entries if entry["kind"] == Report.noun()])
