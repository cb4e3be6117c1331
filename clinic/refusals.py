"""Shows the record that a refusal is about: the appointment in the way, or the record that has changed."""

from contextlib import suppress
from typing import Any

import orjson
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
        if kind is Absence:
            absence: dict[str, Any] = AbsenceOut.of(models.find(Absence, record_id)).model_dump(mode="json")
            return absence
        collection = COLLECTIONS[kind]
        fields = collection.fields_of(record_id, image_links() if kind is Report else None)
        log_access(collection.ids_of([fields]))
        plain: dict[str, Any] = orjson.loads(orjson.dumps(fields))  # Flask writes a date in another form
        return plain
    return None


def init_app(app: Flask) -> None:
    """Let errors show records."""
    errors.show_records_by(app, shown)
