"""Keeps the working hours of the staff, and finds the free slots of doctors.

Slots are computed from hours, absences and appointments by a fixed number of statements. Instants are seconds since
1970, as in `server.weekly`.
"""

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

from flask import current_app
from pydantic import TypeAdapter
from sqlalchemy import BigInteger, Integer, Select, literal, select, union_all
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

import models
from clinic import rights
from clinic.query import WithoutIndex
from config import read_weekly_hours
from models import (
    HOLDING,
    LATEST_BOOKING,
    MINUTES,
    Absence,
    Appointment,
    Patient,
    PatientStatus,
    Role,
    User,
    Week,
    Weekday,
    WorkingHours,
)
from schemas import HoursOut, SlotOut, SlotQuery, WeekIn
from server import errors, weekly
from server.database import db
from server.endpoint import StreamedList, check_if_match
from server.times import DAY, clinic_zone, day_of, now
from server.weekly import Hours, Span

GRID = 5 * 60  # seconds: the first slot of a free interval begins at a whole multiple
# Of many doctors the first slots are found without reading their appointments of weeks.
FEW_DOCTORS, QUICK_LOOK = 5, timedelta(days=3)
USUAL_SEARCH, LONGEST_SEARCH = timedelta(days=14), timedelta(days=62)

_hours_out = TypeAdapter(list[HoursOut])


# --- Hours ---


def hours_of(user_id: int) -> StreamedList[HoursOut]:
    """Return the hours of a user, with the version of the week as ETag: "0" if it was never set. Raises `NotFound`."""
    models.find(User, user_id)
    return _shown(db.session.get(Week, user_id))


def set_hours(user_id: int, json: WeekIn) -> StreamedList[HoursOut]:
    """Replace the hours of a user. The same hours again change nothing. Raises as `rights.staff_for_update` does."""
    rights.staff_for_update(Week, user_id)
    week = db.session.get(Week, user_id)
    check_if_match(week.version if week else 0, None)
    hours = json.hours()
    if week is None or week.hours != hours:
        week = week or Week(id=user_id)
        week.set_hours(hours)
        models.save(week)
    return _shown(week)


def _shown(week: Week | None) -> StreamedList[HoursOut]:
    days = list(Weekday)
    hours = [
        HoursOut.model_validate({"weekday": days[weekday], "from": _clock(starts), "to": _clock(ends)})
        for weekday, starts, ends in (week.hours if week else ())
    ]
    answer: StreamedList[HoursOut] = StreamedList(_hours_out.dump_json(hours), mimetype="application/json")
    answer.set_etag(str(week.version if week else 0))
    return answer


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


# --- Free slots ---


@dataclass(frozen=True, slots=True)
class Doctor:
    """A doctor whose slots are offered, and the hours in which they are."""

    id: int
    name: str
    hours: Hours


