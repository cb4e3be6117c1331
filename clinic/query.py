"""The SQL statements of a collection: its filters, orders and pages, each served by an index.

A page begins after the last row of the page before, not at an offset: https://use-the-index-luke.com/no-offset
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, timedelta
from functools import lru_cache
from typing import Any, Literal

from sqlalchemy import (
    ClauseElement,
    ColumnElement,
    Executable,
    FromClause,
    Integer,
    Select,
    bindparam,
    func,
    or_,
    select,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from clinic import search
from models import MINUTES, Record
from schemas import CollectionQuery
from server import iso8601
from server.database import UTCDateTime

STATEMENTS = 64  # statements of a collection that stay compiled
SELECTIVE_FILTERS = (
    "patient_id",
    "date_of_birth",
    "user_id",
    "status",
    "role",
)  # the filter that leaves the fewest rows comes first
MOST_COUNTED = 100_000  # rows for a total: counting 2,000,000 takes PostgreSQL 120 ms
MOST_FOUND = 10_000  # the same for a search, where 200,000 take 900 ms
MOST_BRANCHES = 32  # a filter with more values is left to the planner

Condition = ColumnElement[bool]
Conditions = list[Condition]
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class QueryShape:
    """A query without its values. Queries of one shape share one statement, which is compiled once."""

    order: tuple[str, ...]  # columns
    descending: bool = False
    filters: tuple[tuple[str, int], ...] = ()  # column, number of values
    bounds: tuple[str, ...] = ()  # parameters that bound the span of times
    words: tuple[int, ...] | None = None  # for each word of a search the number of its prefixes; None without a search
    after: Literal["", "value", "null"] = ""  # the cursor's value in the first column of the order; "" without a cursor


class Statements:
    """The SELECTs of a collection. Each is built once for a shape and kept: compiled SQL is cached by identity."""

    def __init__(
        self,
        kind: type[Record],
        names: Sequence[str],
        orders: Mapping[str, tuple[str, ...]],
        span: tuple[str, str, str] | None = None,
        minutes: str = "",
        source: FromClause | None = None,
        extra_columns: Sequence[ColumnElement[Any]] = (),
    ) -> None:
        """Select the columns `names` of the record's table, then `extra_columns` of `source`, which joins that table.

        `orders` maps the name of an order to its columns; the first order is the default. `span` is a column of times
        and the two parameters that bound it. With `minutes`, the column of a record's duration, a span finds every
        record that touches it, and its end is outside of it.
        """
        self.kind, self.orders, self.minutes = kind, orders, minutes
        self.span, *self.bounds = span or ("", "", "")
        self.columns = kind.__table__.c
        self.live: Condition = self.columns.deleted_at.is_(None)
        rows: Any = select(*(_as_stored(self.columns[name]).label(name) for name in names), *extra_columns)
        self.rows: Select[Any] = rows.select_from(kind.__table__ if source is None else source).where(self.live)
        self.by_id = self.rows.where(self.columns.id == bindparam("id"))
        self.page = lru_cache(STATEMENTS)(self._page)
        self.whole = lru_cache(STATEMENTS)(self._whole)
        self.count = lru_cache(STATEMENTS)(self._count)
        self.estimate = lru_cache(STATEMENTS)(lambda shape: _Estimate(self._found(shape)))

    def shape_of(self, query: CollectionQuery, after: Sequence[Any], me: int) -> tuple[QueryShape, Values]:
        """Return the shape of a query, and its values by the names of the statement's parameters.

        `after` is the key of the last row of the page before, empty for the first page. `me` is the caller's id.
        """
        given = query.filters(me)
        bounds = tuple(name for name in self.bounds if name in given)
        values: Values = {name: given.pop(name) for name in bounds}
        if self.minutes and self.bounds[0] in bounds:
            values["earliest"] = values[self.bounds[0]] - timedelta(minutes=MINUTES[1])
        q = query.searched()
        # As a word of the search, a birth date is looked up first. As a filter it would be compared row by row.
        born = given.pop("date_of_birth")[0] if q and len(given.get("date_of_birth", ())) == 1 else None
        counts = []
        for name, value in given.items():
            choices = _padded(value if isinstance(value, list) else [value])
            counts.append((name, len(choices)))
            values |= {f"{name}_{n}": choice for n, choice in enumerate(choices)}
        filters = tuple(counts)
        if q:
            words, word_values = search.parameters(q, born, after)
            return QueryShape(("id",), filters=filters, bounds=bounds, words=words), values | word_values
        name = query.order() or (self.span if bounds else next(iter(self.orders)))
        order = self.orders[name.removeprefix("-")]
        for n, (value, column) in enumerate(zip(after, order, strict=False)):
            values[f"after_{n}"] = from_json(value, self.columns[column])
        state: Literal["", "value", "null"] = "" if not after else "null" if after[0] is None else "value"
        return QueryShape(order, name.startswith("-"), filters, bounds, after=state), values

    # --- Statements ---

    def _page(self, shape: QueryShape) -> Select[Any]:
        """Select the first `limit` rows, or the first after the cursor.

        An index has the rows of a page in order, but not if a filter has several values, or if the order's first column
        may be null. Then each branch reads `limit` ids by an index, and the statement merges the branches.
        """
        limit = bindparam("limit", type_=Integer)
        if shape.words is not None:
            return search.rows(self.rows, self.kind, shape.words, self._conditions(shape), limit)
        branches = [
            [*half, *filters, *beyond] for half, beyond in self._halves(shape) for filters in self._split_filters(shape)
        ]
        order = self._order(shape)
        if len(branches) == 1:
            return self.rows.where(*branches[0]).order_by(*order).limit(limit)
        ids = [
            select(self.columns.id).where(self.live, *branch).order_by(*order).limit(limit).subquery()
            for branch in branches
        ]
        rows = self.rows.where(self.columns.id.in_(union_all(*(select(branch.c.id) for branch in ids))))
        column = self.columns[shape.order[0]]
        return rows.order_by(*([column.is_(None)] if column.nullable else []), *order).limit(limit)

    def _whole(self, shape: QueryShape) -> list[Select[Any]]:
        """Select all rows, in a single statement, or in two if the order's first column may be null."""
        if shape.words is not None:
            return [search.rows(self.rows, self.kind, shape.words, self._conditions(shape))]
        rows = self.rows.where(*self._filters(shape)).order_by(*self._order(shape))
        return [rows.where(*half) for half, _ in self._halves(shape)]

    def _count(self, shape: QueryShape) -> Select[Any]:
        """Count the rows, up to one more than `most_counted`."""
        return select(func.count()).select_from(self._found(shape).limit(most_counted(shape) + 1).subquery())

    def _found(self, shape: QueryShape) -> Select[Any]:
        if shape.words is not None:
            return search.found(self.kind, shape.words, self._conditions(shape))
        return select(self.columns.id).where(*self._conditions(shape))

    # --- Parts of statements ---

    def _order(self, shape: QueryShape) -> list[ColumnElement[Any]]:
        return [self.columns[name].desc() if shape.descending else self.columns[name] for name in shape.order]

    def _halves(self, shape: QueryShape) -> list[tuple[Conditions, Conditions]]:
        """Return the halves of the order that follow the cursor: the rows with a value, then the rows with null.

        Each half is its own condition and the condition for where the page begins in it. Nulls in the order's first
        column come last, in both directions.

        An expression index on `(admitted_at IS NULL, admitted_at, id)` cannot replace the halves. With it and 100,000
        rows, a descending page sorts the table: 100 ms on PostgreSQL, 169 ms on SQLite. SQLite also walks the index to
        the cursor, which takes 19 ms. A page in two halves takes 0.1 ms on SQLite and 0.5 to 1 ms on PostgreSQL.
        """
        column = self.columns[shape.order[0]]
        beyond = [self._beyond(shape)] if shape.after else []
        if not column.nullable:
            return [([], beyond)]
        if shape.after == "null":
            return [([column.is_(None)], beyond)]
        halves: list[tuple[Conditions, Conditions]] = [([column.is_not(None)], beyond), ([column.is_(None)], [])]
        return halves[:1] if shape.bounds else halves

    def _beyond(self, shape: QueryShape) -> Condition:
        """Return the condition for rows after the cursor. Among nulls it compares only the columns after the first."""
        pairs: list[Any] = [
            (self.columns[name], bindparam(f"after_{n}", type_=self.columns[name].type))
            for n, name in enumerate(shape.order)
        ][shape.after == "null" :]
        key, bounds = pairs[0] if len(pairs) == 1 else (tuple_(*part) for part in zip(*pairs, strict=True))
        beyond: Condition = key < bounds if shape.descending else key > bounds
        return beyond

    def _conditions(self, shape: QueryShape) -> Conditions:
        return [self.live, *self._filters(shape)]

    def _filters(self, shape: QueryShape, but: str = "") -> Conditions:
        """Return the conditions of all filters and bounds, without the filter named `but`."""
        equalities = [or_(*self._equalities(shape, name, count)) for name, count in shape.filters if name != but]
        return [*self._span_conditions(shape), *equalities] if shape.bounds else equalities

    def _span_conditions(self, shape: QueryShape) -> Conditions:
        """Return the conditions of the span's bounds.

        Records with a duration are in the span if they touch it: their ends are compared. An index has only their
        beginnings, so `earliest` bounds how far back it is read: no record is longer.
        """
        start, end = self.bounds
        bound = {name: bindparam(name, type_=UTCDateTime) for name in (start, end, "earliest")}
        column = self._column(shape, self.span)
        # The cursor is already within this bound. With the bound, SQLite would walk from it to the cursor.
        needless = self.bounds[shape.descending] if shape.after == "value" and shape.order[0] == self.span else ""
        conditions: Conditions = []
        if start in shape.bounds and self.minutes:
            conditions.append(_End(self.columns[self.span], self.columns[self.minutes]) > bound[start])
        if start in shape.bounds and start != needless:
            conditions.append(column >= bound["earliest" if self.minutes else start])
        if end in shape.bounds and end != needless:
            conditions.append(column < bound[end] if self.minutes else column <= bound[end])
        return conditions

    def _split_filters(self, shape: QueryShape) -> list[Conditions]:
        """Return conditions for each value of the most selective filter that has several values.

        For a single value, an index has the rows in the page's order.
        """
        counts = dict(shape.filters)
        name = next((name for name in SELECTIVE_FILTERS if 1 < counts.get(name, 0) <= MOST_BRANCHES), "")
        conditions = self._filters(shape, but=name)
        if not name:
            return [conditions]
        return [[equality, *conditions] for equality in self._equalities(shape, name, counts[name])]

    def _equalities(self, shape: QueryShape, name: str, count: int) -> Conditions:
        column = self._column(shape, name)
        return [column == bindparam(f"{name}_{n}", type_=column.type) for n in range(count)]

    def _column(self, shape: QueryShape, name: str) -> ColumnElement[Any]:
        """Return the column of a filter, without its index if the words or another filter leave fewer rows."""
        filters = dict(shape.filters)
        first = next((name for name in SELECTIVE_FILTERS if name in filters), None)
        hidden = (
            shape.words is not None
            or (first in ("patient_id", "date_of_birth") and name != first)
            or (first == "user_id" and name == "status")
        )
        return WithoutIndex(self.columns[name]) if hidden else self.columns[name]


