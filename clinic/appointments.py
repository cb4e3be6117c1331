"""Appointments that change places."""

from datetime import UTC, datetime

from sqlalchemy import select, update
from sqlalchemy.orm import joinedload

import models
from clinic import rights
from models import Appointment, Patient, Record, User
from server import errors
from server.database import db

ASIDE = datetime(1800, 1, 1, tzinfo=UTC)  # a time that no appointment has: the API takes none before 1850


def swap(first_id: int, second_id: int) -> tuple[Appointment, Appointment]:
    """Give each of two appointments the time of the other; doctor, patient and duration stay.

    Raises `Invalid` for an appointment and itself, `NotFound`, `Forbidden`, or `Conflict` for a slot that is taken.
    """
    if first_id == second_id:
        raise errors.Invalid(second="Please name two different appointments.")
    names = joinedload(Appointment.patient), joinedload(Appointment.doctor)
    locked = {one: rights.editable(Appointment, one, *names) for one in sorted({first_id, second_id})}
    first, second = locked[first_id], locked[second_id]
    _lock(User, first.user_id, second.user_id)
    _lock(Patient, first.patient_id, second.patient_id)
    first_time, second_time = first.appointment_datetime, second.appointment_datetime
    if first_time != second_time:
        _put_aside(first)
        rights.change(second, {"appointment_datetime": first_time})
        models.save(second, leaving={first_id})
        rights.change(first, {"appointment_datetime": second_time})
        models.save(first, leaving={second_id})
    return first, second


def _lock(kind: type[Record], *ids: int) -> None:
    """Lock people until the commit in the order of their ids, so that two swaps do not deadlock."""
    db.session.execute(select(kind.id).where(kind.id.in_(ids)).order_by(kind.id).with_for_update(key_share=True))


def _put_aside(appointment: Appointment) -> None:
    """Move the row out of the other's way, past the ORM, which moves it to its new time in the same transaction.

    The constraints look at one row at a time, so that two rows cannot change places at once.
    """
    db.session.execute(
        update(Appointment)
        .where(Appointment.id == appointment.id)
        .values(appointment_datetime=ASIDE, updated_at=Appointment.updated_at),
        execution_options={"synchronize_session": False},
    )
