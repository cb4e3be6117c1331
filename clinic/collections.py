"""Collections: whole ones streamed row by row, pages by keyset, with filters, orders and searches, each by an index.

Rows come from the driver as they are and become JSON with no model between: what is stored was checked when it was
written. Why pages go by keyset: https://use-the-index-luke.com/no-offset
"""

import base64
import hmac
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

import orjson
from flask import current_app, request
from sqlalchemy import (
    CTE,
    BindParameter,
    Boolean,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    ScalarSelect,
    Select,
    Subquery,
    and_,
    bindparam,
    false,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

import models
from clinic import search as words
from models import Appointment, Image, Patient, PatientWord, Record, Report, User, UserWord, UTCDateTime
from schemas import AppointmentOut, CollectionQuery, ImageOut, Out, PatientOut, ReportOut, UserOut
from server import errors
from server.database import clinic_zone
from server.endpoint import Many, access, log_access
from server.fast_reads import Row, read, streaming

BATCH = 500  # rows of a stream that are in memory at once
APART = ("patient_id", "user_id", "status", "role")  # filters whose values are looked up one by one
MOST_APART = 32  # more values than these are left to the planner
FORMS = 64  # statements of a collection that are kept compiled
LAST_SIGN = "\U0010ffff"  # sorts after every letter

Answer = TypeVar("Answer", bound=Out)
Fields = dict[str, Any]
Finish = Callable[[Fields], None]
Condition = ColumnElement[bool]
Conditions = list[Condition]


@dataclass(frozen=True, slots=True)
class Asked:
    """The form of a question, without its values: all questions of one form are one statement, compiled once."""

    order: tuple[str, ...]
    descending: bool = False
    filters: tuple[tuple[str, int], ...] = ()  # their names, and how many values each has
    bounds: tuple[str, ...] = ()  # which ends of the span are given
    words: tuple[int, ...] = ()  # for each word of a search, how many beginnings it may have
    searches: bool = False
    after: str = ""  # a page that begins after a row that has "something" in the order's first column, or "nothing"


class Collection(Generic[Answer]):
    """The records of one kind: how they are found, put in order and shown."""

    def __init__(
        self,
        kind: type[Record],
        answer: type[Answer],
        orders: Mapping[str, tuple[str, ...]],  # by its name the columns of each order; the first is the usual one
        span: tuple[str, str, str] | None = None,  # a column of times, and the parameters that bound it
        found_by: type[PatientWord | UserWord] | None = None,  # the words that a search goes by
        source: FromClause | None = None,  # the table and what is read beside it
        beside: Sequence[ColumnElement[Any]] = (),  # columns of that
        complete: Callable[[Fields, Row], None] | None = None,  # makes fields of them
    ) -> None:
        self.kind, self.answer, self.orders, self.found_by, self.complete = kind, answer, orders, found_by, complete
        self.span, *self.ends = span or ("", "", "")
        self.columns = kind.__table__.c
        self.names = [name for name in answer.model_fields if name in self.columns]
        self.times = [name for name in self.names if isinstance(self.columns[name].type, UTCDateTime)]
        self.truths = [name for name in self.names if isinstance(self.columns[name].type, Boolean)]
        self.live: Condition = self.columns.deleted_at.is_(None)
        shown: Any = select(  # as the driver gives them: converters for each column cost more than the reading
            *(type_coerce(self.columns[name], NullType).label(name) for name in self.names), *beside
        )
        table = kind.__table__ if source is None else source
        self.shown: Select[Any] = shown.select_from(table).where(self.live)
        self._one = self.shown.where(self.columns.id == bindparam("id"))
        self.page = lru_cache(FORMS)(self._page)
        self.whole = lru_cache(FORMS)(self._whole)
        self.count = lru_cache(FORMS)(self._count)

    # --- What a reader gets ---

    def one(self, record_id: int, finish: Finish | None = None) -> Answer:
        """One record that is not archived. Raises `NotFound`."""
        rows = read(self._one, {"id": record_id})
        if not rows:
            raise errors.NotFound(f"There is no {self.kind.noun()} {record_id}.")
        return self.answer.of(self._shaper(finish)(rows[0]))

    def answer_to(self, query: CollectionQuery, finish: Finish | None = None) -> Many[Answer]:
        """The page that `query` asks for, or with no limit all that it asks for, as a stream."""
        asked, values = self._ask(query)
        headers = {}
        if query.total:
            headers["X-Total-Count"] = str(read(self.count(replace(asked, after="")), values)[0][0])
        if query.limit is None:
            return self._stream(asked, values, headers, finish)
        rows = read(self.page(asked), values | {"limit": query.limit + 1})
        shown = list(map(self._shaper(finish), rows[: query.limit]))
        if len(rows) > query.limit:
            last = rows[query.limit - 1]
            key = [last[-1], last[0]] if asked.searches else [last[self.names.index(name)] for name in asked.order]
            headers["Link"] = f'<{self._address(self._cursor(query, key))}>; rel="next"'
        page: Many[Answer] = Many(orjson.dumps(shown), headers=headers, mimetype="application/json")
        page.accessed = self._accessed(shown)
        return page

    def _stream(self, asked: Asked, values: Fields, headers: Mapping[str, str], finish: Finish | None) -> Many[Answer]:
        """Rows as they are read. The first are read before the answer begins, so that what fails by then is an error
        to the client; what fails later breaks the connection, and no `]` says that this was all."""
        shape, reader = self._shaper(finish), access() if hasattr(self.answer, "accessed") else ""

        def show(rows: Sequence[Row]) -> list[Fields]:
            shown = list(map(shape, rows))
            log_access(self._accessed(shown), reader)
            return shown

        with ExitStack() as closing:
            batches = _batches(closing.enter_context(streaming(BATCH)), self.whole(asked), values)
            closing.callback(batches.close)
            rows = chain([next(batches, [])], batches)
            answer: Many[Answer] = Many(_written(map(show, rows)), headers=headers, mimetype="application/json")
            answer.call_on_close(closing.pop_all().close)
        return answer

    def _accessed(self, shown: list[Fields]) -> str:
        """What the access log says of some rows: as the answer's own `accessed`, for each."""
        if not hasattr(self.answer, "accessed"):
            return ""
        noun, ids = f"{self.kind.noun()} ", [str(fields["id"]) for fields in shown]
        if "images" in self.answer.model_fields:
            images = (" ".join(str(image["id"]) for image in fields["images"]) for fields in shown)
            ids = [f"{one} (images {several})" for one, several in zip(ids, images, strict=True)]
        return noun + f", {noun}".join(ids) if ids else ""

    def _shaper(self, finish: Finish | None) -> Callable[[Row], Fields]:
        """What makes a row of the driver's into the fields of an answer. It needs no application context."""
        names, times, complete, zone = self.names, self.times, self.complete, clinic_zone()
        on_sqlite = models.db.engine.dialect.name == "sqlite"  # which keeps times as texts in UTC, truths as numbers
        truths = self.truths if on_sqlite else []

        def shape(row: Row) -> Fields:
            fields = dict(zip(names, row, strict=False))
            for name in times:
                if (time := fields[name]) is not None:
                    time = (datetime.fromisoformat(time + "+00:00") if on_sqlite else time).astimezone(zone)
                    # until 1972 some offsets had seconds, which orjson would round
                    fields[name] = time if time.year > 1972 else time.isoformat()
            for name in truths:
                fields[name] = bool(fields[name])
            if complete:
                complete(fields, row)
            if finish:
                finish(fields)
            return fields

        return shape

    # --- Where the next page begins ---

    def _address(self, cursor: str) -> str:
        """Of the next page. Relative where no PUBLIC_URL says what clients call us; never by the Host header."""
        given = [(name, value) for name, value in request.args.items(multi=True) if name != "cursor"]
        return f"{current_app.config['PUBLIC_URL']}{request.path}?{urlencode([*given, ('cursor', cursor)])}"

    def _signature(self, query: CollectionQuery, key: bytes) -> bytes:
        """Ties a cursor to its collection, order and filters, and to this server."""
        asked = query.model_dump_json(exclude={"limit", "cursor", "total"})
        secret: str = current_app.config["SECRET_KEY"]
        return hmac.digest(secret.encode(), f"cursor|{self.kind.__name__}|{asked}|".encode() + key, "sha256")[:12]

    def _cursor(self, query: CollectionQuery, values: list[Any]) -> str:
        # in UTC: offsets that had seconds, until 1972, orjson would round
        key = orjson.dumps([value.astimezone(UTC) if isinstance(value, datetime) else value for value in values])
        return base64.urlsafe_b64encode(self._signature(query, key) + key).rstrip(b"=").decode()

    def _after(self, query: CollectionQuery) -> list[Any]:
        """The values of the order's columns in the row that the page before ended with. Raises `Invalid`."""
        if query.cursor is None:
            return []
        try:
            signed = base64.urlsafe_b64decode(query.cursor + "=" * (-len(query.cursor) % 4))
            signature, key = signed[:12], signed[12:]
            if not hmac.compare_digest(signature, self._signature(query, key)):
                raise ValueError
        except ValueError:
            raise errors.Invalid(
                cursor="This cursor is not one of this collection, order and filters. Follow the Link header."
            ) from None
        values: list[Any] = orjson.loads(key)
        return values

    # --- What is asked ---

    def _ask(self, query: CollectionQuery) -> tuple[Asked, Fields]:
        """The form of the question, and its values by the names that they have in the statement."""
        given = query.filters()
        bounds = tuple(name for name in self.ends if name in given)
        values: Fields = {name: given.pop(name) for name in bounds}
        filters = []
        for name, value in given.items():
            several = list(dict.fromkeys(value)) if isinstance(value, list) else [value]
            rounded = 1 << (len(several) - 1).bit_length()  # lest there be many forms
            several += several[-1:] * (rounded - len(several))
            filters.append((name, len(several)))
            values |= {f"{name}_{n}": one for n, one in enumerate(several)}
        name = query.order() or (self.span if bounds else next(iter(self.orders)))
        order, after = self.orders[name.removeprefix("-")], self._after(query)
        columns = [self.columns[name] for name in order]
        if query.searched():
            found = words.beginnings(query.searched())
            for n, several in enumerate(found):
                for m, one in enumerate(several):
                    values |= {f"word_{n}_{m}": one, f"word_{n}_{m}_end": one + LAST_SIGN}
            for m, one in enumerate(found[0] if found else ()):
                values[f"from_{m}_0"], values[f"from_{m}_1"] = max((one, 0), tuple(after))  # each id is above 0
            form = Asked(("id",), words=tuple(map(len, found)), searches=True)
            return replace(form, filters=tuple(filters), bounds=bounds), values
        form = Asked(order, name.startswith("-"))
        values |= {
            f"after_{n}": _typed(one, column) for n, (one, column) in enumerate(zip(after, columns, strict=False))
        }
        state = "" if not after else "nothing" if after[0] is None else "something"
        return replace(form, filters=tuple(filters), bounds=bounds, after=state), values

    # --- What the database is asked ---

    def _page(self, asked: Asked) -> Select[Any]:
        """The first rows, or those after a row.

        What no index has in order is found in branches that one has, whose rows are then put together: each value of
        the first filter, and rows that have a value in the order's column before those that have none.
        """
        limit = bindparam("limit", type_=Integer)
        if asked.searches:
            return self._matching(asked, limit)
        branches: list[Conditions] = []
        for half, conditions in self._halves(asked):
            if half == "something" and asked.after == "nothing":
                continue
            key = [self.columns[name] for name in asked.order]
            beyond = [_beyond(key, half == "nothing", asked.descending)] if half == asked.after else []
            branches += [[*conditions, *values, *beyond] for values in self._filters(asked, apart=True)]
        by = self._by(asked)
        if len(branches) == 1:
            return self.shown.where(*branches[0]).order_by(*by).limit(limit)
        ids = [select(self.columns.id).where(self.live, *one).order_by(*by).limit(limit).subquery() for one in branches]
        found = self.shown.where(self.columns.id.in_(union_all(*(select(one.c.id) for one in ids))))
        column = self.columns[asked.order[0]]
        return found.order_by(*([column.is_(None)] if column.nullable else []), *by).limit(limit)

    def _whole(self, asked: Asked) -> list[Select[Any]]:
        """All rows, in one statement, or in two where those that have no value come last."""
        if asked.searches:
            return [self._matching(asked)]
        found = self.shown.where(*self._filters(asked)[0]).order_by(*self._by(asked))
        return [found.where(*conditions) for _, conditions in self._halves(asked)]

    def _count(self, asked: Asked) -> Select[Any]:
        if asked.searches:
            return select(func.count()).select_from(self._match(asked)) if asked.words else select(literal(0))
        return select(func.count()).select_from(self.kind.__table__).where(self.live, *self._filters(asked)[0])

    def _by(self, asked: Asked) -> list[ColumnElement[Any]]:
        return [self.columns[name].desc() if asked.descending else self.columns[name] for name in asked.order]

    def _halves(self, asked: Asked) -> list[tuple[str, Conditions]]:
        """Rows that have something in the order's first column, and then rows that have nothing."""
        column = self.columns[asked.order[0]]
        if not column.nullable:
            return [("something", [])]
        halves: list[tuple[str, Conditions]] = [("something", [column.is_not(None)]), ("nothing", [column.is_(None)])]
        return halves[:1] if asked.bounds else halves

    def _filters(self, asked: Asked, apart: bool = False) -> list[Conditions]:
        """What rows must be; if `apart`, once for each value of the first filter, so that an index has the order."""
        every: Conditions = []
        each: Conditions = []
        given = dict(asked.filters)
        # The row that a page begins after says it already; and SQLite would seek no further than to the bound.
        said = self.ends[asked.descending] if asked.after == "something" and asked.order[0] == self.span else ""
        for name in asked.bounds:
            column, bound = self._looked_up(asked, self.span), bindparam(name, type_=UTCDateTime)
            if name != said:
                every.append(column >= bound if name == self.ends[0] else column <= bound)
        split = next((one for one in APART if apart and 1 < given.get(one, 0) <= MOST_APART), None)
        for name, count in asked.filters:
            column = self._looked_up(asked, name)
            equal = [column == bindparam(f"{name}_{n}", type_=column.type) for n in range(count)]
            if name == split:
                each = equal
            else:
                every.append(or_(*equal))
        return [[one, *every] for one in each] or [every]

    def _looked_up(self, asked: Asked, name: str) -> ColumnElement[Any]:
        """The column of a filter; where another has fewer rows to look through, by no index of its own. PostgreSQL
        counts what its columns have; SQLite guesses."""
        leads = next((one for one in APART if one in dict(asked.filters)), None)
        aside = asked.searches or (leads == "patient_id" != name) or (leads == "user_id" and name == "status")
        return _ByNoIndex(self.columns[name]) if aside else self.columns[name]

    def _matching(self, asked: Asked, limit: BindParameter[int] | None = None) -> Select[Any]:
        """The rows that a search finds, each once, in the order of the first word that was matched."""
        if not asked.words:
            return self.shown.add_columns(literal("")).where(false())
        match = self._match(asked, limit)
        shown: Select[Any] = self.shown.add_columns(match.c.word).join(match, match.c.record_id == self.columns.id)
        return shown.order_by(match.c.word, match.c.record_id).limit(limit)

    def _match(self, asked: Asked, limit: BindParameter[int] | None = None) -> Subquery:
        """The ids of those rows, and the words; with a limit those of a page, from where it begins."""
        if self.found_by is None:
            raise TypeError(f"there are no words to search {self.kind.__name__} by")
        found = self.found_by.__table__.c
        place = found.word, found.record_id
        first, *others = [[f"word_{n}_{m}" for m in range(count)] for n, count in enumerate(asked.words)]
        every = [*self._filters(asked)[0], _matches(self.found_by, first, found.word)]
        every += [_matches(self.found_by, other) for other in others]
        matches: list[CTE] = []
        for n, beginning in enumerate(first):
            left: ColumnElement[int] | None = limit
            if matches and limit is not None:  # words in reverse come after all others, and fill what those have left
                left = limit - select(func.count()).select_from(matches[0]).scalar_subquery()
            begins = _begins(found.word, beginning)
            if limit is not None:  # one bound for both: where the word begins, or the row that the page begins after
                start = tuple_(*(bindparam(f"from_{n}_{m}", type_=column.type) for m, column in enumerate(place)))
                begins = and_(tuple_(*place) > start, found.word < bindparam(f"{beginning}_end", type_=found.word.type))
            some = select(*place).join_from(self.found_by, self.kind, self.columns.id == found.record_id)
            some = some.where(begins, self.live, *every)
            matches.append(some.order_by(*place).limit(left).cte(f"match_{n}"))
        return union_all(*(select(one.c.word, one.c.record_id) for one in matches)).subquery("match")


def _batches(
    connection: Connection, statements: list[Select[Any]], values: Fields
) -> Generator[Sequence[Row], None, None]:
    for statement in statements:
        with connection.execute(statement, values) as result:
            yield from result.partitions()


def _written(batches: Iterable[list[Fields]]) -> Iterator[bytes]:
    """A JSON array in pieces."""
    before = b"["
    for shown in batches:
        if shown:
            yield before + orjson.dumps(shown)[1:-1]
            before = b","
    yield b"[]" if before == b"[" else b"]"


def _beyond(columns: Sequence[ColumnElement[Any]], beside_first: bool = False, descending: bool = False) -> Condition:
    """Later in the order than the row that the values after_0, after_1 … are of; if `beside_first`, of those whose
    first column has nothing, as that row's has."""
    pairs = [(column, bindparam(f"after_{n}", type_=column.type)) for n, column in enumerate(columns)][beside_first:]
    if len(pairs) == 1:
        [(column, bound)] = pairs
        return column < bound if descending else column > bound
    key, bounds = (tuple_(*part) for part in zip(*pairs, strict=True))
    beyond: Condition = key < bounds if descending else key > bounds
    return beyond


def _typed(value: Any, column: ColumnElement[Any]) -> Any:
    """A value of a cursor as its column takes it: JSON has no times, SQLite no time zones."""
    if isinstance(column.type, UTCDateTime) and value is not None:
        time = datetime.fromisoformat(value)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    return value


class _ByNoIndex(FunctionElement[Any]):
    """A column, which SQLite is to look up by no index (https://sqlite.org/optoverview.html, unary plus)."""

    inherit_cache = True

    def __init__(self, column: ColumnElement[Any]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(_ByNoIndex)
def _as_any_column(element: Any, compiler: Any, **kwargs: Any) -> str:
    return str(compiler.process(element.clauses, **kwargs))


@compiles(_ByNoIndex, "sqlite")
def _plus_column(element: Any, compiler: Any, **kwargs: Any) -> str:
    return f"+{compiler.process(element.clauses, **kwargs)}"


def _begins(word: ColumnElement[str], beginning: str) -> Condition:
    start, end = (bindparam(name, type_=word.type) for name in (beginning, f"{beginning}_end"))
    return and_(word >= start, word < end)


def _matches(
    found_by: type[PatientWord | UserWord], beginnings: Sequence[str], first: ColumnElement[str] | None = None
) -> ScalarSelect[bool]:
    """Whether a word of the record begins so; and, if given, whether `first` is the first that does.

    As a value, both engines find it by the index for each row that is reached, and expect it of many: as EXISTS or a
    comparison, PostgreSQL expects few, and gathers and sorts every match in the table instead of reading on.
    """
    other, found = found_by.__table__.alias(), found_by.__table__
    begins = or_(*(_begins(other.c.word, one) for one in beginnings))
    least = func.min(other.c.word)
    return (
        select(least.is_not(None) if first is None else least == first)
        .where(other.c.record_id == found.c.record_id, begins)
        .correlate(found)
        .scalar_subquery()
    )


# --- The collections ---

_doctor, _patient = User.__table__, Patient.__table__
_NAMES = (_patient.c.first_name, _patient.c.last_name, _doctor.c.first_name, _doctor.c.last_name)


def _with_names(kind: type[Appointment | Report]) -> FromClause:
    table = kind.__table__
    return table.join(_patient, _patient.c.id == table.c.patient_id).join(_doctor, _doctor.c.id == table.c.user_id)


def _name_people(fields: Fields, row: Row) -> None:
    patient_first, patient_last, doctor_first, doctor_last = row[-4:]
    fields["patient_name"] = f"{patient_first} {patient_last}"
    fields["doctor_name"] = f"{doctor_first} {doctor_last}"
    fields["patient"] = {"id": fields["patient_id"], "first_name": patient_first, "last_name": patient_last}
    fields["doctor"] = {"id": fields["user_id"], "first_name": doctor_first, "last_name": doctor_last}


def _add_images(fields: Fields, row: Row) -> None:
    images, patient_first, patient_last, doctor_first, doctor_last = row[-5:]
    fields["patient_name"] = f"{patient_first} {patient_last}"
    fields["doctor_name"] = f"{doctor_first} {doctor_last}"
    fields["images"] = orjson.loads(images) if images else []


class _json_objects(FunctionElement[str]):
    """A JSON array of objects, as a text, of a name and a column for each of their fields."""

    inherit_cache = True


@compiles(_json_objects, "sqlite")
def _on_sqlite(element: Any, compiler: Any, **kwargs: Any) -> str:
    return f"json_group_array(json_object({compiler.process(element.clauses, **kwargs)}))"


@compiles(_json_objects, "postgresql")
def _on_postgresql(element: Any, compiler: Any, **kwargs: Any) -> str:
    return f"CAST(json_agg(json_build_object({compiler.process(element.clauses, **kwargs)})) AS TEXT)"


def _images_of_a_report() -> ColumnElement[Any]:
    """In the report's own row: one statement and one snapshot, however many reports there are."""
    image, report = Image.__table__, Report.__table__
    shown = (
        select(*(image.c[name] for name in ImageOut.model_fields))
        .where(image.c.report_id == report.c.id, image.c.deleted_at.is_(None))
        .order_by(image.c.id)
        .correlate(report)
        .subquery()
    )
    pairs = [part for name in ImageOut.model_fields for part in (literal_column(f"'{name}'"), shown.c[name])]
    return select(_json_objects(*pairs)).scalar_subquery()


_BY_NAME = {"last_name": ("last_name", "first_name", "id")}

USERS = Collection(User, UserOut, {"id": ("id",), **_BY_NAME}, found_by=UserWord)
PATIENTS = Collection(
    Patient,
    PatientOut,
    {"id": ("id",), **_BY_NAME, "admitted_at": ("admitted_at", "id")},
    span=("admitted_at", "admitted_from", "admitted_to"),
    found_by=PatientWord,
)
APPOINTMENTS = Collection(
    Appointment,
    AppointmentOut,
    {"id": ("id",), "appointment_datetime": ("appointment_datetime", "id")},
    span=("appointment_datetime", "from_", "to"),
    source=_with_names(Appointment),
    beside=_NAMES,
    complete=_name_people,
)
REPORTS = Collection(
    Report,
    ReportOut,
    {"id": ("id",), "created_at": ("created_at", "id")},
    span=("created_at", "from_", "to"),
    source=_with_names(Report),
    beside=(_images_of_a_report(), *_NAMES),
    complete=_add_images,
)
