"""Restores archived records, and erases records for good that were archived long ago."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Select, delete, exists, select

import models
from clinic import search
from models import (
    Absence,
    Appointment,
    IdempotencyKey,
    Image,
    LoginSession,
    MovedRecord,
    PasswordReset,
    Patient,
    Record,
    Report,
    Upload,
    User,
    Week,
    WorkingHours,
)
from server.database import db
from server.times import now

Kind = TypeVar("Kind", bound=Record)


def restored(kind: type[Kind], record_id: int, *options: Any) -> Kind:
    """Restore an archived record and return it. `options` load its relations.

    Raises `NotFound`. Raises `Conflict` if the record is not archived, or if its slot is taken or its patient archived.
    """
    if kind is Patient:
        _lock_doctors_of(record_id)
    record = models.find_any_for_update(kind, record_id, *options)
    record.restore()
    return models.save(record)


def _lock_doctors_of(patient_id: int) -> None:
    """Lock the doctors of an archived patient's appointments, in the order of ids, before the patient is locked.

    Restoring the patient takes slots of these doctors. A booking locks the doctor before the patient, too: two
    transactions with different orders could deadlock, since each waits in the exclusion constraint for the other.
    """
    archived = select(Appointment.user_id).where(
        Appointment.patient_id == patient_id, Appointment.deleted_at.is_not(None)
    )
    db.session.scalars(
        select(User.id).where(User.id.in_(archived)).order_by(User.id).with_for_update(key_share=True)
    ).all()


def erasable(kind: type[Record], before: datetime) -> Select[int]:
    """Select the ids of records that were archived before this instant and that no remaining record refers to.

    Leaves out records whose patient or report is erasable: `erase` erases them with the patient or the report. So it
    does with patients who were merged: until then their old number and names lead to the surviving patient.
    """
    conditions = [kind.deleted_at < before]
    if kind is Patient:
        conditions.append(Patient.merged_into_id.is_(None))
    if kind is Image:
        conditions.append(Image.report_id.not_in(select(Report.id).where(Report.deleted_at < before)))
    if kind is Report or kind is Appointment:
        conditions.append(kind.patient_id.not_in(erasable(Patient, before)))
    for parent, column in ((Patient, "patient_id"), (User, "user_id")):
        for child in (Report, Appointment) if kind is parent else ():
            stays = child.deleted_at.is_(None) | (child.deleted_at >= before)
            conditions.append(~exists().where(getattr(child, column) == kind.id, stays))
    return select(kind.id).where(*conditions).order_by(kind.id)


def erase(kind: type[Record], record_id: int, before: datetime) -> bool:
    """Erase an archived record for good: a patient with reports, appointments and whom was merged into the patient, a
    report with its images, a user with hours and absences.

    Commits nothing: run it in a transaction, so that a killed purge leaves no half record. Returns False if the record
    was restored meanwhile. The history keeps its entries without their values. `images.sweep` destroys the files.
    """
    db.session.scalar(select(kind.id).where(kind.id == record_id).with_for_update())  # waits for a restore
    record = db.session.scalar(select(kind).where(kind.id.in_(erasable(kind, before).where(kind.id == record_id))))
    if record is None:
        return False
    doomed: list[Record] = [record]
    if isinstance(record, Patient):
        doomed[:0] = [*record.children(Report), *record.children(Appointment)]
    reports = [doomed_record.id for doomed_record in doomed if isinstance(doomed_record, Report)]
    _delete(db.session.scalars(select(Image).where(Image.report_id.in_(reports))).all())
    _delete(child for child in doomed if child is not record)
    if isinstance(record, User):
        db.session.execute(delete(WorkingHours).where(WorkingHours.user_id == record_id))
        _delete(db.session.scalars(select(Week).where(Week.id == record_id)).all())
        _delete(db.session.scalars(select(Absence).where(Absence.user_id == record_id)).all())
        for table in (LoginSession, PasswordReset, IdempotencyKey):
            db.session.execute(delete(table).where(table.user_id == record_id))
    if isinstance(record, Patient):
        for other in record.merged or ():  # each after those who were merged into them
            _delete(db.session.scalars(select(Patient).where(Patient.id == other["id"])).all())
    _delete([record])
    return True


def _forget_moves(record: Patient | Appointment | Report) -> None:
    """Delete what `MovedRecord` says of a record that is about to be erased."""
    column = getattr(MovedRecord, f"{record.noun()}_id")
    db.session.execute(delete(MovedRecord).where(column == record.id))


def _delete(records: Iterable[Record]) -> None:
    for record in records:
        if isinstance(record, Image):
            db.session.add(Upload(public_id=record.public_id, store=record.store, claimed_at=now()))
        if isinstance(record, Patient | User):
            search.delete_words(record)
        if isinstance(record, Patient | Appointment | Report):
            _forget_moves(record)
        db.session.delete(record)
    db.session.flush()
