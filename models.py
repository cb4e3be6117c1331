"""The tables, their constraints, and the rules of each record.

Times are UTC and timezone-aware. `deleted_at` archives a record; queries ask for `live()` records. `flask purge` erases
what was archived long ago.
"""

import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Self, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    Select,
    String,
    Text,
    UniqueConstraint,
    bindparam,
    delete,
    false,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, declared_attr, mapped_column, relationship
from sqlalchemy.orm.attributes import set_committed_value

from server import errors, phones, weekly
from server.database import Base, UTCDateTime, db
from server.names import check_name, shows_something
from server.times import WrittenTime, day_of, in_words, now, start_of, today

MINUTES = (5, 480)  # shortest and longest appointment
LONGEST_WORD = 40  # characters of a word in the search index


class Role(StrEnum):
    """What a user is; `clinic/rights.py` says what each role may do."""

    ADMIN = "admin"
    DOCTOR = "doctor"
    RECEPTIONIST = "receptionist"


class Sex(StrEnum):
    """FHIR's AdministrativeGender, https://hl7.org/fhir/valueset-administrative-gender.html"""

    FEMALE = "female"
    MALE = "male"
    OTHER = "other"
    UNKNOWN = "unknown"


class PatientStatus(StrEnum):
    """Where a patient is in their care."""

    OUTPATIENT = "outpatient"
    ADMITTED = "admitted"
    ONGOING = "ongoing"
    CRITICAL = "critical"
    HEALED = "healed"
    DISCHARGED = "discharged"
    TRANSFERRED = "transferred"
    DECEASED = "deceased"


class Weekday(StrEnum):
    """FHIR's DaysOfWeek, https://hl7.org/fhir/valueset-days-of-week.html"""

    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"


class AppointmentStatus(StrEnum):
    """The course of an appointment; `HOLDING` and `DONE` group these."""

    PENDING = "pending"
    SCHEDULED = "scheduled"
    CONFIRMED = "confirmed"
    CHECKED_IN = "checked_in"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    NO_SHOW = "no_show"


# The constraints against double booking. Migration 0004 makes them.
SLOTS = ("ex_appointments_doctor_slot", "ex_appointments_patient_slot")
# An appointment with one of these holds its slot, unless it is overbooked.
HOLDING = (
    AppointmentStatus.PENDING,
    AppointmentStatus.SCHEDULED,
    AppointmentStatus.CONFIRMED,
    AppointmentStatus.CHECKED_IN,
)
DONE = (AppointmentStatus.COMPLETED, AppointmentStatus.NO_SHOW)  # results: not before the day of the appointment
LONGEST_ABSENCE = timedelta(days=366)
LATEST_BOOKING = timedelta(days=3653)  # from now: ten years


def one_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    """Return a constraint that allows only these words in the column."""
    return CheckConstraint(f"{column} IN ({', '.join(repr(str(word)) for word in words)})", name=column)


KEEP_IDS = {"sqlite_autoincrement": True}  # SQLite never reuses an id, not even of an erased record
_LIVE, _MERGED = text("deleted_at IS NULL"), text("merged_into_id IS NOT NULL")


def live_index(*columns: str) -> Index:
    """Return an index of the records that are not archived. It serves an order or a filter of a collection."""
    return Index(None, *columns, sqlite_where=_LIVE, postgresql_where=_LIVE)


class Record(Base):
    """The columns and rules that users, patients, appointments, reports and images share."""

    __abstract__ = True
    __table_args__: Any = KEEP_IDS

    id: Mapped[int] = mapped_column(primary_key=True, sort_order=-1)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, sort_order=1)
    updated_at: Mapped[datetime] = mapped_column(
        UTCDateTime, default=lambda row: row.get_current_parameters()["created_at"], onupdate=now, sort_order=1
    )
    version: Mapped[int] = mapped_column(sort_order=1)
    deleted_at: Mapped[datetime | None] = mapped_column(UTCDateTime, sort_order=1)

    @declared_attr.directive
    @classmethod
    def __mapper_args__(cls) -> dict[str, Any]:
        """Each UPDATE names the version that it changes, so that no update is lost."""
        return {"version_id_col": cls.version}

    @classmethod
    def live(cls) -> Select[Self]:
        """Select the records that are not archived."""
        return select(cls).where(cls.deleted_at.is_(None))

    @classmethod
    def noun(cls) -> str:
        """Return the word for a record of this kind, in sentences and in the history: "patient"."""
        return cls.__name__.lower()

    def change(self, changes: dict[str, Any]) -> None:
        """Set these fields. A time that is sent back as it was shown stays. Subclasses add their rules."""
        for field, value in changes.items():
            if not (isinstance(value, WrittenTime) and value.shows(getattr(self, field))):
                setattr(self, field, value)

    def check_whole(self) -> None:
        """Raise `Invalid` if the record is not complete. `save` calls this. Subclasses have rules."""

    def archive(self) -> None:
        """Mark the record as archived. Its row stays."""
        self.deleted_at = now()

    def restore(self) -> None:
        """Remove the archive mark. Raises `Conflict` for a record that is not archived."""
        if self.deleted_at is None:
            raise errors.Conflict(f"This {self.noun()} is not archived.")
        self.deleted_at = None


def _check_new_names(record: "User | Patient", changes: dict[str, Any]) -> None:
    """Raise `Invalid` for a name that `check_name` refuses.

    The record's present name is not checked: earlier versions took any name, and a client may send it back.
    """
    refusals: dict[str, list[str]] = {}
    for field in ("first_name", "last_name"):
        if field in changes and changes[field] != getattr(record, field):
            try:
                check_name(changes[field])
            except ValueError as reason:
                refusals[field] = [str(reason)]
    if refusals:
        raise errors.Invalid(refusals)


def _check_new_phone(patient: "Patient", changes: dict[str, Any]) -> None:
    """Raise `Invalid` for a new phone number that `phones.cleaned` refuses. The patient's present number passes."""
    number = changes.get("phone_number", patient.phone_number)
    if number != patient.phone_number:
        try:
            phones.cleaned(number)
        except ValueError as reason:
            raise errors.Invalid(phone_number=str(reason)) from None


