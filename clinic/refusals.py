"""Shows the record that a refusal is about: the appointment in the way, or the record that has changed."""

from contextlib import suppress
from typing import Any

from flask import Flask
from sqlalchemy.exc import SQLAlchemyError

import models
from clinic.collections import APPOINTMENTS, PATIENTS, REPORTS, USERS, Collection
from clinic.image_links import image_links
from models import Absence, Appointment, Patient, Record, Report, User
from schemas import AbsenceOut
from server import errors
from server.endpoint import log_access

COLLECTIONS: dict[type[Record], Collection[Any]] = {
    User: USERS,
    Patient: PATIENTS,
    Appointment: APPOINTMENTS,
    Report: REPORTS,
}


def shown(kind: type[Record], record_id: int) -> dict[str, Any] | None:
    """Return the record as its own address answers it; None if it is archived or the database fails meanwhile."""
    with suppress(errors.NotFound, SQLAlchemyError):
        answer: Any
        if kind is Absence:
            answer = AbsenceOut.of(models.find(Absence, record_id))
        else:
            answer = COLLECTIONS[kind].get(record_id, image_links() if kind is Report else None)
        log_access(getattr(answer, "records_shown", ""))
        fields: dict[str, Any] = answer.model_dump(mode="json")
        return fields
    return None


def init_app(app: Flask) -> None:
    """Let errors show records."""
    errors.show_records_by(app, shown)