@dataclass(frozen=True, slots=True)
class Search:
    """What slots are looked for: a span of instants, and the length of a slot in seconds."""

    start: int
    end: int
    step: int

    @classmethod
    def of(cls, start: datetime, end: datetime, minutes: int) -> "Search":
        """Return the search from a time to another, of slots of so many minutes that can be booked now."""
        latest = now() + LATEST_BOOKING + timedelta(minutes=minutes)
        return cls(-int(-start.timestamp() // 1), int(min(end, latest).timestamp()), minutes * 60)


def free_slots(query: SlotQuery) -> list[SlotOut]:
    """Return the first free slots of the query, by their start, then by doctor.

    Raises `Invalid` for a span that is too long, or a patient who does not exist.
    """
    present = now()
    start = max(query.from_ or present, present)
    end = query.to or start + USUAL_SEARCH
    if _wall_clock(end) - _wall_clock(start) > LONGEST_SEARCH:
        raise errors.Invalid(to=f"Please search at most {LONGEST_SEARCH.days} days at once.")
    if query.patient_id and not _can_be_booked(query.patient_id):
        return []
    named = {person or rights.caller().id for person in query.user_id}
    doctors = list(_doctors(named))
    soon = [min(start + QUICK_LOOK, end)] if len(doctors) > FEW_DOCTORS else []
    for until in (*soon, end):
        slots = first_free(doctors, Search.of(start, until, query.minutes), query.patient_id)
        found = list(islice(slots, query.limit))
        if len(found) == query.limit:
            break
    return found


def _wall_clock(instant: datetime) -> datetime:
    return instant.astimezone(clinic_zone()).replace(tzinfo=None)


def _can_be_booked(patient_id: int) -> bool:
    """Return whether the patient lives. Raises `Invalid` for a patient who does not exist or is archived."""
    status = db.session.scalar(Patient.live().with_only_columns(Patient.status).where(Patient.id == patient_id))
    if status is None:
        raise errors.Invalid(patient_id=f"There is no patient {patient_id}.")
    return status != PatientStatus.DECEASED


def _doctors(named: Collection[int]) -> Iterator[Doctor]:
    """Yield the active doctors, or of them those who are named.

    An administrator is among them only if named, or with hours of their own. Without hours of their own, doctors are
    offered in the clinic's.
    """
    usual = read_weekly_hours(current_app.config["CLINIC_HOURS"])
    chosen = (
        select(User.id, User.first_name, User.last_name, User.role)
        .add_columns(WorkingHours.weekday, WorkingHours.starts, WorkingHours.ends)
        .outerjoin_from(User, WorkingHours, WorkingHours.user_id == User.id)
        .where(User.deleted_at.is_(None), User.is_active, User.role.in_(rights.CLINICIANS))
        .order_by(User.id)
    )
    rows = db.session.execute(chosen.where(User.id.in_(named)) if named else chosen)
    for user_id, group in groupby(rows, key=itemgetter(0)):
        of_user = list(group)
        _, first_name, last_name, role, *_ = of_user[0]
        own = tuple(sorted((row.weekday, row.starts, row.ends) for row in of_user if row.weekday is not None))
        if role == Role.DOCTOR or named or own:
            yield Doctor(user_id, f"{first_name} {last_name}", own or usual)


def first_free(doctors: Sequence[Doctor], search: Search, patient_id: int | None = None) -> Iterator[SlotOut]:
    """Yield the free slots of these doctors, by their start, then by doctor. Takes one statement."""
    spans = {hours: working(hours, search) for hours in {tuple(doctor.hours) for doctor in doctors}}
    begins = min((found[0][0] for found in spans.values() if found), default=None)
    if begins is None:
        return
    ids = [doctor.id for doctor in doctors]
    busy = busy_times((begins, search.end), ids, [patient_id] if patient_id else [])
    elsewhere = [(begin, end) for begin, end, _ in busy.of_patient.get(patient_id or 0, ())]

    def of(doctor: Doctor) -> Iterator[tuple[int, int]]:
        found = starts(spans[tuple(doctor.hours)], busy.of_user.get(doctor.id, ()), elsewhere, search)
        return ((start, doctor.id) for start in found)

    names = {doctor.id: doctor.name for doctor in doctors}
    for start, user_id in heapq.merge(*map(of, doctors)):
        yield slot(user_id, names[user_id], start, search.step)


def slot(user_id: int, name: str, start: int, length: int) -> SlotOut:
    """Return the answer of a slot that begins at an instant and takes so many seconds."""
    return SlotOut(user_id=user_id, doctor_name=name, start=_instant(start), end=_instant(start + length))


def _instant(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def working(hours: Hours, search: Search) -> list[Span]:
    """Return the spans of the hours that touch the search, each from where it begins, also before the search.

    Hours around the clock never begin: they are cut at the start of Monday, for the grid of their slots.
    """
    first = day_of(_instant(search.start)) - (14 * DAY if weekly.cross_midnight(hours) else 0 * DAY)
    last = day_of(_instant(search.end))
    cut_at = 0 if weekly.around_the_clock(hours) else None
    return [
        (start, end)
        for start, end in weekly.spans(hours, first, last, cut_at)
        if end > search.start and start < search.end
    ]


def starts(working: Iterable[Span], busy: Iterable[Span], elsewhere: Iterable[Span], search: Search) -> Iterator[int]:
    """Yield the starts of the free slots within these working hours, in their order.

    The grid of a free interval begins with it: when the hours begin, or the doctor is free again. A slot at which the
    patient is elsewhere is left out.
    """
    taken = weekly.joined(elsewhere)
    place = 0
    for start, end in weekly.without(working, weekly.joined(busy)):
        at = -(-start // GRID) * GRID
        if at < search.start:
            at += -(-(search.start - at) // search.step) * search.step
        while at + search.step <= min(end, search.end):
            while place < len(taken) and taken[place][1] <= at:
                place += 1
            if place == len(taken) or taken[place][0] >= at + search.step:
                yield at
            at += search.step


# --- Busy times ---


class _Seconds(FunctionElement[int]):
    """SQL for the seconds since 1970 of a column of times."""

    type = BigInteger()
    inherit_cache = True


@compiles(_Seconds, "sqlite")
def _seconds_on_sqlite(element: Any, compiler: Any, **kwargs: Any) -> str:
    return f"CAST(strftime('%s', {compiler.process(element.clauses, **kwargs)}) AS INTEGER)"


@compiles(_Seconds, "postgresql")
def _seconds_on_postgresql(element: Any, compiler: Any, **kwargs: Any) -> str:
    return f"CAST(EXTRACT(EPOCH FROM {compiler.process(element.clauses, **kwargs)}) AS BIGINT)"


@dataclass(slots=True)
class Busy:
    """When users have appointments or are absent, and when patients have appointments, by their ids."""

    of_user: dict[int, list[Span]] = field(default_factory=dict)
    of_patient: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)  # with the appointment's id


def busy_times(span: Span, user_ids: Collection[int], patient_ids: Collection[int] = ()) -> Busy:
    """Return the busy times of these users and patients that touch the span. Takes one statement."""
    start, end = (_instant(seconds) for seconds in span)
    begins = _Seconds(Appointment.appointment_datetime)
    times = begins.label("begins"), (begins + Appointment.duration_minutes * 60).label("ends")
    holding = (
        Appointment.deleted_at.is_(None),
        WithoutIndex(Appointment.status).in_(HOLDING),
        Appointment.overbooked.is_(False),
        Appointment.appointment_datetime > start - timedelta(minutes=MINUTES[1]),
        Appointment.appointment_datetime < end,
    )
    absent = Absence.deleted_at.is_(None), Absence.starts_at < end, Absence.ends_at > start
    none: Any = literal(0, Integer)
    parts: list[Select[Any]] = [
        select(Appointment.user_id, none, *times, Appointment.id).where(*holding, Appointment.user_id.in_(user_ids)),
        select(Absence.user_id, none, _Seconds(Absence.starts_at), _Seconds(Absence.ends_at), Absence.id).where(
            *absent, Absence.user_id.in_(user_ids)
        ),
    ]
    if patient_ids:
        of_patients = *holding, Appointment.patient_id.in_(patient_ids)
        parts.append(select(none, Appointment.patient_id, *times, Appointment.id).where(*of_patients))
    busy = Busy()
    for user_id, patient_id, begin, finish, appointment_id in db.session.execute(union_all(*parts)):
        if user_id:
            busy.of_user.setdefault(user_id, []).append((begin, finish))
        else:
            busy.of_patient.setdefault(patient_id, []).append((begin, finish, appointment_id))
    return busy