class User(Record):
    """A member of the staff."""

    __tablename__ = "users"
    __table_args__ = (
        one_of("role", Role),
        CheckConstraint("email = lower(email)", name="email_lower"),
        live_index("last_name", "first_name", "id"),
        KEEP_IDS,
    )

    first_name: Mapped[str] = mapped_column(String(100))
    last_name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(254), unique=True)  # in lower case
    password: Mapped[str] = mapped_column(String(60))  # a bcrypt hash; never leaves the server
    role: Mapped[str] = mapped_column(String(16), default=Role.DOCTOR)
    is_active: Mapped[bool] = mapped_column(default=True)

    @property
    def name(self) -> str:
        """First and last name."""
        return f"{self.first_name} {self.last_name}"

    @property
    def administers(self) -> bool:
        """Whether the user is an active administrator."""
        return self.role == Role.ADMIN and self.is_active and self.deleted_at is None

    @classmethod
    def admins(cls) -> Select[Self]:
        """Select the active administrators."""
        return cls.live().where(cls.role == Role.ADMIN, cls.is_active)

    def change(self, changes: dict[str, Any]) -> None:
        """Change the user. A new password or a deactivation ends every login; these and a new email void reset links.

        Raises `Conflict` if no active administrator would remain. Raises `Conflict` while the user has appointments to
        come for a new receptionist and, unless `keep_appointments` is true, for a deactivation. Raises `Invalid` as
        `_check_new_names` does.
        """
        _check_new_names(self, changes)
        administered, old_email, was_active, old_role = self.administers, self.email, self.is_active, self.role
        changes = dict(changes)
        keep_appointments = changes.pop("keep_appointments", False)
        super().change(changes)
        if was_active and not self.is_active and not keep_appointments:
            self._refuse_with_appointments("With keep_appointments: true they stay as they are.")
        if self.id and self.role == Role.RECEPTIONIST != old_role:
            self._refuse_with_appointments("A receptionist has none.")
        if administered and not self.administers:
            self._refuse_without_another_administrator()
        if "password" in changes or not self.is_active:
            self.end_logins()
        if "password" in changes or not self.is_active or self.email != old_email:
            self._void_reset_links()

    def end_logins(self) -> None:
        """End every open login session of the user."""
        db.session.execute(
            update(LoginSession)
            .where(LoginSession.user_id == self.id, LoginSession.ended_at.is_(None))
            .values(ended_at=now())
        )

    def _void_reset_links(self) -> None:
        db.session.execute(delete(PasswordReset).where(PasswordReset.user_id == self.id))

    def _refuse_with_appointments(self, way_out: str = "") -> None:
        """Raise `Conflict` if the user has appointments to come. The sentence ends with `way_out`."""
        with db.session.no_autoflush:
            coming = db.session.scalar(
                select(func.count()).select_from(
                    Appointment.live().where(Appointment.user_id == self.id, *Appointment.to_come()).subquery()
                )
            )
        if coming:
            raise errors.Conflict(
                f"The user {self.name} still has {coming} appointment{'s' * (coming > 1)} to come. "
                f"Give them to another doctor or cancel them first. {way_out}".strip(),
                code=errors.Code.HAS_APPOINTMENTS,
            )

    def _refuse_without_another_administrator(self) -> None:
        """Raise `Conflict` unless another administrator remains.

        Locks the other administrators until the commit, so that two who step down together cannot both succeed.
        """
        with db.session.no_autoflush:
            others = db.session.scalars(
                User.admins().where(User.id != self.id).order_by(User.id).with_for_update(key_share=True)
            ).all()
        if not others:
            raise errors.Conflict(
                "This is the last active administrator. Make another one first.", code=errors.Code.LAST_ADMIN
            )

    def archive(self) -> None:
        """Archive the user, end their logins and void their reset links.

        Raises `Conflict` while the user has appointments to come, and for the last active administrator.
        """
        if self.administers:
            self._refuse_without_another_administrator()
        self._refuse_with_appointments()
        super().archive()
        self.end_logins()
        self._void_reset_links()


errors.explain(
    "uq_users_email",
    errors.Conflict(
        "This email is taken.", {"email": ["Another account has this email."]}, code=errors.Code.EMAIL_TAKEN
    ),
)


def mrn_check_digit(digits: str) -> str:
    """Return the check digit of ISO 7064 MOD 11,10. It reveals every wrong digit and most swapped digits."""
    product = 10
    for digit in digits:
        product = (product + int(digit)) % 10 or 10
        product = product * 2 % 11
    return str((11 - product) % 10)


def new_mrn() -> str:
    """Return a new medical record number: nine random digits, the first not 0, and a check digit."""
    digits = str(secrets.randbelow(900_000_000) + 100_000_000)
    return digits + mrn_check_digit(digits)


PATIENT_DATES = {"admitted_at", "discharged_at", "date_of_birth"}
# A discharged patient who gets one of these is admitted again.
STAYING = (PatientStatus.ADMITTED, PatientStatus.ONGOING, PatientStatus.CRITICAL)
YEAR, GREATEST_AGE = timedelta(days=366), timedelta(days=366 * 130)


