"""Changes the time zone of the clinic: `flask timezone`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from flask import current_app
from sqlalchemy import Connection, Table, bindparam, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.attributes import set_committed_value

from clinic.history import chain
from clinic.timezone import ENTERED, has_times, unknown
from models import HOLDING, Absence, Appointment, Clinic, Patient, Record
from server.database import db, in_transaction, reader, upsert
from server.times import instant_of

WARNING = (
    "Times that came with an offset moved, too: the database does not say which these are. Look at them in the "
    "history: GET /audit."
)
BATCH = 500  # records in memory together
FOUR_CENTURIES = timedelta(days=146_097)  # records put aside lie so much earlier, where no other record lies
ASIDE: tuple[type[Record], ...] = (
    Absence,
    Appointment,
)  # are put aside: on its way from time to time one would meet another


class NotChanged(Exception):
    """The zone was not changed; the message says why."""


@dataclass(slots=True)
class Moves:
    """What a change of the zone moved."""

    counts: dict[str, int] = field(default_factory=dict)  # of times, by "table.column"
    gaps: list[str] = field(default_factory=list)  # the records with a time that the new zone does not have


def count_records() -> int:
    """Return the number of records that may have entered times."""
    with reader() as connection:
        return sum(connection.scalar(select(func.count()).select_from(kind.__table__)) or 0 for kind in ENTERED)


def change_timezone(zone: str, keep_wall_clock: bool, dry_run: bool, advance: Callable[[int], None]) -> Moves:
    """Store the zone. With `keep_wall_clock`, move every entered time so that it shows what it showed before.

    Everything is one transaction; with `dry_run` it is rolled back. `advance` gets the number of records done.
    Raises `NotChanged`, or `WrongAuditKey`.
    """

    def change() -> Moves:
        connection = db.session.connection()
        if connection.dialect.name == "postgresql":
            connection.execute(text("LOCK TABLE patients, absences, appointments IN SHARE ROW EXCLUSIVE MODE"))
        old = connection.scalar(select(Clinic.timezone))
        keeps = keep_wall_clock and has_times(connection)
        if keeps and old is None:
            raise NotChanged(unknown().msg)
        _store(connection, old, zone)
        moves = _keep_wall_clocks(_zone(str(old)), advance) if keeps else Moves()
        if dry_run:
            db.session.rollback()
        return moves

    setting = current_app.config["TIMEZONE"]
    current_app.config["TIMEZONE"] = zone  # the history is written, and times are read, under the new zone
    try:
        return in_transaction(change)
    finally:
        current_app.config["TIMEZONE"] = setting


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except ZoneInfoNotFoundError:
        raise NotChanged(f"Times were entered under {name}, a zone that this machine does not know.") from None


def _store(connection: Connection, old: str | None, zone: str) -> None:
    insert = upsert(Clinic).values(id=1, timezone=zone)
    connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_={"timezone": zone}))
    if old != zone:
        chain.write(connection, [chain.Event(*chain.CLINIC, "change", None, {"timezone": [old, zone]})])


def _keep_wall_clocks(old: ZoneInfo, advance: Callable[[int], None]) -> Moves:
    """Move the entered times of all records from the old zone to the new, archived records too. Commits nothing.

    Raises `NotChanged` if times would overlap then.
    """
    moves = Moves()
    _refuse_overlaps(old)
    for kind in ASIDE:
        _put_aside(kind)
    for kind, names in ENTERED.items():
        for records in _batches(kind):
            for record in records:
                for name in names:
                    _move(record, name, old, moves)
                _refuse_backward_stay(record)
            _write(records)
            advance(len(records))
            db.session.expunge_all()
    return moves


def _moved(instant: datetime, old: ZoneInfo) -> tuple[datetime, bool]:
    """Return the instant at which the new zone shows what the old zone showed, and whether it shows that at all.

    A time that the clocks of the new zone are put forward over becomes the end of that gap.
    """
    shown = instant.astimezone(old)
    wall = shown.replace(tzinfo=None, fold=0)
    moved = instant_of(wall, last=bool(shown.fold))
    return moved, moved.astimezone(ZoneInfo(current_app.config["TIMEZONE"])).replace(tzinfo=None, fold=0) == wall


def _refuse_overlaps(old: ZoneInfo) -> None:
    """Raise `NotChanged` if two appointments would overlap, for their doctor or their patient."""
    holding = (
        select(Appointment.id, Appointment.user_id, Appointment.patient_id)
        .add_columns(Appointment.appointment_datetime, Appointment.duration_minutes)
        .where(Appointment.status.in_(HOLDING), Appointment.overbooked.is_(False), Appointment.deleted_at.is_(None))
    )
    slots = [
        (_moved(row.appointment_datetime, old)[0], row.duration_minutes, row) for row in db.session.execute(holding)
    ]
    for side in ("user_id", "patient_id"):
        slots.sort(key=lambda slot: (getattr(slot[2], side), slot[0]))
        for (start, minutes, one), (following, _, other) in pairwise(slots):
            if getattr(one, side) == getattr(other, side) and following < start + timedelta(minutes=minutes):
                both = " and ".join(
                    f"{row.id} ({row.appointment_datetime.astimezone(old):%Y-%m-%d %H:%M})" for row in (one, other)
                )
                raise NotChanged(
                    f"Appointments {both} would overlap by the clocks of {current_app.config['TIMEZONE']}. "
                    "Move or cancel one of them first."
                )


def _write(records: list[Record]) -> None:
    """Write the moves. Raises `NotChanged` where a time would overlap an absence."""
    try:
        _put_back(records)
        db.session.flush()
    except IntegrityError:
        zone = current_app.config["TIMEZONE"]
        raise NotChanged(
            f"An absence would overlap another one or an appointment by the clocks of {zone}. Archive it first."
        ) from None


def _put_aside(kind: type[Record]) -> None:
    days, table = -FOUR_CENTURIES.days, cast(Table, kind.__table__)
    aside: dict[str, Any] = {
        name: text(
            f"strftime('%Y-%m-%d %H:%M:%f000', {name}, '{days} days')"
            if db.engine.dialect.name == "sqlite"
            else f"{name} + interval '{days * 24} hours'"
        )
        for name in ENTERED[kind]
    }
    db.session.connection().execute(update(table).values(**aside, updated_at=table.c.updated_at))


def _batches(kind: type[Record]) -> Iterator[list[Record]]:
    last = 0
    while records := list(db.session.scalars(select(kind).where(kind.id > last).order_by(kind.id).limit(BATCH))):
        last = records[-1].id
        yield records


def _move(record: Record, name: str, old: ZoneInfo, moves: Moves) -> None:
    """Give an entered time its instant in the new zone, and count it."""
    column = f"{record.__tablename__}.{name}"
    moves.counts.setdefault(column, 0)
    instant: datetime | None = getattr(record, name)
    if isinstance(record, ASIDE) and instant:
        instant += FOUR_CENTURIES
        set_committed_value(record, name, instant)
    if instant is None or instant.microsecond % 1000:  # the server's own clock: clients write milliseconds at most
        return
    moved, is_shown = _moved(instant, old)
    if moved != instant:
        setattr(record, name, moved)
        moves.counts[column] += 1
    if not is_shown:
        moves.gaps.append(f"{record.noun()} {record.id}")


def _refuse_backward_stay(record: Record) -> None:
    if not isinstance(record, Patient) or not record.admitted_at or not record.discharged_at:
        return
    if record.discharged_at < record.admitted_at:
        first = "Restore the patient and correct" if record.deleted_at else "Correct"
        raise NotChanged(
            f"The discharge of patient {record.id} would come before the admission, as the clocks are changed "
            f"between them. {first} these dates first."
        )


def _put_back(records: list[Record]) -> None:
    """Put back the times that were put aside and keep their instant. The flush writes those that have changed."""
    kind = type(records[0])
    if kind not in ASIDE:
        return
    table = cast(Table, kind.__table__)
    back = update(table).where(table.c.id == bindparam("of"))
    back = back.values({name: bindparam(f"at_{name}") for name in ENTERED[kind]} | {"updated_at": table.c.updated_at})
    partly = len(ENTERED[kind]) > 1  # then a time may stay while another of the record changes
    unmoved = [
        {"of": record.id, **{f"at_{name}": getattr(record, name) for name in ENTERED[kind]}}
        for record in records
        if partly or record not in db.session.dirty
    ]
    if unmoved:
        db.session.connection().execute(back, unmoved)
