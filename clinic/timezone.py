"""Keeps the time zone that the times in the database were entered under, and refuses another `TIMEZONE`."""

from flask import current_app
from sqlalchemy import Connection, exists, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from models import Absence, Appointment, Clinic, Patient, Record
from server import errors
from server.database import reader, upsert

# The times that staff enter. All other times are instants of the server's own clock.
ENTERED: dict[type[Record], tuple[str, ...]] = {
    Absence: ("starts_at", "ends_at"),
    Appointment: ("appointment_datetime",),
    Patient: ("admitted_at", "discharged_at"),
}


class WrongTimezone(errors.Unavailable):
    """`TIMEZONE` is not the zone that the times in the database were entered under."""


def unknown() -> WrongTimezone:
    """Return the error of a database with times that has no zone yet: an earlier release wrote them."""
    return WrongTimezone(
        "This database does not say yet in which time zone its times were entered. Run `flask timezone ZONE` with that "
        "zone: `flask timezone UTC` if TIMEZONE was never set."
    )


def _differs(stored: str) -> WrongTimezone:
    """Return the error, and let the next request check the settings again: from now on reads are refused, too."""
    current_app.extensions["settings_fit"] = False
    zone = current_app.config["TIMEZONE"]
    return WrongTimezone(
        f"TIMEZONE is {zone}, but the times in this database were entered under {stored}. Set TIMEZONE={stored}, "
        f"or change the zone: `flask timezone {zone}` keeps the instants, and with --keep-wall-clock what the clocks "
        "showed."
    )


def check_timezone() -> bool:
    """Compare `TIMEZONE` with the zone in the database. Raises `WrongTimezone`.

    Returns True if they are the same. Returns False if the database does not answer, has no schema yet, or has neither
    a zone nor a time: its first write stores the zone.
    """
    try:
        with reader() as connection:
            stored = connection.scalar(select(Clinic.timezone))
            if stored is None and has_times(connection):
                raise unknown()
    except (DBAPIError, PoolTimeout):
        return False
    if stored not in (None, current_app.config["TIMEZONE"]):
        raise _differs(stored)
    return stored is not None


def has_times(connection: Connection) -> bool:
    """Return whether the database has records with entered times."""
    return any(connection.scalar(select(exists().select_from(kind.__table__))) for kind in ENTERED)


def settle(connection: Connection, stored: str | None) -> None:
    """Store `TIMEZONE` at the first write, and refuse each write under another zone. Raises `WrongTimezone`.

    `stored` is `Clinic.timezone`, read by this transaction. Of two first writes the faster one stores its zone.
    """
    zone = current_app.config["TIMEZONE"]
    if stored is None:
        insert = upsert(Clinic).values(id=1, timezone=zone)
        first = func.coalesce(Clinic.timezone, insert.excluded.timezone)
        insert = insert.on_conflict_do_update(index_elements=["id"], set_={"timezone": first})
        stored = str(connection.scalar(insert.returning(Clinic.timezone)))
    if stored != zone:
        raise _differs(stored)