class Patient(Record):
    """A patient, with the state of their present or last stay."""

    __tablename__ = "patients"
    __table_args__ = (
        one_of("status", PatientStatus),
        one_of("sex", Sex),
        CheckConstraint("discharged_at >= admitted_at", name="discharged_after_admitted"),
        live_index("last_name", "first_name", "id"),
        live_index("admitted_at", "id"),
        live_index("discharged_at"),
        live_index("status", "id"),
        live_index("status", "last_name", "first_name", "id"),
        live_index("status", "admitted_at", "id"),
        live_index("date_of_birth", "id"),
        Index(None, "merged_into_id", sqlite_where=_MERGED, postgresql_where=_MERGED),
        KEEP_IDS,
    )

    mrn: Mapped[str] = mapped_column(String(10), unique=True, default=new_mrn)
    first_name: Mapped[str] = mapped_column(String(100))
    last_name: Mapped[str] = mapped_column(String(100))
    phone_number: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16), default=PatientStatus.ADMITTED)
    doctor_summary: Mapped[str] = mapped_column(Text, default="")
    diagnosis: Mapped[str] = mapped_column(Text, default="")
    admitted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    discharged_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    date_of_birth: Mapped[date | None]
    sex: Mapped[str | None] = mapped_column(String(16))
    merged_into_id: Mapped[int | None] = mapped_column(ForeignKey("patients.id"))  # the surviving patient of a merge
    # [{"id": 5, "mrn": "…"}]: who was merged into this patient, each after those who were merged into them
    merged: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))

    @property
    def name(self) -> str:
        """First and last name."""
        return f"{self.first_name} {self.last_name}"

    def change(self, changes: dict[str, Any]) -> None:
        """Change the patient. An admission without a date is now; a re-admission removes the old discharge.

        A death cancels the appointments to come. Raises `Invalid` for dates that cannot be, and as `_check_new_names`
        and `_check_new_phone` do.
        """
        _check_new_names(self, changes)
        _check_new_phone(self, changes)
        before = {name: getattr(self, name) for name in PATIENT_DATES}
        old_status, is_discharged = self.status, self.discharged_at is not None
        super().change(changes)
        if isinstance(self.discharged_at, WrittenTime) and self.admitted_at and self.discharged_at < self.admitted_at:
            self.discharged_at = self.discharged_at.last()
        if all(changes.get(name) is None for name in ("admitted_at", "discharged_at")):
            if self.id is None and self.status == PatientStatus.ADMITTED:
                self.admitted_at = now()
            elif (
                is_discharged
                and self.status in STAYING
                and old_status not in STAYING
                and not {"admitted_at", "discharged_at"} & changes.keys()
            ):
                self.admitted_at, self.discharged_at = now(), None
        changed = {name for name in PATIENT_DATES if getattr(self, name) != before[name]}
        self._refuse_impossible_dates(changed)
        if self.status == PatientStatus.DECEASED != old_status and self.id is not None:
            for appointment in self.children(Appointment, *Appointment.to_come(), Appointment.deleted_at.is_(None)):
                appointment.status = AppointmentStatus.CANCELLED

    def _refuse_impossible_dates(self, changed: set[str]) -> None:
        """Raise `Invalid` for a changed date that is too early or too late. Unchanged dates are not checked."""
        present, birth = today(), self.date_of_birth
        if "date_of_birth" in changed and birth and birth < present - GREATEST_AGE:
            raise errors.Invalid(date_of_birth="Nobody is over 130 years old.")
        for name, what in (("admitted_at", "admission"), ("discharged_at", "discharge")):
            instant = getattr(self, name)
            if instant is None or not changed & {name, "date_of_birth"}:
                continue
            day = day_of(instant)
            if day > present + YEAR:
                raise errors.Invalid({name: [f"The {what} is over a year ahead."]})
            if birth and day < birth:
                raise errors.Invalid({name: [f"The {what} is before the birth."]})

    def archive(self) -> None:
        """Archive the patient's reports and appointments, too, and cancel the appointments to come."""
        super().archive()
        for kind in (Report, Appointment):
            for record in self.children(kind, kind.deleted_at.is_(None)):
                if isinstance(record, Appointment) and record.is_to_come:
                    record.status = AppointmentStatus.CANCELLED
                record.deleted_at = self.deleted_at  # `restore` finds them by this instant

    def restore(self) -> None:
        """Restore the reports and appointments that were archived with the patient.

        Raises `Conflict` for a patient who is not archived.
        """
        archived_at = self.deleted_at
        super().restore()
        for kind in (Report, Appointment):
            for record in self.children(kind, kind.deleted_at == archived_at):
                record.deleted_at = None

    def merge_into(self, survivor: "Patient") -> None:
        """Archive this patient, who is the same person as `survivor` and has no records any more.

        Raises `Conflict` for oneself, and for a survivor who is archived or deceased.
        """
        if survivor.id == self.id:
            raise errors.Conflict("A patient cannot be merged with themselves.")
        if survivor.deleted_at:
            raise errors.Conflict(f"Patient {survivor.id} is archived.", code=errors.Code.ARCHIVED)
        if survivor.status == PatientStatus.DECEASED:
            text = f"The patient {survivor.name} is deceased: nobody can be merged with them."
            raise errors.Conflict(text, code=errors.Code.DECEASED)
        self.deleted_at, self.merged_into_id = now(), survivor.id
        survivor.merged = [*(survivor.merged or ()), *(self.merged or ()), {"id": self.id, "mrn": self.mrn}]

    def part_from(self, survivor: "Patient") -> None:
        """Restore this patient, who was merged into `survivor`. Raises `Conflict` while that patient is archived."""
        if survivor.deleted_at:
            text = f"Patient {survivor.id} is archived. Restore that patient first."
            raise errors.Conflict(text, code=errors.Code.ARCHIVED)
        self.deleted_at = self.merged_into_id = None
        parted = {self.id, *(other["id"] for other in self.merged or ())}
        survivor.merged = [other for other in survivor.merged or () if other["id"] not in parted] or None

    def children(self, kind: type["Child"], *conditions: Any) -> Sequence["Child"]:
        """Lock the patient's reports or appointments until the commit, and return them.

        NOWAIT: other writers lock the child before the patient, so waiting here could deadlock.
        """
        return db.session.scalars(
            select(kind)
            .where(kind.patient_id == self.id, *conditions)
            .order_by(kind.id)
            .with_for_update(key_share=True, nowait=True)
            .execution_options(populate_existing=True)
        ).all()


errors.draw_again("uq_patients_mrn")
errors.explain(
    "ck_patients_discharged_after_admitted",
    errors.Invalid(discharged_at="The discharge is before the admission."),
)


