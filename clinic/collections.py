"""Reads the collections: users, patients, appointments and reports, as pages, streams and single records.

Rows of pages and streams become JSON without validation by an answer model: they were checked when they were written.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import repeat
from typing import Any, Generic, TypeVar

import orjson
from flask import g
from sqlalchemy import JSON, Boolean, ColumnElement, Connection, FromClause, Select, literal_column, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from clinic.query import QueryShape, Statements, Values, estimated, most_counted
from clinic.rights import hidden_fields
from models import Appointment, Image, Patient, Record, Report, User, not_found
from schemas import (
    AppointmentOut,
    CollectionQuery,
    ImageOut,
    Out,
    PatientBrief,
    PatientOut,
    Person,
    ReportOut,
    UserOut,
)
from server import streams
from server.cursor import make_cursor, next_link, read_cursor
from server.database import UTCDateTime
from server.endpoint import StreamedList, WrittenRecord, access_log
from server.fast_reads import Row, read, stop
from server.standby import streaming
from server.times import clinic_zone, writer

BATCH = 500  # rows of a stream that are in memory together, if they are short
FIRST = 50  # rows of the first batch: its client waits
PIECE = 256 * 1024  # bytes of a batch, about

Answer = TypeVar("Answer", bound=Out)
Fields = dict[str, Any]
Finish = Callable[[Fields], None]
ToRecords = Callable[[Sequence[Row]], list[Fields]]


# How the stored values of a column become those of an answer. SQLite stores booleans as numbers, and JSON as text.
_CONVERTERS: dict[type[TypeEngine[Any]], Callable[[Iterable[Any]], Iterable[Any]]] = {
    Boolean: lambda column: map(bool, column),
    JSON: lambda column: [[] if not v else orjson.loads(v) if isinstance(v, str) else v for v in column],
}


class Collection(Generic[Answer]):
    """The live records of a kind, as answers of the API."""

    def __init__(
        self,
        kind: type[Record],
        answer: type[Answer],
        orders: Mapping[str, tuple[str, ...]],
        span: tuple[str, str, str] | None = None,
        minutes: str = "",
        source: FromClause | None = None,
        extra_columns: Sequence[ColumnElement[Any]] = (),
        complete: Callable[[Fields, Row], None] | None = None,
    ) -> None:
        """Describe the collection. `complete(fields, row)` adds fields to a record from the row's `extra_columns`.

        `Statements` describes `orders`, `span`, `minutes`, `source` and `extra_columns`.
        """
        self.kind, self.answer, self.complete = kind, answer, complete
        columns = kind.__table__.c
        self.names = [name for name in answer.model_fields if name in columns]
        types = [columns[name].type for name in self.names]
        self.times = [n for n, stored in enumerate(types) if isinstance(stored, UTCDateTime)]
        self.conversions = [
            (n, convert) for n, stored in enumerate(types) if (convert := _CONVERTERS.get(type(stored)))
        ]
        self.statements = Statements(kind, self.names, orders, span, minutes, source, extra_columns)

    def get(self, record_id: int, finish: Finish | None = None) -> WrittenRecord[Answer]:
        """Return the answer with a single record. `finish` changes its fields. Raises `NotFound`."""
        record = self.fields_of(record_id, finish)
        answer: WrittenRecord[Answer] = WrittenRecord(
            orjson.dumps(record), headers={"ETag": f'"{record["version"]}"'}, mimetype="application/json"
        )
        answer.records_shown = self.ids_of([record])
        return answer

    def reading(self, record_id: int) -> tuple[Select[Any], Values]:
        """Return the statement that reads a single record, with its values."""
        return self.statements.by_id, {"id": record_id}

    def fields_of(self, record_id: int, finish: Finish | None = None) -> Fields:
        """Return the fields of a single record's answer, as `get` does."""
        rows = read(*self.reading(record_id))
        if not rows:
            stop()  # the session takes another connection
            raise not_found(self.kind, record_id)
        return self.converter(finish)(rows)[0]

    def answer_to(self, query: CollectionQuery, finish: Finish | None = None) -> StreamedList[Answer]:
        """Return a page of the query's records; without a limit, a stream of them all.

        `finish` changes the fields of each record. Raises `Invalid` for a cursor of another query.
        """
        after = [] if query.cursor is None else read_cursor(query.cursor, self._scope(query))
        shape, values = self.statements.shape_of(query, after, g.caller.id)
        headers = self._total(replace(shape, after=""), values) if query.total else {}
        if query.limit is None:
            return self._stream(shape, values, headers, finish)
        rows = read(self.statements.page(shape), values | {"limit": query.limit + 1})
        records = self.converter(finish)(rows[: query.limit])
        if len(rows) > query.limit:
            key = self._key(shape, rows[query.limit - 1])
            day = getattr(query, "on", None)  # `today` is another day tomorrow
            fixed = {"on": str(day)} if day else {}
            headers["Link"] = next_link(make_cursor(key, self._scope(query)), **fixed)
        page: StreamedList[Answer] = StreamedList(orjson.dumps(records), headers=headers, mimetype="application/json")
        page.records_shown = self.ids_of(records)
        return page

    def _total(self, shape: QueryShape, values: Values) -> dict[str, str]:
        """Return the headers that tell how many records there are: many are estimated on PostgreSQL."""
        count = read(self.statements.count(shape), values)[0][0]
        if count <= most_counted(shape):
            return {"X-Total-Count": str(count)}
        many = read(self.statements.estimate(shape), values)[0][0]
        if isinstance(many, int):
            return {"X-Total-Count": str(many)}
        return {"X-Total-Count": str(max(count, estimated(many))), "X-Total-Count-Estimated": "true"}

    def _scope(self, query: CollectionQuery) -> str:
        """Return the collection, order and filters for which a cursor is valid."""
        return f"{self.kind.__name__}|{query.model_dump_json(exclude={'limit', 'cursor', 'total'})}"

    def _key(self, shape: QueryShape, row: Row) -> list[Any]:
        """Return the row's values in the columns of the order. For a search: the word that matched, and the id."""
        if shape.words is not None:
            return [row[-1], row[0]]
        return [row[self.names.index(name)] for name in shape.order]

    def _stream(
        self, shape: QueryShape, values: Values, headers: Mapping[str, str], finish: Finish | None
    ) -> StreamedList[Answer]:
        """Return a stream of all rows."""
        return streamed(self.statements.whole(shape), values, self.converter(finish), self.ids_of, headers)

    def ids_of(self, records: list[Fields]) -> str:
        """Return the ids for the access log, in the form of the answer model's `records_shown`."""
        if not hasattr(self.answer, "records_shown"):
            return ""
        noun, ids = f"{self.kind.noun()} ", [str(fields["id"]) for fields in records]
        if "images" in self.answer.model_fields:
            images = (" ".join(str(image["id"]) for image in fields["images"]) for fields in records)
            ids = [f"{record} (images {image_ids})" for record, image_ids in zip(ids, images, strict=True)]
        return noun + f", {noun}".join(ids) if ids else ""

    def converter(self, finish: Finish | None) -> ToRecords:
        """Return a function that turns a driver's rows into the fields of answers. It needs no application context.

        It converts column by column: a page of 100 patients takes 7 % less CPU this way than row by row.
        """
        names, complete, write = self.names, self.complete, writer(clinic_zone())
        hidden = [names.index(name) for name in hidden_fields(self.kind)]

        def to_records(rows: Sequence[Row]) -> list[Fields]:
            if not rows:
                return []
            columns: list[Iterable[Any]] = list[Iterable[Any]](zip(*rows))[: len(names)]  # noqa: B905  # equally long
            for n in self.times:
                columns[n] = write(columns[n])
            for n, convert in self.conversions:
                columns[n] = convert(columns[n])
            for n in hidden:
                columns[n] = repeat(None)
            records = [dict(zip(names, values)) for values in zip(*columns)]  # noqa: B905  # strict takes longer
            if complete:
                for fields, row in zip(records, rows, strict=True):
                    complete(fields, row)
            if finish:
                for fields in records:
                    finish(fields)
            return records

        return to_records


