"""Measures what the constraints against double booking cost: the same INSERT with them and without them.

    python bench/booking.py                                       # on SQLite
    DATABASE_URL=postgresql://… python bench/booking.py           # on that server, in databases of its own

Makes two databases with 20,000 appointments each, and drops the constraints in the second. Bookings alternate between
them, each in a transaction. Exit code 1 if the median booking, or its INSERT alone, takes over twice as long with the
constraints as without.
"""

import statistics
import sys
import tempfile
import time
from datetime import datetime, timedelta

from sqlalchemy import Connection, event, text

from server import Server, database

DOCTORS, DAYS, A_DAY = 50, 25, 16  # appointments of half an hour: 20,000
BOOKINGS = 1000
LIMIT = 2.0

INSERT = text(
    "INSERT INTO appointments (appointment_datetime, duration_minutes, status, reason, overbooked, patient_id, user_id,"
    " created_at, updated_at, version)"
    " VALUES (:at, 30, 'scheduled', '', false, :who, :who, '2026-01-01 00:00:00', '2026-01-01 00:00:00', 1)"
)


def fill(connection: Connection) -> None:
    stamps = "'2026-01-01 00:00:00', '2026-01-01 00:00:00', 1"
    for n in range(1, DOCTORS + 1):
        connection.exec_driver_sql(
            "INSERT INTO users (id, first_name, last_name, email, password, role, is_active, created_at, updated_at,"
            f" version) VALUES ({n}, 'A', 'B', 'a{n}@clinic.test', '', 'doctor', true, {stamps})"
        )
        connection.exec_driver_sql(
            "INSERT INTO patients (id, mrn, first_name, last_name, phone_number, status, doctor_summary, diagnosis,"
            f" created_at, updated_at, version) VALUES ({n}, '{n}', 'A', 'B', '0712', 'admitted', '', '', {stamps})"
        )
    rows = [
        {"at": stamp(day, half), "who": who}
        for who in range(1, DOCTORS + 1)
        for day in range(DAYS)
        for half in range(A_DAY)
    ]
    connection.execute(INSERT, rows)


def stamp(day: int, half: int) -> str:
    start = datetime(2031, 1, 1, 8) + timedelta(days=day, minutes=30 * half)  # noqa: DTZ001
    return start.isoformat(" ", "microseconds")


def _as_the_server(one: Server) -> None:
    """What models.py tells SQLite."""

    @event.listens_for(one.engine, "connect")
    def _connect(connection: object, _: object) -> None:
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]


def drop_constraints(one: Server) -> None:
    if one.engine.dialect.name == "sqlite":
        drops = one.sql("SELECT 'DROP TRIGGER ' || name FROM sqlite_master WHERE type = 'trigger'")
    else:
        drops = one.sql(
            "SELECT 'ALTER TABLE appointments DROP CONSTRAINT ' || conname FROM pg_constraint WHERE contype = 'x'"
        )
    assert drops
    for (drop,) in drops:
        one.sql(drop)


def timed(connection: Connection, day: int, half: int, who: int) -> tuple[float, float]:
    """Return the seconds of a booking: of its transaction, and of the INSERT alone."""
    began = time.perf_counter()
    connection.execute(INSERT, {"at": stamp(day, half), "who": who})
    inserted = time.perf_counter()
    connection.commit()
    return time.perf_counter() - began, inserted - began


def measure(guarded: Server, plain: Server) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return for each pair of bookings the results of `timed`, with the constraints and without."""
    times = []
    with guarded.engine.connect() as guarded_connection, plain.engine.connect() as plain_connection:
        for connection in (guarded_connection, plain_connection):
            fill(connection)
            connection.exec_driver_sql("ANALYZE")
            connection.commit()
        for n in range(BOOKINGS):
            half = A_DAY + n // DOCTORS % 4  # the free hours of the day
            slot = (n // DOCTORS // 4, half, 1 + n % DOCTORS)
            times.append((timed(guarded_connection, *slot), timed(plain_connection, *slot)))
    return times


def main() -> int:
    with (
        tempfile.TemporaryDirectory() as folder,
        database(folder) as url,
        database(folder, "plain") as plain_url,
    ):
        guarded, plain = Server(url, folder), Server(plain_url, folder)
        drop_constraints(plain)
        engine = guarded.engine.dialect.name
        if engine == "sqlite":
            _as_the_server(guarded)
            _as_the_server(plain)
        times = measure(guarded, plain)
    worst = 0.0
    for part, name in enumerate(("booking", "INSERT alone")):
        with_them, without = (statistics.median(pair[side][part] for pair in times) for side in (0, 1))
        worst = max(worst, with_them / without)
        print(f"{engine}: {name} {with_them * 1e6:.0f} µs, without constraints {without * 1e6:.0f} µs", end=": ")
        print(f"{with_them / without:.2f} x (at most {LIMIT:.0f})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