class ClinicalRecord(Record):
    """A record that belongs to a patient and to a doctor: an appointment or a report."""

    __abstract__ = True

    patient_id: Mapped[int] = mapped_column(ForeignKey("patients.id"))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))

    @declared_attr
    @classmethod
    def patient(cls) -> Mapped[Patient]:
        """The patient, archived or not. The query must load it: a lazy load raises."""
        return relationship(lazy="raise_on_sql", innerjoin=True)

    @declared_attr
    @classmethod
    def doctor(cls) -> Mapped[User]:
        """The user who treats or writes, archived or not. The query must load it: a lazy load raises."""
        return relationship(lazy="raise_on_sql", innerjoin=True)

    @property
    def patient_name(self) -> str:
        """First and last name of the patient."""
        return self.patient.name

    @property
    def doctor_name(self) -> str:
        """First and last name of the doctor."""
        return self.doctor.name

    def change(self, changes: dict[str, Any]) -> None:
        """Change the record, and lock its patient and doctor. Raises `Invalid` as `patient_and_doctor` does."""
        before = self.patient_id, self.user_id
        super().change(changes)
        self._set_people(*patient_and_doctor(self.patient_id, self.user_id, *before))

    def restore(self) -> None:
        """Restore the record. Raises `Conflict` while the patient is archived."""
        super().restore()
        patient, doctor = _lock_patient_and_doctor(self.patient_id, self.user_id)
        if patient is None or patient.deleted_at:
            text = f"Patient {self.patient_id} is archived. Restore the patient first."
            raise errors.Conflict(text, code=errors.Code.ARCHIVED)
        self._set_people(patient, doctor)

    def _set_people(self, patient: Patient | None, doctor: User | None) -> None:
        set_committed_value(self, "patient", patient)
        set_committed_value(self, "doctor", doctor)


def patient_and_doctor(
    patient_id: int, user_id: int, old_patient_id: int | None = None, old_user_id: int | None = None
) -> tuple[Patient | None, User | None]:
    """Return the patient and the doctor of a clinical record, and lock both until the commit.

    Raises `Invalid` for a patient or doctor who does not exist or is archived, for a doctor whose account is not
    active, and for a receptionist in place of a doctor. The old patient and the old doctor of the record are not
    checked: the record keeps them.
    """
    patient, doctor = _lock_patient_and_doctor(patient_id, user_id)
    if patient_id != old_patient_id and (patient is None or patient.deleted_at):
        raise errors.Invalid(patient_id=f"There is no patient {patient_id}.")
    if user_id != old_user_id and (doctor is None or doctor.deleted_at):
        raise errors.Invalid(user_id=f"There is no user {user_id}.")
    if user_id != old_user_id and doctor and not doctor.is_active:
        raise errors.Invalid(user_id=f"The account of {doctor.name} is not active.")
    if user_id != old_user_id and doctor and doctor.role == Role.RECEPTIONIST:
        raise errors.Invalid(user_id=f"{doctor.name} is a receptionist. Please name a doctor.")
    return patient, doctor


def _lock_patient_and_doctor(patient_id: int, user_id: int) -> tuple[Patient | None, User | None]:
    """Return both rows, locked until the commit. The order is always the same, so that two bookings do not deadlock."""
    with db.session.no_autoflush:
        pair = db.session.execute(
            select(User, Patient)
            .join_from(User, Patient, Patient.id == patient_id)
            .where(User.id == user_id)
            .with_for_update(key_share=True)
            .execution_options(populate_existing=True)  # the rows as they are after the wait for the lock
        ).one_or_none()
        if pair is None:
            return db.session.get(Patient, patient_id), db.session.get(User, user_id)
    return pair.Patient, pair.User


class Appointment(ClinicalRecord):
    """A time of a patient with a doctor. Constraints keep two appointments from holding one slot."""

    __tablename__ = "appointments"
    __table_args__ = (
        one_of("status", AppointmentStatus),
        CheckConstraint("duration_minutes BETWEEN {} AND {}".format(*MINUTES), name="duration_minutes"),
        Index(None, "user_id", "appointment_datetime"),
        CheckConstraint("NOT overbooked OR reason <> ''", name="overbooked_reason"),
        Index(None, "patient_id", "appointment_datetime"),
        live_index("user_id", "id"),
        live_index("status", "id"),
        live_index("status", "appointment_datetime", "id"),
        live_index("appointment_datetime", "id"),
        KEEP_IDS,
    )

    appointment_datetime: Mapped[datetime] = mapped_column(UTCDateTime)
    duration_minutes: Mapped[int] = mapped_column(default=30)
    status: Mapped[str] = mapped_column(String(16), default=AppointmentStatus.SCHEDULED)
    reason: Mapped[str] = mapped_column(Text, default="")
    note: Mapped[str] = mapped_column(Text, default="", server_default=text("''"))  # the earlier release writes none
    overbooked: Mapped[bool] = mapped_column(default=False)
    off_hours: Mapped[bool] = mapped_column(default=False, server_default=false())  # outside of the hours on purpose

    @classmethod
    def to_come(cls) -> tuple[Any, ...]:
        """Return the conditions for appointments in the future whose status is one of `HOLDING`."""
        return cls.status.in_(HOLDING), cls.appointment_datetime > now()

    @property
    def is_to_come(self) -> bool:
        """Whether the appointment is in the future and its status is one of `HOLDING`."""
        return self.status in HOLDING and self.appointment_datetime > now()

    def change(self, changes: dict[str, Any]) -> None:
        """Change the appointment.

        Raises `Invalid` for a time too far in the past or future, and for a result before the day of the appointment.
        Raises `Conflict` for a doctor or patient who can have no new appointment, and for a time at which the doctor is
        absent, or not at work unless `off_hours` is sent.
        """
        was_booked, old_slot, old_status, was_off_hours = self.is_booked, self.slot, self.status, self.off_hours
        super().change(changes)
        if self.is_booked and (not was_booked or self.slot != old_slot):
            self._refuse_impossible_time()
            self._refuse_unavailable_people()
        elif self.status == AppointmentStatus.CONFIRMED != old_status:
            self._refuse_unavailable_people()
        if self.is_booked and (not was_booked or self.slot.of_doctor != old_slot.of_doctor):
            is_moved = self.slot.of_doctor != old_slot.of_doctor
            self._refuse_missing_doctor(bool(changes.get("off_hours")) if is_moved else self.off_hours)
        elif was_booked and self.slot.of_doctor == old_slot.of_doctor:
            self.off_hours = was_off_hours  # it tells what was allowed for this slot
        if self.status in DONE and (self.status, self.slot) != (old_status, old_slot):
            self._refuse_before_its_day()

    def restore(self) -> None:
        """Restore the appointment. Raises `Conflict` if its doctor or patient can have no new appointment."""
        super().restore()
        if self.is_booked:
            self._refuse_unavailable_people()
            self._refuse_missing_doctor(self.off_hours)

    def _refuse_missing_doctor(self, off_hours: bool) -> None:
        """Raise `Conflict` while the doctor is absent, or not at work unless `off_hours` allows it.

        Afterwards `off_hours` tells whether the slot is outside of the doctor's hours.
        """
        with db.session.no_autoflush:
            absence, hours = absence_and_hours(self.slot)
        if absence:
            raise absence.refusal(f"The doctor {self.doctor_name}")
        self.off_hours = bool(hours) and not weekly.covers(hours, self.slot.start, self.slot.end)
        if self.off_hours and not off_hours:
            text = f"The doctor {self.doctor_name} does not work on {in_words(self.slot.start, self.slot.end)}."
            raise errors.Conflict(text, {"appointment_datetime": [text]}, code=errors.Code.OFF_HOURS)

    def _refuse_impossible_time(self) -> None:
        """Raise `Invalid` for a new time over a day ago or over ten years ahead."""
        if self.appointment_datetime < now() - timedelta(days=1):
            raise errors.Invalid(appointment_datetime="This time is over a day ago.")
        if self.appointment_datetime > now() + LATEST_BOOKING:
            raise errors.Invalid(appointment_datetime="This time is over ten years ahead.")

    def _refuse_unavailable_people(self) -> None:
        """Raise `Conflict` if the doctor is archived, inactive or a receptionist now, or the patient deceased."""
        if self.doctor.deleted_at and self.is_to_come:
            raise self._without_doctor("archived")
        if not self.doctor.is_active and self.is_to_come:
            raise self._without_doctor("not active")
        if self.doctor.role == Role.RECEPTIONIST and self.is_to_come:
            raise self._without_doctor("a receptionist's")
        if self.patient.status == PatientStatus.DECEASED:
            text = f"The patient {self.patient_name} is deceased: nothing can be booked any more."
            raise errors.Conflict(text, code=errors.Code.DECEASED)

    def _without_doctor(self, state: str) -> errors.Conflict:
        text = f"The account of {self.doctor_name} is {state}. Give this appointment to another doctor."
        return errors.Conflict(text, code=errors.Code.DOCTOR_INACTIVE)

    def _refuse_before_its_day(self) -> None:
        """Raise `Invalid` for a result before the clinic's day of the appointment."""
        if day_of(self.appointment_datetime) > today():
            raise errors.Invalid(status=f"The status {self.status} is possible from the day of the appointment on.")

    @property
    def is_booked(self) -> bool:
        """Whether the status is one of `HOLDING` and the appointment is not archived. It may be overbooked."""
        return self.status in HOLDING and self.deleted_at is None

    @property
    def holds_slot(self) -> bool:
        """Whether the constraints keep others out of the slot: an overbooked appointment holds none."""
        return self.status in HOLDING and not self.overbooked and self.deleted_at is None

    @property
    def slot(self) -> "Slot":
        """The slot, whether the appointment holds it or not."""
        return Slot(self.id, self.user_id, self.patient_id, self.appointment_datetime, self.duration_minutes)