def streamed(
    statements: Iterable[Select[Any]],
    values: Values,
    to_records: ToRecords,
    records_shown: Callable[[list[Fields]], str],
    headers: Mapping[str, str],
) -> StreamedList[Any]:
    """Return a stream of all rows of these statements, with one batch in memory at a time.

    `records_shown` says what the access log says of a batch. The first batch is read before the answer begins, so that
    the client gets an error if that fails. A later failure breaks the connection before the closing `]`.
    """
    log_access, size = access_log(), _BatchSize()

    def shown(rows: Sequence[Row]) -> list[Fields]:
        records = to_records(rows)
        log_access(records_shown(records))
        return records

    with ExitStack() as closing:
        closing.enter_context(streams.place())
        connection = closing.enter_context(streaming(BATCH))
        batches = _batches(connection, statements, values, size)
        closing.callback(batches.close)
        rows = _with_first([next(batches, [])], batches)
        stream: StreamedList[Any] = StreamedList(
            _json_array(map(shown, rows), size), headers=headers, mimetype="application/json"
        )
        stream.call_on_close(closing.pop_all().close)
    return stream


class _BatchSize:
    """How many rows the next batch has: rows with long texts go out, and through the gate, in small batches."""

    def __init__(self) -> None:
        self.rows = FIRST

    def json_items(self, records: Sequence[Fields]) -> bytes:
        """Return the records as JSON, without brackets, and learn how long they are."""
        piece = orjson.dumps(records)[1:-1]
        self.rows = max(1, min(BATCH, len(records) * PIECE // len(piece)))
        return piece


def _batches(
    connection: Connection, statements: Iterable[Select[Any]], values: Values, size: _BatchSize
) -> Generator[Sequence[Row], None, None]:
    for statement in statements:
        with connection.execute(statement, values) as result:
            fetch = result.fetchmany
            yield from iter(lambda fetch=fetch: fetch(size.rows), [])  # type: ignore[misc]  # holds no batch


def _with_first(first: list[Sequence[Row]], batches: Iterable[Sequence[Row]]) -> Iterator[Sequence[Row]]:
    """Yield the first batch, and then the others. Unlike `chain`, this does not hold the first batch meanwhile."""
    yield first.pop()
    yield from batches


def _json_array(batches: Iterable[Sequence[Fields]], size: _BatchSize) -> Iterator[bytes]:
    """Yield a JSON array in pieces, each with a batch of records. Holds no batch while its piece is sent."""
    pieces = map(size.json_items, filter(None, batches))
    yield b"[" + next(pieces, b"")
    yield from map(b",".__add__, pieces)
    yield b"]"


# --- The collections ---

_doctor, _patient = User.__table__, Patient.__table__
_PATIENT, _DOCTOR = tuple(PatientBrief.model_fields), tuple(Person.model_fields)
PEOPLE = (*(_patient.c[name] for name in _PATIENT), *(_doctor.c[name] for name in _DOCTOR))


def _with_names(kind: type[Appointment | Report]) -> FromClause:
    table = kind.__table__
    return table.join(_patient, _patient.c.id == table.c.patient_id).join(_doctor, _doctor.c.id == table.c.user_id)


def _add_people(fields: Fields, row: Row) -> None:
    """Add the patient and the doctor, who are in the last columns of the row."""
    patient = dict(zip(_PATIENT, row[-len(PEOPLE) : -len(_DOCTOR)], strict=True))
    doctor = dict(zip(_DOCTOR, row[-len(_DOCTOR) :], strict=True))
    fields["patient_name"] = f"{patient['first_name']} {patient['last_name']}"
    fields["doctor_name"] = f"{doctor['first_name']} {doctor['last_name']}"
    fields["patient"], fields["doctor"] = patient, doctor


def _add_images_and_people(fields: Fields, row: Row) -> None:
    _add_people(fields, row)
    images = row[-len(PEOPLE) - 1]
    fields["images"] = orjson.loads(images) if images else []


class _JsonObjects(FunctionElement[str]):
    """SQL for a JSON array of objects, as text. Its arguments are pairs: the name of a field, and its column."""

    inherit_cache = True


@compiles(_JsonObjects, "sqlite")
def _json_on_sqlite(element: Any, compiler: Any, **kwargs: Any) -> str:
    return f"json_group_array(json_object({compiler.process(element.clauses, **kwargs)}))"


@compiles(_JsonObjects, "postgresql")
def _json_on_postgresql(element: Any, compiler: Any, **kwargs: Any) -> str:
    return f"CAST(json_agg(json_build_object({compiler.process(element.clauses, **kwargs)})) AS TEXT)"


def _images_of_a_report() -> ColumnElement[Any]:
    """Return a report's images as a JSON column of its row: reports and images come from the same snapshot."""
    image, report = Image.__table__, Report.__table__
    names = [name for name in ImageOut.model_fields if name in image.c]
    images = (
        select(*(image.c[name] for name in names))
        .where(image.c.report_id == report.c.id, image.c.deleted_at.is_(None))
        .order_by(image.c.id)
        .correlate(report)
        .subquery()
    )
    pairs = [part for name in names for part in (literal_column(f"'{name}'"), images.c[name])]
    return select(_JsonObjects(*pairs)).scalar_subquery()


_BY_NAME = {"last_name": ("last_name", "first_name", "id")}

USERS = Collection(User, UserOut, {"id": ("id",), **_BY_NAME})
PATIENTS = Collection(
    Patient,
    PatientOut,
    {"id": ("id",), **_BY_NAME, "admitted_at": ("admitted_at", "id")},
    span=("admitted_at", "admitted_from", "admitted_to"),
)
APPOINTMENTS = Collection(
    Appointment,
    AppointmentOut,
    {"id": ("id",), "appointment_datetime": ("appointment_datetime", "id")},
    span=("appointment_datetime", "from_", "to"),
    minutes="duration_minutes",
    source=_with_names(Appointment),
    extra_columns=PEOPLE,
    complete=_add_people,
)
REPORTS = Collection(
    Report,
    ReportOut,
    {"id": ("id",), "created_at": ("created_at", "id")},
    span=("created_at", "from_", "to"),
    source=_with_names(Report),
    extra_columns=(_images_of_a_report(), *PEOPLE),
    complete=_add_images_and_people,
)
