"""Merges a patient into another who is the same person, and undoes it."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, select

import models
from clinic import rights
from clinic.archive import restored
from clinic.idempotency import made
from models import HOLDING, Appointment, ClinicalRecord, MovedRecord, Patient, Report, User
from schemas import MergeOut, MovedOut, PatientIn, PatientOut, StayingOut, UnmergedOut, UnmergedPatientOut
from server import errors
from server.database import db, insert_many
from server.times import in_words

# The records of a patient, and the column of `MovedRecord` that names one.
MOVED: dict[type[ClinicalRecord], str] = {Appointment: "appointment_id", Report: "report_id"}
COMPARED = tuple(PatientIn.model_fields)  # the fields that people fill in

Records = Mapping[type[ClinicalRecord], Sequence[ClinicalRecord]]  # by their kind


def merge(patient_id: int, into: int) -> MergeOut:
    """Move the records of a patient to another patient, who survives, and archive the first. Commits nothing.

    Raises `NotFound`, `PreconditionFailed` if the first has changed, `Invalid` if there is no such other patient, and
    `Conflict` as `Patient.merge_into` does and for hours at which both are booked.
    """
    _lock_people(Appointment.patient_id == patient_id, patient_id, into)
    patient = rights.editable(Patient, patient_id)
    survivor = db.session.get(Patient, into)
    if survivor is None:
        raise errors.Invalid(into=f"There is no patient {into}.")
    differing = _differing(patient, survivor)
    patient.merge_into(survivor)
    _refuse_double_bookings(patient, survivor)
    moved = {kind: _moved(patient.children(kind), survivor) for kind in MOVED}
    _note_moves(patient, moved)
    made(models.save(patient))
    return MergeOut(patient=PatientOut.of(survivor), moved=_numbers(moved), differing=differing)


def shown(patient_id: int) -> MergeOut:
    """Return the answer to the merge of a patient again, with the surviving patient as they are now.

    Raises `Conflict` if the merge was undone since, and `NotFound` if the surviving patient is archived.
    """
    patient = models.find_any(Patient, patient_id)
    if patient.merged_into_id is None:
        raise errors.Conflict(f"Patient {patient_id}, merged under this key, was restored since.")
    survivor = models.find(Patient, patient.merged_into_id)
    moved = {kind: db.session.scalars(_ids(kind, patient_id)).all() for kind in MOVED}
    return MergeOut(patient=PatientOut.of(survivor), moved=_numbers(moved), differing=_differing(patient, survivor))


def restored_patient(patient_id: int) -> PatientOut | UnmergedPatientOut:
    """Restore an archived patient, or undo the merge of a patient. Commits nothing.

    What the merge moved goes back, if it still is with the surviving patient. Raises as `archive.restored` does, and
    `Conflict` while the surviving patient is archived.
    """
    into = db.session.scalar(select(Patient.merged_into_id).where(Patient.id == patient_id))
    if into is None:
        return PatientOut.of(restored(Patient, patient_id))
    _lock_people(Appointment.id.in_(_ids(Appointment, patient_id)), patient_id, into)
    patient, survivor = models.find_any(Patient, patient_id), models.find_any(Patient, into)
    if patient.merged_into_id != into or patient.deleted_at is None:
        raise errors.busy("Others are changing this patient at this moment. Please try again.")
    merged_at = patient.deleted_at
    patient.part_from(survivor)
    moved = {kind: _moved(survivor.children(kind, kind.id.in_(_ids(kind, patient_id))), patient) for kind in MOVED}
    db.session.execute(delete(MovedRecord).where(MovedRecord.patient_id == patient_id))
    models.save(patient)
    staying = StayingOut(
        appointments=_made_since(Appointment, survivor, merged_at), reports=_made_since(Report, survivor, merged_at)
    )
    unmerged = UnmergedOut(from_=into, moved=_numbers(moved), staying=staying)
    return UnmergedPatientOut(**PatientOut.of(patient).model_dump(), unmerged=unmerged)


def _lock_people(doctors_of: ColumnElement[bool], *patient_ids: int) -> None:
    """Lock the doctors of these appointments, then the patients, each in the order of ids: as a booking does."""
    doctors = select(Appointment.user_id).where(doctors_of)
    for kind, chosen in ((User, User.id.in_(doctors)), (Patient, Patient.id.in_(patient_ids))):
        db.session.execute(select(kind.id).where(chosen).order_by(kind.id).with_for_update(key_share=True))


def _differing(patient: Patient, survivor: Patient) -> list[str]:
    """Return the fields in which two patients differ. Null and "" are the same."""
    return [name for name in COMPARED if (getattr(patient, name) or "") != (getattr(survivor, name) or "")]


# --- Records on their way ---


def _moved(records: Sequence[ClinicalRecord], to: Patient) -> Sequence[ClinicalRecord]:
    """Give the records to this patient, and return them. They keep their slots, so no rule for new ones applies."""
    for record in records:
        record.patient_id = to.id
    return records


def _note_moves(patient: Patient, moved: Records) -> None:
    """Write down which records came from this patient."""
    rows = [
        (patient.id, *(record.id if kind is column else None for column in MOVED))
        for kind, records in moved.items()
        for record in records
    ]
    if rows:
        insert_many(db.session.connection(), MovedRecord, ("patient_id", *MOVED.values()), rows)


def _ids(kind: type[ClinicalRecord], patient_id: int) -> Select[Any]:
    """Select the ids of the records that a merge moved away from this patient."""
    column = getattr(MovedRecord, MOVED[kind])
    return select(column).where(MovedRecord.patient_id == patient_id, column.is_not(None))


def _made_since(kind: type[ClinicalRecord], patient: Patient, instant: datetime) -> list[int]:
    """Return the ids of the patient's records that were made since then and are not archived."""
    newer = select(kind.id).where(kind.patient_id == patient.id, kind.created_at >= instant, kind.deleted_at.is_(None))
    return list(db.session.scalars(newer.order_by(kind.id)))


def _numbers(moved: Mapping[type[ClinicalRecord], Sequence[Any]]) -> MovedOut:
    return MovedOut(appointments=len(moved[Appointment]), reports=len(moved[Report]))


# --- Hours at which both are booked ---


def _refuse_double_bookings(patient: Patient, survivor: Patient) -> None:
    """Raise `Conflict` with the hours at which both patients have an appointment that holds its slot."""
    holding = (
        Appointment.live()
        .where(Appointment.patient_id.in_((patient.id, survivor.id)))
        .where(Appointment.status.in_(HOLDING), Appointment.overbooked.is_(False))
        .order_by(Appointment.appointment_datetime)
    )
    hours: list[str] = []
    latest: dict[int, Appointment] = {}  # of each patient: no two of one patient overlap
    with db.session.no_autoflush:
        for one in db.session.scalars(holding):
            other = latest.get(survivor.id if one.patient_id == patient.id else patient.id)
            latest[one.patient_id] = one
            if other and (until := min(_end(one), _end(other))) > one.appointment_datetime:
                hour = in_words(one.appointment_datetime, until)
                hours.append(f"Both are booked on {hour}: appointments {other.id} and {one.id}.")
    if hours:
        text = " ".join(hours[: errors.MOST_FAULTS])
        if more := len(hours[errors.MOST_FAULTS :]):
            text += f" And {more:,} more."
        faults = {"into": hours[: errors.MOST_FAULTS]}
        raise errors.Conflict(f"{text} Move or cancel one of each two.", faults, code=errors.Code.SLOT_TAKEN)


def _end(appointment: Appointment) -> datetime:
    return appointment.appointment_datetime + timedelta(minutes=appointment.duration_minutes)