errors.explain("ck_appointments_overbooked_reason", errors.Invalid(reason="Please say why this is overbooked."))


@dataclass(frozen=True, slots=True)
class Slot:
    """The time of a doctor and a patient that an appointment takes."""

    appointment_id: int | None
    user_id: int
    patient_id: int
    start: datetime
    minutes: int

    @property
    def end(self) -> datetime:
        """The instant at which the slot ends."""
        return self.start + timedelta(minutes=self.minutes)

    @property
    def of_doctor(self) -> tuple[int, datetime, int]:
        """The doctor and the time, without the patient."""
        return self.user_id, self.start, self.minutes

    def of(self, user_id: int) -> "Slot":
        """Return the same slot of another doctor."""
        return replace(self, user_id=user_id)

    def clash(self, leaving: Collection[int]) -> errors.Conflict | None:
        """Return an error that names the appointment in the way; None if there is none."""
        end = self.start + timedelta(minutes=self.minutes)
        near = db.session.scalars(
            Appointment.live()
            .where((Appointment.user_id == self.user_id) | (Appointment.patient_id == self.patient_id))
            .where(Appointment.status.in_(HOLDING), Appointment.overbooked.is_(False), Appointment.id.not_in(leaving))
            .where(Appointment.appointment_datetime.between(self.start - timedelta(minutes=MINUTES[1]), end))
            .order_by(Appointment.appointment_datetime)
        )
        for other in near:
            other_end = other.appointment_datetime + timedelta(minutes=other.duration_minutes)
            if other.id != self.appointment_id and other.appointment_datetime < end and self.start < other_end:
                who = "doctor" if other.user_id == self.user_id else "patient"
                text = f"The {who} has appointment {other.id} on {in_words(other.appointment_datetime, other_end)}."
                return _slot_taken(text, other.id)
        return None


def _slot_taken(text: str, by: int) -> errors.Conflict:
    """Return the error for a slot that an appointment has. The answer shows that appointment."""
    return errors.Conflict(
        text, {"appointment_datetime": [text]}, code=errors.Code.SLOT_TAKEN, conflict=(Appointment, by)
    )


class Week(Record):
    """The working hours of a user as a whole: they change together. The id is that of the user."""

    __tablename__ = "weeks"
    __table_args__ = ()

    id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True, autoincrement=False, sort_order=-1)

    @classmethod
    def noun(cls) -> str:
        """Return "hours", the word of the address."""
        return "hours"

    @property
    def hours(self) -> weekly.Hours:
        """The hours as the database has them, in the order of the week."""
        chosen = select(WorkingHours.weekday, WorkingHours.starts, WorkingHours.ends)
        rows = db.session.execute(chosen.where(WorkingHours.user_id == self.id)).all()
        return sorted((row.weekday, row.starts, row.ends) for row in rows)

    def set_hours(self, hours: weekly.Hours) -> None:
        """Replace the hours, which counts as a change of the week. The history tells them as "hours"."""
        before = self.hours
        db.session.execute(delete(WorkingHours).where(WorkingHours.user_id == self.id))
        names = ("user_id", "weekday", "starts", "ends")
        if rows := [dict(zip(names, (self.id, *one), strict=True)) for one in hours]:
            db.session.execute(insert(WorkingHours), rows)
        inspect(self).info["also_changed"] = {"hours": [_in_short(before), _in_short(hours)]}
        self.updated_at = now()