def most_counted(shape: QueryShape) -> int:
    """Return how many rows are counted for a total. Of more, PostgreSQL's estimate is told."""
    return MOST_COUNTED if shape.words is None else MOST_FOUND


def _as_stored(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the column without its type: SQLAlchemy's converters cost more than the read. A time is its text."""
    return _TextOfTime(column) if isinstance(column.type, UTCDateTime) else type_coerce(column, NullType)


class _TextOfTime(FunctionElement[Any]):
    """SQL for the text of a time in UTC, as `times.writer` reads it. SQLite stores it so.

    psycopg2 would make a datetime of it, and the writer a text again: a page of 100 patients takes 880 µs of CPU then,
    and 690 µs with texts.
    """

    inherit_cache = True
    type = NullType()


@compiles(_TextOfTime)
def _stored_text(element: Any, compiler: Any, **kwargs: Any) -> str:
    return str(compiler.process(element.clauses, **kwargs))


@compiles(_TextOfTime, "postgresql")
def _text_on_postgresql(element: Any, compiler: Any, **kwargs: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kwargs)} AT TIME ZONE 'UTC' AS TEXT)"


class _Estimate(Executable, ClauseElement):
    """How many rows a statement finds: what PostgreSQL's planner expects. SQLite has no such figure, and counts."""

    inherit_cache = True

    def __init__(self, rows: Select[Any]) -> None:
        self.rows = rows


