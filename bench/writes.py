"""Measures writes through the real server, with 1 and 16 writers, against the same statements by the bare driver.

    python bench/writes.py                                       # on SQLite
    DATABASE_URL=postgresql://… python bench/writes.py           # on that server, in databases of its own

The statements of a write are recorded from the application in this process. Then a single connection of the driver
executes them on a database of the same content, each write as a transaction, with the same fsync. The server has two
workers. On SQLite one transaction writes at a time, and the latency of 16 writers is that of waiting.
"""

import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sqlalchemy import create_engine, event  # noqa: E402
from sqlalchemy.pool import NullPool  # noqa: E402

from bench import __main__ as bench  # noqa: E402
from bench.server import Server, database  # noqa: E402
from server import logs  # noqa: E402
from testing.fill import fill  # noqa: E402

PATIENTS, DOCTORS = 1_000, 50
RECORDED = 150  # writes that the bare driver repeats
WRITERS = (1, 16)
SECONDS = 3.0

Request = tuple[str, str, dict[str, Any]]  # method, path, body
Step = tuple[str, Any, bool]  # statement, parameters, whether they are many


def new_patient(number: int) -> Request:
    return "POST", "/patients", {"first_name": "Amina", "last_name": f"Wanjiru {number}", "phone_number": "0712345678"}


def new_appointment(number: int) -> Request:
    at = datetime(2031, 1, 1, 8) + timedelta(minutes=30 * (number // DOCTORS))  # noqa: DTZ001
    who = {"patient_id": number % PATIENTS + 1, "user_id": number % DOCTORS + 2}
    return "POST", "/appointment", who | {"appointment_datetime": at.isoformat()}


def changed_patient(number: int) -> Request:
    return "PATCH", f"/patient/{number % PATIENTS + 1}", {"doctor_summary": f"seen {number} times"}


KINDS: dict[str, Callable[[int], Request]] = {
    "POST /patients": new_patient,
    "POST /appointment": new_appointment,
    "PATCH /patient/<id>": changed_patient,
}


def prepared(url: str, folder: str) -> bench.Asker:
    """Return a client of the application in this process, on a database with patients and doctors."""
    return bench.serve(url, folder, patients=PATIENTS, appointments=DOCTORS)[0]


def recorded(asker: bench.Asker, kind: Callable[[int], Request]) -> list[list[Step]]:
    """Return the statements of each write."""
    writes: list[list[Step]] = []
    with asker.app.app_context():
        engine = asker.app.extensions["sqlalchemy"].engine

    def note(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        writes[-1].append((statement, parameters, many and isinstance(parameters, list)))

    event.listen(engine, "before_cursor_execute", note)
    for number in range(RECORDED):
        method, path, body = kind(number)
        writes.append([])
        asker.ask(asker.environ(path, method, **body)())
    event.remove(engine, "before_cursor_execute", note)
    return writes


def by_the_driver(url: str, writes: list[list[Step]]) -> float:
    """Return how many of the writes the driver does in a second."""
    engine = create_engine(url, poolclass=NullPool)
    pooled = engine.raw_connection()
    connection: Any = pooled.driver_connection
    if engine.dialect.name == "sqlite":
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")
    times = []
    for steps in writes:
        began = time.perf_counter()
        cursor = connection.cursor()
        for statement, parameters, many in steps:
            (cursor.executemany if many else cursor.execute)(statement, parameters)
            if cursor.description:
                cursor.fetchall()
        connection.commit()
        times.append(time.perf_counter() - began)
    pooled.close()
    return 1 / statistics.mean(times)


def by_the_server(one: Server, token: str, kind: Callable[[int], Request], writers: int, first: int) -> list[float]:
    """Return the seconds of each write of some writers, who write for SECONDS."""
    until, taken = time.monotonic() + SECONDS, []

    def write(writer: int) -> None:
        number = first + writer
        while time.monotonic() < until:
            method, path, body = kind(number)
            answer = one.call(method, path, body, token)
            assert answer.status in (200, 201), answer.body
            taken.append(answer.seconds)
            number += writers

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def figures(folder: str) -> Iterator[str]:
    drivers = {}
    for n, (name, kind) in enumerate(KINDS.items()):
        with database(folder, f"recorded{n}") as source, database(folder, f"repeated{n}") as target:
            asker = prepared(source, folder)
            prepared(target, folder)
            drivers[name] = by_the_driver(target, recorded(asker, kind))
    with database(folder) as url:
        one = Server(url, folder, TIMEZONE=bench.ZONE)
        try:
            one.start()
            _, token = one.sign_up("admin")
            fill(one.engine, patients=PATIENTS, appointments=DOCTORS)
            first = 1_000
            for name, kind in KINDS.items():
                for writers in WRITERS:
                    taken = sorted(by_the_server(one, token, kind, writers, first))
                    first += 1_000_000
                    rate = len(taken) / SECONDS
                    p50, p99 = (taken[int(len(taken) * part)] * 1000 for part in (0.5, 0.99))
                    yield (
                        f"| {name} | {writers} | {rate:.0f} | {drivers[name]:.0f} | {rate / drivers[name]:.2f} x "
                        f"| {p50:.1f} | {p99:.1f} | {taken[-1] * 1000:.0f} |"
                    )
        finally:
            one.stop()


def main() -> int:
    logs.set_up("WARNING", stream=open(os.devnull, "w"))  # noqa: SIM115
    print("| what | writers | writes a second | the driver alone, one connection | | p50 ms | p99 ms | longest ms |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for line in figures(folder):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
