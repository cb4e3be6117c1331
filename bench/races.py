"""Lets fifty clients book the same slot at once, of a doctor or of a patient. Exactly one may get it.

    python bench/races.py                                         # on SQLite
    DATABASE_URL=postgresql://… python bench/races.py             # on that server, in a database of its own

Runs the real server with two workers. Exit code 1 if two appointments or none hold a slot, or for an unexpected answer,
such as 500 or 503. On PostgreSQL, exit code 1 also for a deadlock, or an answer that takes a second.
"""

import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any

from server import Answer, Server, server

SLOWEST = 1.0  # seconds, on PostgreSQL
Call = Callable[[], Answer]


def _later(seconds: float, call: Call) -> Call:
    """Return the call that waits so long before."""

    def wait_and_call() -> Answer:
        time.sleep(seconds)
        return call()

    return wait_and_call


class Races:
    def __init__(self, at: Server) -> None:
        self.at = at
        self.faults: list[str] = []
        self.slowest = 0.0
        self.day = datetime(2031, 1, 1, 8, tzinfo=UTC)
        self.admin, self.admins_token = at.sign_up("admin")
        self.doctors = [at.sign_up() for _ in range(3)]
        self.patients = [self._patient() for _ in range(50)]

    def _patient(self) -> int:
        body = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712345678"}
        return int(self.at.call("POST", "/patients", body, self.admins_token).body["id"])

    def next_day(self) -> datetime:
        """Return a day that no race has used."""
        self.day += timedelta(days=1)
        return self.day

    def booking(self, doctor: int, patient: int, start: datetime, **fields: Any) -> Call:
        user_id, token = self.doctors[doctor]
        body = {
            "patient_id": self.patients[patient],
            "user_id": user_id,
            "appointment_datetime": start.isoformat(),
            **fields,
        }
        return lambda: self.at.call("POST", "/appointment", body, token)

    def booked(self, *given: Any, **fields: Any) -> int:
        made = self.booking(*given, **fields)()
        assert made.status == 201, made.body
        return int(made.body["id"])

    def change(self, appointment: int, **fields: Any) -> Call:
        return lambda: self.at.call("PATCH", f"/appointment/{appointment}", fields, self.admins_token)

    def run(self, name: str, calls: Iterable[Call], expected: dict[int, int] | set[int]) -> None:
        """Make all calls at once. `expected` maps each status to its count, or is the set of allowed statuses."""
        calls = list(calls)
        line = Barrier(len(calls))

        def go(call: Call) -> Answer:
            line.wait()
            return call()

        with ThreadPoolExecutor(len(calls)) as runners:
            answers = list(runners.map(go, calls))
        found = Counter(answer.status for answer in answers)
        slowest = max(answer.seconds for answer in answers)
        if name != "archiving meanwhile":  # a booking retries while the patient is archived
            self.slowest = max(self.slowest, slowest)
        right = dict(found) == expected if isinstance(expected, dict) else found.keys() <= expected
        print(f"{name}: {dict(sorted(found.items()))}, slowest {slowest * 1000:.0f} ms{'' if right else '  WRONG'}")
        if not right:
            self.faults.append(f"{name}: {dict(found)} where {expected} was due")
            self.faults += [str(a.body) for a in answers if a.status >= 500][:3]

    def all(self) -> None:
        day = self.next_day()
        self.run("one slot of a doctor", [self.booking(0, n, day) for n in range(50)], {201: 1, 409: 49})
        day = self.next_day()
        self.run("one patient, two doctors", [self.booking(n % 2, 0, day) for n in range(50)], {201: 1, 409: 49})
        day = self.next_day()
        starts = [day + timedelta(minutes=2 * n) for n in range(20)]
        overlapping = [self.booking(0, n, start, duration_minutes=45) for n, start in enumerate(starts)]
        self.run("20 overlapping starts", overlapping, {201: 1, 409: 19})
        day = self.next_day()
        moved = [self.booked(0, n, day + timedelta(minutes=30 * n)) for n in range(20)]
        target = (self.next_day()).isoformat()
        self.run(
            "20 moves to one slot", [self.change(n, appointment_datetime=target) for n in moved], {200: 1, 409: 19}
        )
        day = self.next_day()
        cancelled = [self.booked(0, n, day, status="cancelled") for n in range(20)]
        self.run("20 reactivations", [self.change(n, status="confirmed") for n in cancelled], {200: 1, 409: 19})
        day = self.next_day()
        theirs = [self.booked(n % 3, n, day + timedelta(minutes=30 * n)) for n in range(20)]
        doctor = self.doctors[0][0]
        target = self.next_day().isoformat()
        self.run(
            "20 changes of doctor and time",
            [self.change(n, user_id=doctor, appointment_datetime=target) for n in theirs],
            {200: 1, 409: 19},
        )
        self.all_mixed()
        self.absences()
        self.archiving()

    def all_mixed(self) -> None:
        """Bookings, moves, reactivations and changes of doctor, of few people in few hours."""
        chance = random.Random(4)
        for round_ in range(3):
            day = self.next_day()
            mine = [self.booked(n % 3, n, day + timedelta(hours=n)) for n in range(12)]
            mine += [self.booked(n % 3, n, day, status="cancelled") for n in range(12)]
            calls: list[Call] = []
            for _ in range(30):
                start = day + timedelta(minutes=15 * chance.randrange(16))
                kinds = [
                    self.booking(chance.randrange(3), chance.randrange(4), start),
                    self.change(chance.choice(mine), appointment_datetime=start.isoformat()),
                    self.change(chance.choice(mine), status=chance.choice(["scheduled", "cancelled"])),
                    self.change(chance.choice(mine), user_id=chance.choice(self.doctors)[0]),
                    self.change(chance.choice(mine), patient_id=self.patients[chance.randrange(4)]),
                ]
                calls.append(chance.choice(kinds))
            self.run(f"all mixed, {round_ + 1}", calls, {200, 201, 409})

    def absence(self, doctor: int, day: datetime, **fields: Any) -> Call:
        user_id, token = self.doctors[doctor]
        body = {"starts_at": day.isoformat(), "ends_at": (day + timedelta(hours=24)).isoformat(), **fields}
        return lambda: self.at.call("POST", f"/user/{user_id}/absences", body, token)

    def absences(self) -> None:
        """An absence against bookings, and hand-overs against each other, bookings and changes."""
        for round_ in range(5):
            day = self.next_day() + timedelta(days=1000)
            calls = [self.booking(0, n, day + timedelta(minutes=10 * n), duration_minutes=10) for n in range(39)]
            calls.insert(8 * round_, self.absence(0, day))
            self.run(f"39 bookings against one absence, {round_ + 1}", calls, {201, 409})
            booked, absent = (self.at.sql(f"SELECT count(*) FROM {what}")[0][0] for what in self._on(day))
            if bool(booked) == bool(absent):
                self.faults.append(f"{booked} appointments and {absent} absences on {day:%Y-%m-%d}")
        self.absences_that_may_win()
        (one, _), (other, _) = self.doctors[0], self.doctors[1]
        for round_ in range(5):
            day = self.next_day() + timedelta(days=1000)
            mine = [self.booked(n % 2, n, day + timedelta(minutes=30 * n)) for n in range(10)]
            calls = [self.absence(0, day, hand_over_to=other), self.absence(1, day, hand_over_to=one)]
            calls += [self.change(appointment, note="x") for appointment in mine]
            calls += [self.change(appointment, user_id=self.doctors[2][0]) for appointment in mine[:3]]
            calls += [self.booking(n % 2, 20 + n, day + timedelta(hours=6, minutes=30 * n)) for n in range(10)]
            self.run(f"crosswise hand-overs, {round_ + 1}", calls, {200, 201, 409})

    def absences_that_may_win(self) -> None:
        """Bookings that come a little later than the absence: in some rounds the absence is first."""
        won = 0
        for round_ in range(10):
            self.next_day()  # an absence of the day before touches this day
            day = self.next_day() + timedelta(days=1000)
            calls = [
                _later(
                    0.02 + 0.002 * round_ * n, self.booking(0, n, day + timedelta(minutes=10 * n), duration_minutes=10)
                )
                for n in range(39)
            ]
            self.run(f"an absence against 39 later bookings, {round_ + 1}", [self.absence(0, day), *calls], {201, 409})
            booked, absent = (self.at.sql(f"SELECT count(*) FROM {what}")[0][0] for what in self._on(day))
            won += not booked
            if bool(booked) == bool(absent):
                self.faults.append(f"{booked} appointments and {absent} absences on {day:%Y-%m-%d}")
        print(f"the absence was first in {won} of 10 rounds")
        if not won:
            self.faults.append("the absence was never first")

    def _on(self, day: datetime) -> tuple[str, str]:
        """Return the tables with the conditions for what the first doctor has on a day."""
        user_id, until = self.doctors[0][0], day + timedelta(hours=24)
        span = [f"'{time:%Y-%m-%d %H:%M:%S}'" for time in (day, until)]
        return (
            f"appointments WHERE user_id = {user_id} AND appointment_datetime BETWEEN {span[0]} AND {span[1]}",
            f"absences WHERE user_id = {user_id} AND starts_at < {span[1]} AND ends_at > {span[0]}",
        )

    def archiving(self) -> None:
        """Patients archived while their appointments are changed and booked."""
        day = self.next_day()
        theirs = {n: self.booked(n % 3, n, day + timedelta(minutes=30 * n)) for n in range(40, 50)}

        def archive(n: int) -> Call:
            return lambda: self.at.call("DELETE", f"/patient/{self.patients[n]}", token=self.admins_token)

        calls = [archive(n) for n in theirs]
        calls += [self.change(appointment, reason="x" * n) for appointment in theirs.values() for n in (1, 2, 3)]
        calls += [self.booking(n % 3, n, day + timedelta(days=400, minutes=30 * n)) for n in theirs]
        self.run("archiving meanwhile", calls, {200, 201, 404, 422})
        left = self.at.sql(
            "SELECT count(*) FROM appointments a JOIN patients p ON p.id = a.patient_id"
            " WHERE p.deleted_at IS NOT NULL AND a.deleted_at IS NULL"
        )[0][0]
        if left:
            self.faults.append(f"{left} appointments of archived patients are left")

    def overlaps(self) -> int:
        """Pairs in the table that overlap: of appointments that hold their slot, or of one and an absence."""
        ends = "a.appointment_datetime + a.duration_minutes * interval '1 minute' > b.appointment_datetime"
        if self.at.engine.dialect.name == "sqlite":
            ends = "unixepoch(a.appointment_datetime) + a.duration_minutes * 60 > unixepoch(b.appointment_datetime)"
        runs_into = ends.replace("b.appointment_datetime", "b.starts_at")
        held = "{0}.deleted_at IS NULL AND {0}.status IN ('pending', 'scheduled', 'confirmed', 'checked_in')"
        rows = self.at.sql(
            "SELECT count(*) FROM appointments a JOIN appointments b ON a.id <> b.id"
            " AND (a.user_id = b.user_id OR a.patient_id = b.patient_id)"
            f" AND a.appointment_datetime <= b.appointment_datetime AND {ends}"
            f" WHERE {held.format('a')} AND {held.format('b')}"
        )
        absent = self.at.sql(
            "SELECT count(*) FROM appointments a JOIN absences b ON a.user_id = b.user_id AND b.deleted_at IS NULL"
            f" AND b.ends_at > a.appointment_datetime AND {runs_into}"
            f" WHERE {held.format('a')}"
        )
        return int(rows[0][0] + absent[0][0])


def deadlocks(at: Server) -> int:
    if at.engine.dialect.name == "sqlite":
        return 0
    time.sleep(1.5)  # the server's counts come late
    return int(at.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0][0])


def main() -> int:
    with server() as at:
        races = Races(at)
        before = deadlocks(at)
        races.all()
        overlaps, new_deadlocks = races.overlaps(), deadlocks(at) - before
        booked = at.sql("SELECT count(*) FROM appointments")[0][0]
        engine = at.engine.dialect.name
        print(f"{engine}: {booked} appointments, {overlaps} overlap; {new_deadlocks} deadlocks", end="; ")
        print(f"slowest booking {races.slowest * 1000:.0f} ms")
        slow = engine == "postgresql" and races.slowest >= SLOWEST
        print(*races.faults, sep="\n")
        return int(bool(races.faults or overlaps or new_deadlocks or slow))


if __name__ == "__main__":
    sys.exit(main())