def _in_short(hours: weekly.Hours) -> list[str]:
    """Return the hours as the history tells them: ["mon 08:00-12:30", …]."""
    return [
        f"{list(Weekday)[weekday]} {starts // 60:02}:{starts % 60:02}-{ends // 60:02}:{ends % 60:02}"
        for weekday, starts, ends in hours
    ]


class WorkingHours(Base):
    """Hours of a weekday at which a user works, on the clinic's clocks. Those of one weekday do not overlap."""

    __tablename__ = "working_hours"
    __table_args__ = (
        CheckConstraint("weekday BETWEEN 0 AND 6", name="weekday"),
        CheckConstraint("0 <= starts AND starts < ends AND ends <= 1440", name="minutes"),
    )

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    weekday: Mapped[int] = mapped_column(primary_key=True)  # Monday is 0
    starts: Mapped[int] = mapped_column(primary_key=True)  # minutes after midnight
    ends: Mapped[int]


errors.explain("ex_working_hours_overlap", errors.Invalid(body="The hours of a day do not overlap."))


class Absence(Record):
    """A time at which a user does not work. Triggers keep their appointments out of it."""

    __tablename__ = "absences"
    __table_args__ = (
        CheckConstraint("ends_at > starts_at", name="ends_after_start"),  # and migration 0013: at most 366 days
        Index(None, "user_id", "starts_at"),
        KEEP_IDS,
    )

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    starts_at: Mapped[datetime] = mapped_column(UTCDateTime)
    ends_at: Mapped[datetime] = mapped_column(UTCDateTime)
    reason: Mapped[str] = mapped_column(Text, default="")
    # the ids of the appointments that were handed over and cancelled for it
    outcome: Mapped[dict[str, list[int]] | None] = mapped_column(JSON)

    @classmethod
    def touching(cls, user_id: int, start: datetime, end: datetime) -> Select[Self]:
        """Select the absences of a user that touch this time, in their order."""
        return (
            cls.live().where(cls.user_id == user_id, cls.starts_at < end, cls.ends_at > start).order_by(cls.starts_at)
        )

    def check_whole(self) -> None:
        """Raise `Invalid` for an absence that ends before it begins, is over, began before today or is too long."""
        if self.ends_at <= self.starts_at:
            raise errors.Invalid(ends_at="The absence ends before it begins.")
        if self.ends_at - self.starts_at > LONGEST_ABSENCE:
            raise errors.Invalid(ends_at="An absence is at most a year long.")
        if self.ends_at <= now():
            raise errors.Invalid(ends_at="The absence is over already.")
        if self.starts_at < start_of(today()):
            raise errors.Invalid(starts_at="The absence began before today.")

    def refusal(self, who: str, field: str = "appointment_datetime") -> errors.Conflict:
        """Return the error for what is to be at this time. `who` begins its sentence, which tells no reason."""
        text = f"{who} is absent on {in_words(self.starts_at, self.ends_at)}."
        return errors.Conflict(text, {field: [text]}, code=errors.Code.ABSENT)


IN_ABSENCE = "ex_appointments_absence"
errors.explain(IN_ABSENCE, errors.Conflict("The doctor is absent at this time.", code=errors.Code.ABSENT))
errors.explain(
    "ex_absences_bookings",
    errors.Conflict("There are appointments at this time.", code=errors.Code.HAS_APPOINTMENTS),
)
errors.explain(
    "ex_absences_overlap", errors.Conflict("There is an absence at this time already.", code=errors.Code.ABSENT)
)


def absence_and_hours(slot: Slot) -> tuple[Absence | None, weekly.Hours]:
    """Return the doctor's absence at the time of the slot, if there is one, and the doctor's working hours."""
    absent = Absence.touching(slot.user_id, slot.start, slot.end).with_only_columns(Absence.id).limit(1)
    rows = db.session.execute(
        select(absent.scalar_subquery().label("absence"), WorkingHours.weekday, WorkingHours.starts, WorkingHours.ends)
        .outerjoin_from(User, WorkingHours, WorkingHours.user_id == User.id)
        .where(User.id == slot.user_id)
    ).all()
    absence = db.session.get(Absence, rows[0].absence) if rows and rows[0].absence else None
    return absence, [(row.weekday, row.starts, row.ends) for row in rows if row.weekday is not None]


class Image(Record):
    """A picture of a report. The store has its bytes under `public_id`."""

    __tablename__ = "images"
    __table_args__ = (Index(None, "report_id"), KEEP_IDS)

    report_id: Mapped[int] = mapped_column(ForeignKey("reports.id"))
    ON_S3: ClassVar[str] = "s3:"  # begins the image_url of an image on S3

    # As Cloudinary returned it. On local disk the key of the file, `<public_id>.<format>`; on S3 `ON_S3` and the key.
    image_url: Mapped[str] = mapped_column(Text)
    public_id: Mapped[str] = mapped_column(String(255), unique=True)
    format: Mapped[str] = mapped_column(String(8))
    width: Mapped[int]
    height: Mapped[int]
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))

    @property
    def store(self) -> str:
        """The name of the store that has the image. A clinic that changes its store has images in both."""
        return self.store_of(self.image_url)

    @staticmethod
    def store_of(image_url: str) -> str:
        """Return the name of the store that has the image of this `image_url`."""
        if image_url.startswith(Image.ON_S3):
            return "S3"
        return "Cloudinary" if "://" in image_url else "the local disk"

    @staticmethod
    def key_of(image_url: str) -> str:
        """Return the key of an image on local disk or S3, under which its links name it."""
        return image_url.removeprefix(Image.ON_S3)

    @classmethod
    def is_on(cls, store: str) -> ColumnElement[bool]:
        """Return whether the store with this name has the image, as `store_of` tells."""
        on_s3, on_cloudinary = cls.image_url.startswith(cls.ON_S3), cls.image_url.contains("://")
        return {"S3": on_s3, "Cloudinary": ~on_s3 & on_cloudinary}.get(store, ~on_s3 & ~on_cloudinary)


NOTHING_REPORTED = (
    "A report has a diagnosis or an image: write a diagnosis, or send files named `images` as multipart/form-data."
)


