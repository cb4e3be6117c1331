"""Changes the time zone of the clinic: `flask timezone`."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import cast
from zoneinfo import ZoneInfo

from flask import current_app
from sqlalchemy import Connection, Table, bindparam, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.attributes import set_committed_value

import models
from clinic.history import chain
from clinic.timezone import ENTERED, unknown
from models import Appointment, Clinic, Record
from server import errors
from server.database import db, in_transaction, reader, upsert

WARNING = (
    "Moved, too: times that came with an offset, and those that the server set itself, such as an admission without a "
    "date. The database does not say which these are. Look at them in the history: GET /audit."
)
BATCH = 500  # records in memory together
ASIDE = timedelta(days=146_097)  # 400 years: no appointment lies there, and the calendar repeats


class NotChanged(Exception):
    """The zone was not changed; the message says why."""


def change_timezone(zone: str, keep_wall_clock: bool, dry_run: bool, advance: Callable[[int], None]) -> dict[str, int]:
    """Store the zone. With `keep_wall_clock`, move every entered time so that it shows what it showed before.

    Returns the number of moved times for each column. Everything is one transaction; with `dry_run` it is rolled back.
    `advance` gets the number of records done. Raises `NotChanged`.
    """

    def change() -> dict[str, int]:
        connection = db.session.connection(execution_options={"unhurried": True})
        if connection.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE patients, appointments IN SHARE ROW EXCLUSIVE MODE"))
        old = connection.scalar(select(Clinic.timezone))
        if keep_wall_clock and old is None:
            raise NotChanged(unknown().msg)
        _store(connection, old, zone)
        moved = _keep_wall_clocks(ZoneInfo(str(old)), ZoneInfo(zone), advance) if keep_wall_clock else {}
        if dry_run:
            db.session.rollback()
        return moved

    try:
        return in_transaction(change)
    except errors.Conflict as error:
        raise NotChanged(f"Two appointments would overlap. {error.msg} Move or cancel one of them first.") from None


def records() -> int:
    """Return the number of records that have entered times."""
    with reader() as connection:
        return sum(connection.scalar(select(func.count()).select_from(kind.__table__)) or 0 for kind in ENTERED)


def _store(connection: Connection, old: str | None, zone: str) -> None:
    insert = upsert(Clinic).values(id=1, timezone=zone)
    connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_={"timezone": zone}))
    current_app.config["TIMEZONE"] = zone  # of this command, which writes the history under the new zone
    if old != zone:
        chain.write(connection, [chain.Event(*chain.CLINIC, "change", None, {"timezone": [old, zone]})])


def _keep_wall_clocks(old: ZoneInfo, new: ZoneInfo, advance: Callable[[int], None]) -> dict[str, int]:
    """Move the entered times of all records from the old zone to the new, archived records too. Commits nothing.

    The appointments are first put aside: on its way from slot to slot one would meet another.
    """
    counts: dict[str, int] = {}
    _put_appointments_aside()
    for kind, names in ENTERED.items():
        for records in _batches(kind):
            for record in records:
                for name in names:
                    counts.setdefault(f"{kind.__tablename__}.{name}", 0)
                    counts[f"{kind.__tablename__}.{name}"] += _move(record, name, old, new)
            _flush(records)
            advance(len(records))
            db.session.expunge_all()
    return counts


def _batches(kind: type[Record]) -> Iterator[list[Record]]:
    last = 0
    while records := list(db.session.scalars(select(kind).where(kind.id > last).order_by(kind.id).limit(BATCH))):
        last = records[-1].id
        yield records


def _put_appointments_aside() -> None:
    column = Appointment.appointment_datetime
    days = -ASIDE.days
    on_sqlite = db.engine.dialect.name == "sqlite"
    aside = text(
        f"strftime('%Y-%m-%d %H:%M:%f000', appointment_datetime, '{days} days')"
        if on_sqlite
        else f"appointment_datetime + interval '{days * 24} hours'"
    )
    unchanged = {"updated_at": Appointment.updated_at}
    db.session.execute(update(Appointment).values({column.key: aside, **unchanged}), execution_options=_PAST_ORM)


_PAST_ORM = {"synchronize_session": False}


def _move(record: Record, name: str, old: ZoneInfo, new: ZoneInfo) -> bool:
    """Give a time its instant in the new zone. Return whether that is another instant."""
    instant: datetime | None = getattr(record, name)
    if instant is None:
        return False
    if isinstance(record, Appointment):
        instant += ASIDE
        set_committed_value(record, name, instant)
    moved = instant.astimezone(old).replace(tzinfo=new).astimezone(UTC)
    if moved != instant:
        setattr(record, name, moved)
    return moved != instant


_appointments = cast(Table, Appointment.__table__)
_back = update(_appointments).where(_appointments.c.id == bindparam("of")).values(appointment_datetime=bindparam("at"))


def _flush(records: list[Record]) -> None:
    """Write the records of a batch, and put back the appointments that stay. Raises `Conflict` or `NotChanged`."""
    stay = [
        {"of": record.id, "at": record.appointment_datetime}
        for record in records
        if isinstance(record, Appointment) and record not in db.session.dirty
    ]
    first, last = records[0].id, records[-1].id
    try:
        if stay:
            db.session.connection().execute(_back, stay)
        models.save(records[0])
    except IntegrityError as error:
        if errors.constraint_of(error) != "ck_patients_discharged_after_admitted":
            raise
        raise NotChanged(
            "The discharge of a patient would come before their admission, as the clocks were put back between them: "
            f"one of patients {first} to {last}. Correct these dates first."
        ) from None