@compiles(_Estimate, "postgresql")
def _expected_rows(element: Any, compiler: Any, **kwargs: Any) -> str:
    return f"EXPLAIN (FORMAT JSON) {compiler.process(element.rows, **kwargs)}"


@compiles(_Estimate)
def _counted_rows(element: Any, compiler: Any, **kwargs: Any) -> str:
    return str(compiler.process(select(func.count()).select_from(element.rows.subquery()), **kwargs))


def estimated(plan: Any) -> int:
    """Return the number of rows that an `estimate` told on PostgreSQL: its value is a plan."""
    rows: int = plan[0]["Plan"]["Plan Rows"]
    return rows


class WithoutIndex(FunctionElement[Any]):
    """Hides this column's index from SQLite's planner, which has no statistics.

    See "unary plus" in https://sqlite.org/optoverview.html. Milliseconds at 100,000 rows, with it and without it:
    a search with a status 0.2 and up to 62; a patient's appointments with a doctor 0.01 and 2; a doctor's appointments
    with a status 0.07 and up to 0.45. The rest of a request takes 1 ms.
    """

    inherit_cache = True

    def __init__(self, column: Any) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(WithoutIndex)
def _plain_column(element: Any, compiler: Any, **kwargs: Any) -> str:
    return str(compiler.process(element.clauses, **kwargs))