class Report(ClinicalRecord):
    """A medical report with its images. `doctor` is the author."""

    __tablename__ = "reports"
    __table_args__ = (
        Index(None, "patient_id", "created_at"),
        Index(None, "user_id", "created_at"),
        live_index("created_at", "id"),
        live_index("user_id", "id"),
        KEEP_IDS,
    )

    diagnosis: Mapped[str] = mapped_column(Text, default="")
    images: Mapped[list[Image]] = relationship(
        primaryjoin=lambda: (Image.report_id == Report.id) & Image.deleted_at.is_(None),
        order_by=Image.id,
        lazy="raise_on_sql",
        passive_deletes="all",
    )

    def add_images(self, images: list[Image], replace: bool = False) -> None:
        """Add images, or replace the old ones, which are archived. Both count as a change of the report.

        Raises `Invalid` for a replacement by nothing.
        """
        if replace and not images:
            raise errors.Invalid(images="Replacing the images takes at least one new image.")
        if replace:
            for image in self.images:
                image.archive()
            set_committed_value(self, "images", [])
        if self.id is None:
            self.images = images
        elif images:
            self.images.extend(images)
            self.updated_at = now()

    def remove_image(self, image_id: int) -> None:
        """Archive an image of the report, which counts as a change of the report. Raises `NotFound`.

        `save` refuses the removal of the last image of a report without a diagnosis.
        """
        image = next((image for image in self.images if image.id == image_id), None)
        if image is None:
            raise errors.NotFound(f"Report {self.id} has no image {image_id}.")
        image.archive()
        set_committed_value(self, "images", [other for other in self.images if other is not image])
        self.updated_at = now()

    def check_whole(self) -> None:
        """Raise `Invalid` for a report with neither a diagnosis nor an image. `images` must be loaded.

        The error blames the diagnosis if that was emptied, else the images.
        """
        if self.images or shows_something(self.diagnosis):
            return
        emptied = self.id is not None and inspect(self).attrs.diagnosis.history.deleted
        raise errors.Invalid({"diagnosis" if emptied else "images": [NOTHING_REPORTED]})


class MovedRecord(Base):
    """An appointment or report that a merge moved to the surviving patient. Undoing the merge moves it back."""

    __tablename__ = "moved_records"
    __table_args__ = (CheckConstraint("(appointment_id IS NULL) <> (report_id IS NULL)", name="one_record"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int] = mapped_column(ForeignKey("patients.id"), index=True)  # from whom
    appointment_id: Mapped[int | None] = mapped_column(ForeignKey("appointments.id"), index=True)
    report_id: Mapped[int | None] = mapped_column(ForeignKey("reports.id"), index=True)


class Word(Base):
    """A word of a record's text. `clinic/search.py` writes these rows and finds records by them."""

    __abstract__ = True

    word: Mapped[str] = mapped_column(
        # Collation "C" sorts by code point, so words with the same prefix are neighbours in the index.
        String(LONGEST_WORD).with_variant(String(LONGEST_WORD, collation="C"), "postgresql"),
        primary_key=True,
    )

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> Any:
        return (Index(None, "record_id", "word"), {"sqlite_with_rowid": False})


class PatientWord(Word):
    """A word by which a patient is found."""

    __tablename__ = "patient_words"
    record_id: Mapped[int] = mapped_column(ForeignKey("patients.id"), primary_key=True)


class UserWord(Word):
    """A word by which a user is found."""

    __tablename__ = "user_words"
    record_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)


class Upload(Base):
    """An image on its way to the store.

    The row is committed before the image is sent, and deleted by the commit of its report. A crash leaves a row behind
    whose image may be in the store: `flask purge` claims rows over an hour old.
    """

    __tablename__ = "uploads"

    public_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    store: Mapped[str] = mapped_column(String(16))  # the name of the store, as in `Image.store`
    started_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, index=True)
    claimed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class LoginSession(Base):
    """A login on one device. Its access and refresh tokens are valid only while it is open."""

    __tablename__ = "login_sessions"
    __table_args__: Any = KEEP_IDS

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    last_used_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now)  # the last login or refresh
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    generation: Mapped[int] = mapped_column(default=1)  # the refresh token of this generation is valid
    # {generation: Unix time} of refresh tokens used within the last seconds: clinic/sessions.py, GRACE
    first_uses: Mapped[dict[str, float] | None] = mapped_column(JSON)
    device: Mapped[str] = mapped_column(String(200))  # the User-Agent header
    address: Mapped[str] = mapped_column(String(45))  # of the last login or refresh
    signed_in_from: Mapped[str] = mapped_column(String(45))

    @classmethod
    def open(cls, user_id: int) -> Select[Self]:
        """Select the user's open login sessions."""
        return select(cls).where(*cls.is_open(user_id))

    @classmethod
    def is_open(cls, user_id: int) -> tuple[ColumnElement[bool], ...]:
        """Return the conditions for the user's open login sessions: neither ended nor expired."""
        return cls.user_id == user_id, cls.ended_at.is_(None), cls.expires_at > now()


class SignInTries(Base):
    """The number of wrong passwords for an email from an address. The row with address "" counts all addresses."""

    __tablename__ = "sign_in_tries"

    email: Mapped[str] = mapped_column(String(254), primary_key=True)
    address: Mapped[str] = mapped_column(String(45), primary_key=True)
    failures: Mapped[int] = mapped_column(default=0)
    last_try_at: Mapped[datetime] = mapped_column(UTCDateTime, default=now, index=True)
    locked_until: Mapped[datetime | None] = mapped_column(UTCDateTime)


class PasswordReset(Base):
    """A link to set a new password, valid for one use. The table has only a hash of its token."""

    __tablename__ = "password_resets"

    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), unique=True)  # a new link replaces the old link
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)


