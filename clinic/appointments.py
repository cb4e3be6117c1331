"""Swaps the times of two appointments."""

from datetime import UTC, datetime

from sqlalchemy import select, update
from sqlalchemy.orm import joinedload

import models
from clinic import rights
from models import Appointment, Patient, Record, User
from server import errors
from server.database import db

ASIDE = datetime(1800, 1, 1, tzinfo=UTC)  # no appointment has this time: the API refuses times before 1850


def swap(first_id: int, second_id: int) -> tuple[Appointment, Appointment]:
    """Swap the times of two appointments, and return both. Doctors, patients and durations stay.

    Raises `Invalid` if both ids are the same, `NotFound`, `Forbidden`, or `Conflict` if a slot is taken by a third
    appointment.
    """
    if first_id == second_id:
        raise errors.Invalid(second="Please name two different appointments.")
    names = joinedload(Appointment.patient), joinedload(Appointment.doctor)
    # In the order of ids, so that two swaps do not deadlock.
    locked = {number: rights.editable(Appointment, number, *names) for number in sorted({first_id, second_id})}
    first, second = locked[first_id], locked[second_id]
    _lock(User, first.user_id, second.user_id)
    _lock(Patient, first.patient_id, second.patient_id)
    first_time, second_time = first.appointment_datetime, second.appointment_datetime
    if first_time != second_time:
        # Within the diary of one doctor, what was allowed outside of the hours stays allowed.
        one_diary = first.user_id == second.user_id
        allowed_first, allowed_second = (one_diary and one.off_hours for one in (second, first))
        _put_aside(first)
        rights.change(second, {"appointment_datetime": first_time, "off_hours": allowed_second})
        models.save(second, leaving={first_id})
        rights.change(first, {"appointment_datetime": second_time, "off_hours": allowed_first})
        models.save(first, leaving={second_id})
    return first, second


def _lock(kind: type[Record], *ids: int) -> None:
    """Lock people until the commit, in the order of their ids, so that two swaps do not deadlock."""
    db.session.execute(select(kind.id).where(kind.id.in_(ids)).order_by(kind.id).with_for_update(key_share=True))


def _put_aside(appointment: Appointment) -> None:
    """Move the row to a time that no appointment has: the constraints refuse two rows in one slot, even briefly.

    The statement goes past the ORM, so the object keeps its time. The swap sets its new time in the same transaction.
    """
    db.session.execute(
        update(Appointment)
        .where(Appointment.id == appointment.id)
        .values(appointment_datetime=ASIDE, updated_at=Appointment.updated_at),
        execution_options={"synchronize_session": False},
    )
