"""Counts patients, appointments and reports over a span of the clinic's days: by day, week or month."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import groupby, pairwise
from typing import Any, cast

import orjson
from sqlalchemy import ColumnElement, Integer, Select, Subquery, Table, bindparam, column, func, select, text

from models import Appointment, AppointmentStatus, Patient, PatientStatus, Report, User
from schemas import CountOut, DoctorCountOut, PeriodOut, StatisticsOut, StatisticsQuery
from server import errors
from server.database import UTCDateTime, db
from server.standby import snapshot
from server.times import DAY, start_of, today

MOST_PERIODS = 1_000
USUAL = timedelta(days=29)  # from the first day to the last, if the client does not say

Row = Sequence[Any]


def over(query: StatisticsQuery) -> StatisticsOut:
    """Return the counts of the span. All are of the same moment.

    Raises `Invalid` for more than `MOST_PERIODS` periods.
    """
    first, last = _span(query)
    starts = _starts(first, last, query.by)
    bounds = [start_of(day) for day in (*starts, last + DAY)]
    with snapshot() as connection:
        periods = connection.execute(_of_periods(connection.dialect.name), {"periods": _as_json(bounds)}).all()
        patients = connection.execute(_OF_PATIENTS).all()
        doctors = connection.execute(_OF_DOCTORS, {"start": bounds[0], "until": bounds[-1]}).all()
    counted = [_period(start, *row) for start, (_, *row) in zip(starts, periods, strict=True)]
    return StatisticsOut(
        from_=first,
        to=last,
        by=query.by,
        patients=_count(PatientStatus, {row[0]: row[1] for row in patients}),
        periods=counted,
        appointments=_sum(period.appointments for period in counted),
        doctors=[_doctor(list(rows)) for _, rows in groupby(doctors, key=lambda row: row.user_id)],
    )


# --- Periods ---


def _span(query: StatisticsQuery) -> tuple[date, date]:
    """Return the first and the last day."""
    first, last = query.from_, query.to
    if last is None:
        last = today() if first is None or first <= today() else first + USUAL
    return first or last - USUAL, last


def _starts(first: date, last: date, by: str) -> list[date]:
    """Return the first day of each period: `first`, and then each day, Monday, or first day of a month."""
    starts = [first]
    while (following := _next(starts[-1], by)) <= last:
        if len(starts) == MOST_PERIODS:
            raise errors.Invalid(by=f"The span has over {MOST_PERIODS:,} periods. Shorten it, or take longer periods.")
        starts.append(following)
    return starts


def _next(day: date, by: str) -> date:
    """Return the first day of the period after the period of this day."""
    if by == "month":
        return (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return day + (timedelta(days=7 - day.weekday()) if by == "week" else DAY)


# --- Statements ---
#
# A period is a range of instants, because SQLite knows no zones. An index has all that a count of the range needs.

_PERIODS = {
    "sqlite": "SELECT key AS n, json_extract(value, '$[0]') AS start, json_extract(value, '$[1]') AS until "
    "FROM json_each(:periods)",
    "postgresql": "SELECT n, CAST(value ->> 0 AS TIMESTAMPTZ) AS start, CAST(value ->> 1 AS TIMESTAMPTZ) AS until "
    "FROM jsonb_array_elements(CAST(:periods AS JSONB)) WITH ORDINALITY AS period (value, n)",
}


def _as_json(bounds: Sequence[datetime]) -> str:
    """Return the beginning and the end of each period, as the database writes times."""
    times = [bound.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f") for bound in bounds]
    if db.engine.dialect.name == "postgresql":
        times = [f"{time}Z" for time in times]
    return orjson.dumps(list(pairwise(times))).decode()


@cache
def _of_periods(dialect: str) -> Select[Any]:
    """Select for each period the admissions, discharges and reports, and the appointments of each status."""
    times = (column(name, UTCDateTime) for name in ("start", "until"))
    period = text(_PERIODS[dialect]).columns(column("n", Integer), *times).subquery("period")
    return select(
        period.c.n,
        _number(period, Patient.admitted_at),
        _number(period, Patient.discharged_at),
        _number(period, Report.created_at),
        *(_number(period, Appointment.appointment_datetime, status) for status in AppointmentStatus),
    ).order_by(period.c.n)


def _number(period: Subquery, time: Any, status: str = "") -> ColumnElement[int]:
    """Count the records that are not archived and have this time in the period, and this status."""
    kind = time.class_
    counted = select(func.count()).select_from(kind).where(kind.deleted_at.is_(None))
    counted = counted.where(time >= period.c.start, time < period.c.until)
    if status:
        counted = counted.where(kind.status == status)
    return counted.correlate(period).scalar_subquery()


_OF_PATIENTS = select(Patient.status, func.count()).where(Patient.deleted_at.is_(None)).group_by(Patient.status)


def _of_doctors() -> Select[Any]:
    """Select for each doctor and status the number of appointments in the span, and their minutes."""
    booked, doctor = cast(Table, Appointment.__table__).c, cast(Table, User.__table__).c
    time = booked.appointment_datetime
    counted = (
        select(booked.user_id, booked.status, func.count().label("number"))
        .add_columns(func.sum(booked.duration_minutes).label("minutes"))
        .where(booked.deleted_at.is_(None), time >= bindparam("start"), time < bindparam("until"))
        .group_by(booked.user_id, booked.status)
        .subquery("counted")
    )
    names = doctor.last_name, doctor.first_name, doctor.id
    return select(counted, *names).join(doctor.id.table, doctor.id == counted.c.user_id).order_by(*names)


_OF_DOCTORS = _of_doctors()


# --- Counts ---


def _count(words: Iterable[str], numbers: Mapping[str, int]) -> CountOut:
    """Return the numbers of all these statuses, and their total."""
    by_status = {str(word): numbers.get(word, 0) for word in words}
    return CountOut(total=sum(by_status.values()), by_status=by_status)


def _period(start: date, admissions: int, discharges: int, reports: int, *appointments: int) -> PeriodOut:
    counted = _count(AppointmentStatus, dict(zip(map(str, AppointmentStatus), appointments, strict=True)))
    return PeriodOut(start=start, admissions=admissions, discharges=discharges, reports=reports, appointments=counted)


def _sum(counts: Iterable[CountOut]) -> CountOut:
    numbers = [count.by_status for count in counts]
    return _count(AppointmentStatus, {word: sum(number[word] for number in numbers) for word in AppointmentStatus})


def _doctor(rows: Sequence[Any]) -> DoctorCountOut:
    """Return the counts of a doctor, who has a row for each status."""
    count = _count(AppointmentStatus, {row.status: row.number for row in rows})
    missed = count.by_status[AppointmentStatus.NO_SHOW]
    with_result = missed + count.by_status[AppointmentStatus.COMPLETED]
    return DoctorCountOut(
        user_id=rows[0].user_id,
        doctor_name=f"{rows[0].first_name} {rows[0].last_name}",
        total=count.total,
        booked_minutes=sum(row.minutes for row in rows if row.status != AppointmentStatus.CANCELLED),
        by_status=count.by_status,
        no_show_rate=round(missed / with_result, 4) if with_result else None,
    )
