"""Keeps the absences of the staff, and repairs them: appointments in the way go to a colleague or are cancelled."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from flask import Response, current_app
from sqlalchemy import select
from sqlalchemy.orm import joinedload

import models
from clinic import availability, rights
from clinic.availability import Search
from clinic.idempotency import made
from config import read_weekly_hours
from models import HOLDING, MINUTES, Absence, Appointment, AppointmentStatus, Patient, User, find
from schemas import AbsenceIn, AbsenceMade, AbsenceOut, AbsenceTrial, AppointmentOut, ClashOut, SlotOut
from server import errors, weekly
from server.database import db
from server.times import now
from server.weekly import Hours, Span

ALTERNATIVES = 3  # free slots that a clash names
with_names = (joinedload(Appointment.patient), joinedload(Appointment.doctor))


def absences_of(user_id: int) -> list[AbsenceOut]:
    """Return the absences of a user, the earliest first. Raises `NotFound`."""
    find(User, user_id)
    found = Absence.live().where(Absence.user_id == user_id).order_by(Absence.starts_at)
    return [AbsenceOut.of(absence) for absence in db.session.scalars(found)]


def absence_of(user_id: int, absence_id: int) -> AbsenceOut:
    """Return an absence of a user. Raises `NotFound`."""
    return AbsenceOut.of(_of_user(user_id, find(Absence, absence_id)))


def archive(user_id: int, absence_id: int) -> None:
    """Archive an absence of a user. Raises as `rights.editable` does."""
    _of_user(user_id, rights.editable(Absence, absence_id)).archive()


def _of_user(user_id: int, absence: Absence) -> Absence:
    if absence.user_id != user_id:
        raise errors.NotFound(f"There is no absence {absence.id} of user {user_id}.")
    return absence


def made_before(absence_id: int) -> AbsenceMade:
    """Return the answer to the request that made the absence. Raises `NotFound`."""
    return _answer(find(Absence, absence_id))


def _answer(absence: Absence) -> AbsenceMade:
    return AbsenceMade.model_validate({"absence": absence, **(absence.outcome or {})})


# --- The repair ---


@dataclass(slots=True)
class Clash:
    """An appointment that the colleague cannot take."""

    appointment: Appointment
    absence: Absence | None = None  # of the colleague
    conflict: int | None = None  # the appointment in the way; None where the colleague is absent or does not work


@dataclass(slots=True)
class Plan:
    """What happens to the appointments in the way of an absence."""

    given: list[Appointment] = field(default_factory=list)
    cancelled: list[Appointment] = field(default_factory=list)
    left: list[Appointment] = field(default_factory=list)
    clashes: list[Clash] = field(default_factory=list)

    @property
    def outcome(self) -> dict[str, list[int]]:
        """The ids, as the absence keeps them."""
        parts = {"handed_over": self.given, "cancelled": self.cancelled}
        return {name: [appointment.id for appointment in part] for name, part in parts.items()}


def create(user_id: int, json: AbsenceIn, dry_run: bool) -> AbsenceMade | Response:
    """Make an absence, and give the appointments in its way to a colleague or cancel them. Return what was done.

    A dry run changes nothing, and returns what the request would do, with the clashes. Otherwise raises `Conflict` with
    the appointments that stay in the way. Raises also `NotFound`, `Forbidden`, `Invalid`, and `Conflict` for another
    absence at the time, or an account that is not active.
    """
    colleague_id = json.hand_over_to
    users = rights.staff_for_update(Absence, user_id, *([colleague_id] if colleague_id else []))
    user, colleague = users[user_id], _colleague(user_id, colleague_id, users)
    if not user.is_active:
        raise errors.Conflict(f"The account of {user.name} is not active.", code=errors.Code.DOCTOR_INACTIVE)
    fields = json.model_dump(include={"starts_at", "ends_at", "reason"})
    absence = Absence(user_id=user_id, **fields)
    absence.check_whole()
    if other := db.session.scalar(Absence.touching(user_id, absence.starts_at, absence.ends_at).limit(1)):
        raise other.refusal(f"The user {user.name}", "starts_at")
    in_the_way = _lock_appointments(absence)
    diary = Diary.of(colleague, in_the_way) if colleague and in_the_way else None
    plan = _plan(in_the_way, diary, json.cancel_rest)
    if dry_run:
        return _trial(absence, plan, diary)
    if plan.left:
        raise _in_the_way(user, colleague, plan, len(in_the_way))
    _carry_out(plan, colleague)
    absence.outcome = plan.outcome
    models.save(absence)
    made(absence)
    return _answer(absence)


def _colleague(user_id: int, colleague_id: int | None, users: dict[int, User]) -> User | None:
    """Return the colleague. Raises `Invalid` for one who cannot be the doctor of these appointments."""
    if colleague_id is None:
        return None
    colleague = users.get(colleague_id)
    if colleague_id == user_id:
        raise errors.Invalid(hand_over_to="Please name somebody else than the one who is absent.")
    if colleague is None or colleague.deleted_at:
        raise errors.Invalid(hand_over_to=f"There is no user {colleague_id}.")
    if colleague.role not in rights.CLINICIANS:
        raise errors.Invalid(hand_over_to=f"The user {colleague.name} is no doctor. Please name a doctor.")
    if not colleague.is_active:
        raise errors.Invalid(hand_over_to=f"The account of {colleague.name} is not active.")
    return colleague


def _lock_appointments(absence: Absence) -> Sequence[Appointment]:
    """Lock the appointments in the way and their patients until the commit. Return them, overbooked ones too.

    Their doctor is locked, so no others come in. NOWAIT: another writer locks the appointment before its doctor.
    """
    in_the_way = (
        Appointment.user_id == absence.user_id,
        Appointment.status.in_(HOLDING),
        Appointment.appointment_datetime > absence.starts_at - timedelta(minutes=MINUTES[1]),
        Appointment.appointment_datetime < absence.ends_at,
    )
    patients = Appointment.live().with_only_columns(Appointment.patient_id).where(*in_the_way)
    db.session.scalars(
        select(Patient.id).where(Patient.id.in_(patients)).order_by(Patient.id).with_for_update(key_share=True)
    ).all()
    found = db.session.scalars(
        Appointment.live()
        .where(*in_the_way)
        .options(*with_names)
        .order_by(Appointment.appointment_datetime, Appointment.id)
        .with_for_update(key_share=True, nowait=True, of=Appointment)
        .execution_options(populate_existing=True)
    ).all()
    return [appointment for appointment in found if appointment.slot.end > absence.starts_at]


def _plan(in_the_way: Sequence[Appointment], diary: "Diary | None", cancel_rest: bool) -> Plan:
    plan = Plan()
    for appointment in in_the_way:
        clash = diary.take(appointment) if diary else None
        if diary and clash is None:
            plan.given.append(appointment)
            continue
        (plan.cancelled if cancel_rest else plan.left).append(appointment)
        if clash:
            plan.clashes.append(clash)
    return plan


def _carry_out(plan: Plan, colleague: User | None) -> None:
    """Change the appointments and flush them. All rules were looked at, and all rows that they depend on are locked."""
    for appointment in plan.cancelled:
        appointment.status = AppointmentStatus.CANCELLED
    for appointment in plan.given if colleague else ():
        appointment.overbooked = appointment.overbooked and not rights.loses_overbooking(appointment)
        appointment.off_hours = False
        appointment.doctor = colleague
    db.session.flush()


def _in_the_way(user: User, colleague: User | None, plan: Plan, total: int) -> errors.Conflict:
    """Return the error for the appointments that stay in the way."""
    left = len(plan.left)
    if colleague is None:
        text = (
            f"The user {user.name} has {left} appointment{'s' * (left > 1)} at this time. Hand them over to a "
            "colleague or cancel them in the same request."
        )
    else:
        text = (
            f"The user {colleague.name} cannot take {left} of {total} appointments. Cancel the rest in the same "
            "request, or move them first."
        )
    absent = bool(plan.clashes) and all(clash.absence for clash in plan.clashes)
    return errors.Conflict(
        text,
        code=errors.Code.ABSENT if absent else errors.Code.HAS_APPOINTMENTS,
        conflicts=[(Appointment, appointment.id) for appointment in plan.left],
    )


# --- The colleague's diary ---


@dataclass(slots=True)
class Diary:
    """When a colleague works, is absent, and has appointments: those of their own, and those that they are given."""

    colleague: User
    hours: Hours
    absences: Sequence[Absence]
    taken: list[tuple[datetime, datetime, int]]  # start, end and id of appointments that hold their slot, in order
    patients: list[tuple[int, datetime, datetime, int]]  # the same, of the patients of overbooked appointments

    @classmethod
    def of(cls, colleague: User, in_the_way: Sequence[Appointment]) -> "Diary":
        """Return the diary for the time of these appointments. Takes three statements, or four."""
        start, end = in_the_way[0].slot.start, max(appointment.slot.end for appointment in in_the_way)
        _, hours = models.absence_and_hours(in_the_way[0].slot.of(colleague.id))
        overbooked = {a.patient_id for a in in_the_way if rights.loses_overbooking(a)}
        holding = (
            select(Appointment)
            .where(Appointment.deleted_at.is_(None), Appointment.overbooked.is_(False))
            .where(Appointment.status.in_(HOLDING), Appointment.appointment_datetime < end)
            .where(Appointment.appointment_datetime > start - timedelta(minutes=MINUTES[1]))
            .order_by(Appointment.appointment_datetime)
        )
        own = db.session.scalars(holding.where(Appointment.user_id == colleague.id)).all()
        theirs = db.session.scalars(holding.where(Appointment.patient_id.in_(overbooked))) if overbooked else ()
        return cls(
            colleague,
            hours,
            db.session.scalars(Absence.touching(colleague.id, start, end)).all(),
            [(a.slot.start, a.slot.end, a.id) for a in own],
            [(a.patient_id, a.slot.start, a.slot.end, a.id) for a in theirs],
        )

    def take(self, appointment: Appointment) -> Clash | None:
        """Note the appointment in the diary and return None; or return why the colleague cannot take it."""
        start, end = appointment.slot.start, appointment.slot.end
        for absence in self.absences:
            if absence.starts_at < end and absence.ends_at > start:
                return Clash(appointment, absence)
        if self.hours and not weekly.covers(self.hours, start, end):
            return Clash(appointment)
        becomes_usual = rights.loses_overbooking(appointment)
        if appointment.overbooked and not becomes_usual:
            return None
        place = bisect_left(self.taken, (start, start, 0))
        for begins, ends, other in self.taken[max(place - 1, 0) : place + 1]:
            if begins < end and ends > start:
                return Clash(appointment, conflict=other)
        for patient_id, begins, ends, other in self.patients if becomes_usual else ():
            if patient_id == appointment.patient_id and other != appointment.id and begins < end and ends > start:
                return Clash(appointment, conflict=other)
        insort(self.taken, (start, end, appointment.id))
        if becomes_usual:
            self.patients.append((appointment.patient_id, start, end, appointment.id))
        return None


# --- The dry run ---


def _trial(absence: Absence, plan: Plan, diary: Diary | None) -> Response:
    conflicts = {clash.conflict for clash in plan.clashes if clash.conflict}
    chosen = select(Appointment).where(Appointment.id.in_(conflicts)).options(*with_names)
    by_id = {a.id: AppointmentOut.of(a) for a in db.session.scalars(chosen)} if conflicts else {}
    slots = _alternatives(plan, diary) if diary else []
    clashes = [
        ClashOut(
            appointment=AppointmentOut.of(clash.appointment),
            conflict=by_id[clash.conflict] if clash.conflict else None,
            alternatives=free,
        )
        for clash, free in zip(plan.clashes, slots, strict=True)
    ]
    trial = AbsenceTrial.model_validate({"absence": absence, **plan.outcome, "clashes": clashes})
    return Response(trial.model_dump_json(by_alias=True), 200, mimetype="application/json")


def _alternatives(plan: Plan, diary: Diary) -> list[list[SlotOut]]:
    """Return the colleague's next free slots for each clash, at which the patient is free, too. Takes one statement.

    They begin at the time of the appointment, and end two weeks after it. Two clashes may be offered the same slot.
    """
    if not plan.clashes:
        return []
    starts = [max(clash.appointment.slot.start, now()) for clash in plan.clashes]
    patients = {clash.appointment.patient_id for clash in plan.clashes}
    hours = tuple(diary.hours) or read_weekly_hours(current_app.config["CLINIC_HOURS"])
    searches = [
        Search.of(start, start + availability.USUAL_SEARCH, clash.appointment.duration_minutes)
        for start, clash in zip(starts, plan.clashes, strict=True)
    ]
    working = [availability.working(hours, search) for search in searches]
    first = min([spans[0][0] for spans in working if spans], default=searches[0].start)
    span = first, max(search.end for search in searches)
    busy = availability.busy_times(span, [diary.colleague.id], patients)
    given: list[Span] = [(int(a.slot.start.timestamp()), int(a.slot.end.timestamp())) for a in plan.given]
    found = []
    for clash, search, spans in zip(plan.clashes, searches, working, strict=True):
        own = clash.appointment
        elsewhere = [
            (begins, ends)
            for begins, ends, appointment_id in busy.of_patient.get(own.patient_id, ())
            if appointment_id != own.id
        ]
        free = availability.starts(spans, [*busy.of_user.get(diary.colleague.id, ()), *given], elsewhere, search)
        found.append(
            [
                availability.slot(diary.colleague.id, diary.colleague.name, at, search.step)
                for at in islice(free, ALTERNATIVES)
            ]
        )
    return found