class AuditEntry(Base):
    """An entry of the history; clinic/history/chain.py explains its parts."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        UniqueConstraint("kind", "record_id", "seq"),
        Index(None, "actor_id", "kind", "at", "id"),
        Index(None, "kind", "at", "id"),
        Index(None, "at", "id"),
        KEEP_IDS,
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    record_id: Mapped[int]
    seq: Mapped[int]
    at: Mapped[datetime] = mapped_column(UTCDateTime)
    actor_id: Mapped[int | None]
    action: Mapped[str] = mapped_column(String(16))
    version: Mapped[int | None]
    request_id: Mapped[str | None] = mapped_column(String(64))
    changes: Mapped[str | None] = mapped_column(Text)  # JSON, {field: [from, to]}; null once purged
    digest: Mapped[str] = mapped_column(String(64))
    mac: Mapped[str] = mapped_column(String(64))
    spelling: Mapped[int] = mapped_column(server_default="1")  # what the mac covers: clinic/history/macs.py
    key_number: Mapped[int] = mapped_column(server_default="1")


class AuditHead(Base):
    """The head of a chain: the number and mac of its newest entry."""

    __tablename__ = "audit_heads"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    record_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int]
    entry_mac: Mapped[str] = mapped_column(String(64))
    mac: Mapped[str] = mapped_column(String(64))
    key_number: Mapped[int] = mapped_column(server_default="1")


class Clinic(Base):
    """The clinic itself. The table has a single row."""

    __tablename__ = "clinic"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, default=1)
    audit_keys: Mapped[str | None] = mapped_column(Text)  # JSON, written by clinic/history/keys.py
    timezone: Mapped[str | None] = mapped_column(String(64))  # that times were entered under: clinic/timezone.py


class Node(Base):
    """A folder of images on the local disk of a node, and when a server with it was last seen: clinic/nodes.py."""

    __tablename__ = "nodes"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    seen_at: Mapped[datetime] = mapped_column(UTCDateTime)


class IdempotencyKey(Base):
    """The Idempotency-Key of a POST, and the record that the POST made."""

    __tablename__ = "idempotency_keys"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))  # of the content
    claimed_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
    record_id: Mapped[int | None]  # null while the first request is still running


Kind = TypeVar("Kind", bound=Record)
Child = TypeVar("Child", bound=ClinicalRecord)


def save(record: Kind, leaving: Collection[int] = ()) -> Kind:
    """Flush the record, so that it has its id and version, and return it. Commits nothing.

    Raises `Invalid` for a record that is not complete.
    Rolls back and raises `Conflict` when a slot is taken. The error names the appointment in the way, but never an
    appointment in `leaving`: these ids leave their slots in this transaction.
    """
    record.check_whole()
    db.session.add(record)
    written = (*db.session.new, *db.session.dirty)  # not only `record`: restoring a patient restores appointments
    slots = [record.slot for record in written if isinstance(record, Appointment) and record.holds_slot]
    try:
        db.session.flush()
    except IntegrityError as error:
        constraint = errors.constraint_of(error)
        if constraint in SLOTS:
            db.session.rollback()
            raise _clash(slots, leaving) from None
        if constraint == IN_ABSENCE:
            db.session.rollback()
            raise _absence_at(slots) from None
        raise
    return record


def _clash(slots: Iterable[Slot], leaving: Collection[int]) -> errors.Conflict:
    """Return the error that names the appointment in one of these slots. The constraints do not tell which it is.

    If no other appointment is in the way, those in `leaving` are: in their new places they would overlap.
    """
    for slot in slots:
        if clash := slot.clash(leaving):
            return clash
    for other in leaving:
        return _slot_taken(f"In their new places, this appointment and appointment {other} would overlap.", other)
    return errors.busy("This slot was taken a moment ago, and is free again. Please try again.")


def _absence_at(slots: Iterable[Slot]) -> errors.Conflict:
    """Return the error that names the appointment and its doctor's absence. The trigger does not tell which they are.

    Without a person who named a time, this is the only hint: restoring a patient restores appointments, too.
    """
    for slot in slots:
        if absence := absence_and_hours(slot)[0]:
            doctor = db.session.get_one(User, slot.user_id)
            text = absence.refusal(f"The doctor {doctor.name}").msg
            return errors.Conflict(f"Appointment {slot.appointment_id}: {text}", code=errors.Code.ABSENT)
    return errors.busy("The doctor was absent a moment ago, and is there again. Please try again.")


def lock_users(user_ids: Collection[int]) -> dict[int, User]:
    """Return these users by id, archived ones too, locked until the commit. They are locked in the order of ids."""
    users = select(User).where(User.id.in_(user_ids)).order_by(User.id).with_for_update(key_share=True)
    return {user.id: user for user in db.session.scalars(users.execution_options(populate_existing=True))}


def find(kind: type[Kind], record_id: int, *options: Any) -> Kind:
    """Return a record that is not archived. Raises `NotFound`."""
    return _find(kind, record_id, kind.live().options(*options))


def find_any(kind: type[Kind], record_id: int, *options: Any) -> Kind:
    """Return a record, archived or not. Raises `NotFound`."""
    return _find(kind, record_id, select(kind).options(*options))


def find_for_update(kind: type[Kind], record_id: int, *options: Any) -> Kind:
    """Return a record that is not archived and lock it until the commit. Raises `NotFound`."""
    return _find(kind, record_id, _for_update(kind.live().options(*options), kind))


def find_any_for_update(kind: type[Kind], record_id: int, *options: Any) -> Kind:
    """Return a record, archived or not, and lock it until the commit. Raises `NotFound`."""
    return _find(kind, record_id, _for_update(select(kind).options(*options), kind))


def _for_update(records: Select[Kind], kind: type[Kind]) -> Select[Kind]:
    return records.with_for_update(key_share=True, of=kind).execution_options(populate_existing=True)


def _find(kind: type[Kind], record_id: int, records: Select[Kind]) -> Kind:
    record = db.session.scalar(records.where(kind.id == record_id))
    if record is None:
        raise not_found(kind, record_id)
    return record


def not_found(kind: type[Record], record_id: int) -> errors.NotFound:
    """Return the error for a record that does not exist or is archived. It names the surviving patient of a merge."""
    survivor = db.session.scalar(_SURVIVOR, {"id": record_id}) if kind is Patient else None
    if survivor is None:
        return errors.NotFound(f"There is no {kind.noun()} {record_id}.")
    return errors.NotFound(f"Patient {record_id} was merged into patient {survivor}.", {"merged_into": survivor})


def _survivor() -> Select[int]:
    """Select the id of the patient into whom a patient was merged; of a chain, the last."""
    chain = select(Patient.merged_into_id.label("id")).where(Patient.id == bindparam("id")).cte(recursive=True)
    chain = chain.union(select(Patient.merged_into_id).join(chain, Patient.id == chain.c.id))
    return select(Patient.id).join(chain, Patient.id == chain.c.id).where(Patient.merged_into_id.is_(None))


_SURVIVOR = _survivor()