@compiles(WithoutIndex, "sqlite")
def _unary_plus(element: Any, compiler: Any, **kwargs: Any) -> str:
    return f"+{compiler.process(element.clauses, **kwargs)}"


class _End(FunctionElement[Any]):
    """SQL for the end of a record: its time, and its duration in minutes. On SQLite, the text of a stored time."""

    inherit_cache = True
    type = UTCDateTime()


@compiles(_End, "sqlite")
def _end_on_sqlite(element: Any, compiler: Any, **kwargs: Any) -> str:
    start, minutes = (compiler.process(clause, **kwargs) for clause in element.clauses)
    return f"strftime('%Y-%m-%d %H:%M:%f000', {start}, '+' || {minutes} || ' minutes')"


@compiles(_End, "postgresql")
def _end_on_postgresql(element: Any, compiler: Any, **kwargs: Any) -> str:
    start, minutes = (compiler.process(clause, **kwargs) for clause in element.clauses)
    return f"{start} + {minutes} * interval '1 minute'"


def _padded(values: list[Any]) -> list[Any]:
    """Drop repeated values, then repeat the last value up to a power of two: few shapes mean few statements."""
    distinct = list(dict.fromkeys(values))
    length = 1 << (len(distinct) - 1).bit_length()
    return distinct + distinct[-1:] * (length - len(distinct))


def from_json(value: Any, column: ColumnElement[Any]) -> Any:
    """Return a cursor's value in the type of its column. In a cursor, times are texts; on SQLite they have no zone."""
    if isinstance(column.type, UTCDateTime) and value is not None:
        time = iso8601.read_time(value)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    return value
