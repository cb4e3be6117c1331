"""Makes a demonstration clinic: people, appointments without clashes, and reports with drawn pictures.

The same seed and first day make the same clinic; only the salt of the password hash differs. `_insert` inserts rows in
bulk, past the ORM, together with their words and their history. Reports go through the ORM.
"""

import gc
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby
from types import SimpleNamespace
from typing import Any, TypeVar

from sqlalchemy import Connection, func, select, text
from werkzeug.datastructures import FileStorage

from clinic import images, passwords, search
from clinic.demo_pictures import PICTURES
from clinic.history import chain as audit
from models import (
    Absence,
    Appointment,
    AppointmentStatus,
    Patient,
    PatientStatus,
    Record,
    Report,
    Role,
    Sex,
    User,
    Week,
    mrn_check_digit,
)
from server.database import db, insert_many
from server.times import clinic_zone

ADMIN_EMAIL, DESK_EMAIL = "admin@hosi.example", "desk@hosi.example"
CHUNK = 20_000  # rows per transaction: a running server waits for it, a few seconds at most
OPENS, SLOT, SLOTS_A_DAY = time(8), timedelta(minutes=30), 16
WORKDAYS = 10  # two weeks
Row = dict[str, Any]
Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True)
class Culture:
    """First and family names of one culture, and the beginning of its phone numbers."""

    female: Sequence[str]
    male: Sequence[str]
    family: Sequence[str]
    phone: str


def _culture(phone: str, female: str, male: str, family: str) -> Culture:
    return Culture(female.split(), male.split(), family.split(), phone)


CULTURES = (
    _culture(
        "+254 7",
        "Amina Wanjiru Akinyi Njeri Atieno Wambui Zawadi Halima Nekesa Chebet Moraa Fatuma",
        "Otieno Kamau Juma Kiprono Mwangi Barasa Omondi Wekesa Hassan Njoroge Baraka Kipchoge",
        "Ochieng Kariuki Mutua Achieng Odhiambo Koech Maina Wafula Cheruiyot Nyambura Abdi Gitau Makena Simiyu",
    ),
    _culture(
        "+234 80",
        "Ngozi Chiamaka Folake Adaeze Yetunde Zainab Ifeoma Simisola Hadiza Temitope",
        "Chinedu Babatunde Emeka Tunde Ibrahim Oluwaseun Ikenna Musa Segun Obinna",
        "Okafor Adeyemi Nwosu Balogun Eze Abubakar Ogunleye Chukwu Danjuma Olawale Uche Bello",
    ),
    _culture(
        "+91 98",
        "Priya Ananya Lakshmi Meera Kavita Shreya Divya Fatima Harpreet Sunita",
        "Arjun Rahul Vikram Sanjay Imran Rohan Gurpreet Karthik Anil Suresh",
        "Sharma Patel Iyer Singh Reddy Khan Mukherjee Nair Gupta Desai Pillai Chowdhury",
    ),
    _culture(
        "+20 10",
        "Layla Nour Mariam Salma Yasmin Rania Huda Dina Samira Aisha",
        "Omar Youssef Karim Tariq Mahmoud Khalid Sami Hossam Ziad Mustafa",
        "Hassan Mansour El-Sayed Farouk Haddad Nasser Khalil Saleh Ibrahim Aziz Shahin Darwish",
    ),
    _culture(
        "+52 55",
        "Lucía Valentina Camila Ximena Sofía Daniela Fernanda Guadalupe Inés Paula",
        "Mateo Santiago Diego Tomás Andrés Joaquín Emilio Rafael Héctor Julián",
        "García Hernández Rodríguez Morales Castillo Vargas Núñez Ortega Ríos Peña Salazar Delgado",
    ),
    _culture(
        "+48 60",
        "Zofia Katarzyna Agnieszka Małgorzata Hanna Weronika Ewa Joanna",
        "Jakub Piotr Tomasz Michał Łukasz Krzysztof Marek Stanisław",
        "Nowak Wójcik Kamiński Zieliński Szymański Dąbrowski Kozłowski Mazur Krawczyk Piotrowski",
    ),
    _culture(
        "+84 90",
        "Linh Hương Thảo Mai Ngọc Lan Trang Phương",
        "Minh Tuấn Hùng Dũng Khoa Long Quân Việt",
        "Nguyễn Trần Lê Phạm Hoàng Vũ Đặng Bùi Đỗ Ngô",
    ),
    _culture(
        "+44 77",
        "Emily Charlotte Olivia Grace Niamh Eleanor Isla Harriet Megan Alice",
        "Oliver Jack George Thomas Callum Ewan Henry Rhys Samuel Edward",
        "Walsh Taylor O'Brien Campbell Hughes Wright Robertson Clarke Bennett Morgan Ashworth Macleod",
    ),
)

DIAGNOSES = (
    ("Malaria", "Fever and chills for three days; rapid test positive."),
    ("Type 2 diabetes", "Polyuria and thirst; fasting glucose raised. Diet discussed."),
    ("Hypertension", "Found at a routine check; no symptoms. Home readings asked for."),
    ("Asthma", "Wheeze at night, better after salbutamol."),
    ("Pneumonia", "Productive cough, crackles at the right base; chest X-ray ordered."),
    ("Fracture of the distal radius", "Fell on the outstretched hand; plaster for six weeks."),
    ("Iron deficiency anaemia", "Tired for months; ferritin low."),
    ("Acute appendicitis", "Pain moved to the right iliac fossa; surgeon informed."),
    ("Migraine", "Throbbing, one-sided, with aura; triptan tried."),
    ("Normal pregnancy", "Twenty-second week; growth as expected."),
    ("Gastroenteritis", "Diarrhoea since yesterday; drinks well."),
    ("Atrial fibrillation", "Irregular pulse; ECG confirms. Anticoagulation begun."),
    ("Osteoarthritis of the knee", "Worse on stairs; physiotherapy."),
    ("Cataract", "Glare while driving; listed for surgery."),
    ("Eczema", "Flexures; emollients and a mild steroid."),
    ("", "First visit; results are awaited."),
)
REASONS = (
    "Follow-up",
    "First visit",
    "Blood pressure check",
    "Results",
    "Vaccination",
    "Wound check",
    "Prescription",
    "",
)
STATUSES = (
    (PatientStatus.OUTPATIENT,) * 6
    + (PatientStatus.ADMITTED, PatientStatus.ONGOING) * 2
    + (
        PatientStatus.HEALED,
        PatientStatus.DISCHARGED,
        PatientStatus.DISCHARGED,
        PatientStatus.TRANSFERRED,
        PatientStatus.CRITICAL,
        PatientStatus.DECEASED,
    )
)
HAVE_LEFT = {PatientStatus.HEALED, PatientStatus.DISCHARGED, PatientStatus.TRANSFERRED, PatientStatus.DECEASED}
BEFORE = (AppointmentStatus.COMPLETED,) * 8 + (AppointmentStatus.NO_SHOW, AppointmentStatus.CANCELLED)
TO_COME = (AppointmentStatus.SCHEDULED, AppointmentStatus.CONFIRMED) * 4 + (
    AppointmentStatus.PENDING,
    AppointmentStatus.CANCELLED,
)


@dataclass(slots=True)
class Clinic:
    """The size of the clinic to make, and the ids of the people made so far."""

    patients: int
    doctors: int
    appointments: int
    reports: int
    password: str
    first_day: date  # of the appointments
    chance: random.Random
    progress: Callable[[int], None]
    doctor_ids: Sequence[int] = ()
    patient_ids: Sequence[int] = ()

    def make(self) -> None:
        """Make the clinic, in transactions of `CHUNK` rows."""
        gc.disable()  # takes a fifth of the time and finds nothing
        try:
            self._make_staff()
            self.patient_ids = self._write(Patient, self._patients())
            self._write(Appointment, self._appointments())
        finally:
            gc.enable()
        self._make_hours()
        self._make_absences()
        for number in range(self.reports):
            self._file_report(number)

    @property
    def opened(self) -> datetime:
        """The `created_at` of all records: midnight of the first day."""
        return datetime.combine(self.first_day, time(), clinic_zone()).astimezone(UTC)

    # --- People ---

    def _choose(self, choices: Sequence[Choice]) -> Choice:
        """Return a random element; three times as fast as `random.choice`."""
        return choices[int(self.chance.random() * len(choices))]

    def _person(self) -> tuple[str, str, Sex, Culture]:
        culture = self._choose(CULTURES)
        sex = self._choose((Sex.FEMALE, Sex.MALE))
        given = culture.female if sex is Sex.FEMALE else culture.male
        return self._choose(given), self._choose(culture.family), sex, culture

    def _make_staff(self) -> None:
        with db.engine.connect() as connection:
            taken = set(connection.scalars(select(User.email)))
        password = passwords.hash_password(self.password, ADMIN_EMAIL)  # all users share it: bcrypt is slow on purpose
        staff = {"password": password, "is_active": True}
        others = (("Ada", "Admin", ADMIN_EMAIL, Role.ADMIN), ("Rosa", "Desk", DESK_EMAIL, Role.RECEPTIONIST))
        self._write(
            User,
            iter(
                {"first_name": first_name, "last_name": last_name, "email": email, "role": str(role)} | staff
                for first_name, last_name, email, role in others
                if email not in taken
            ),
        )
        doctors = []
        for _ in range(self.doctors):
            first_name, last_name, _, _ = self._person()
            email = _email(first_name, last_name, taken)
            taken.add(email)
            doctors.append(
                {"first_name": first_name, "last_name": last_name, "email": email, "role": str(Role.DOCTOR)} | staff
            )
        self.doctor_ids = self._write(User, iter(doctors))

    def _patients(self) -> Iterator[Row]:
        numbers = _record_numbers(self.chance, self.patients)
        chance, choice, opened = self.chance.random, self._choose, self.opened
        for mrn in numbers:
            first_name, last_name, sex, culture = self._person()
            diagnosis, summary = choice(DIAGNOSES)
            status = choice(STATUSES)
            admitted_at = discharged_at = None
            if status is not PatientStatus.OUTPATIENT:
                admitted_at = opened - timedelta(minutes=int(chance() * 40 * 1440))
                if status in HAVE_LEFT:
                    discharged_at = min(admitted_at + timedelta(minutes=int(chance() * 12 * 1440)), opened)
            yield {
                "mrn": mrn,
                "first_name": first_name,
                "last_name": last_name,
                "phone_number": f"{culture.phone}{int(chance() * 100):02} {int(chance() * 1_000_000):06}",
                "status": str(status),
                "doctor_summary": summary,
                "diagnosis": diagnosis,
                "admitted_at": admitted_at,
                "discharged_at": discharged_at,
                "date_of_birth": self.first_day - timedelta(days=int(365.25 * 95 * chance() ** 1.4)),
                "sex": str(sex),
            }

    # --- Appointments ---

    def _appointments(self) -> Iterator[Row]:
        """Draw appointments from a grid of slots and lanes, so that no two clash.

        In a slot each lane has another doctor, and no patient is drawn twice.
        """
        lanes, days = self._lanes, self._days
        cells = sorted(self.chance.sample(range(days * SLOTS_A_DAY * lanes), self.appointments))
        today = datetime.now(UTC)
        for slot, at_once in groupby(cells, key=lambda cell: cell // lanes):
            day, number = divmod(slot, SLOTS_A_DAY)
            start = (
                datetime.combine(_workday(self.first_day, day), OPENS, clinic_zone()).astimezone(UTC) + number * SLOT
            )
            chosen = list(at_once)
            patients = self.chance.sample(self.patient_ids, len(chosen))
            for cell, patient_id in zip(chosen, patients, strict=True):
                yield {
                    "appointment_datetime": start,
                    "duration_minutes": self.chance.choice((15, 20, 30, 30)),
                    "status": str(self.chance.choice(BEFORE if start < today else TO_COME)),
                    "reason": self.chance.choice(REASONS),
                    "note": "",
                    "overbooked": False,
                    "off_hours": False,
                    "patient_id": patient_id,
                    "user_id": self.doctor_ids[(cell + slot) % lanes],
                }

    @property
    def _lanes(self) -> int:
        return min(len(self.doctor_ids), len(self.patient_ids))

    @property
    def _days(self) -> int:
        return max(WORKDAYS, -(-self.appointments // (SLOTS_A_DAY * self._lanes or 1)))

    # --- Hours and absences ---

    def _make_hours(self) -> None:
        """Give all doctors but the last one hours of their own. No appointment lies outside of them."""
        for doctor_id in self.doctor_ids[:-1]:
            week = Week(id=doctor_id)
            week.set_hours([(weekday, 8 * 60, 17 * 60) for weekday in range(5)])
            db.session.add(week)
        db.session.commit()

    def _make_absences(self) -> None:
        """Make two absences: an hour of the first day, after the last slot, and the week after the last day."""
        monday = self.first_day + timedelta(weeks=-(-self._days // 5))
        spans = (
            (self.first_day, time(16), self.first_day, time(17), "Training"),
            (monday, time(), monday + timedelta(days=5), time(), "Annual leave"),
        )
        for doctor_id, (first, starts, last, ends, reason) in zip(self.doctor_ids, spans, strict=False):
            span = datetime.combine(first, starts, clinic_zone()), datetime.combine(last, ends, clinic_zone())
            absence = Absence(user_id=doctor_id, starts_at=span[0], ends_at=span[1], reason=reason)
            db.session.add(absence)
        db.session.commit()

    # --- Reports ---

    def _file_report(self, number: int) -> None:
        """File a report as a request does, by the ORM and the image store."""
        kind, draw = self.chance.choice(PICTURES)
        diagnosis, _ = self.chance.choice(DIAGNOSES[:-1])
        files = [
            FileStorage(draw(self.chance), f"{kind}-{number}-{image}.png")
            for image in range(1 + (self.chance.random() < 0.5))
        ]
        people = {"patient_id": self.chance.choice(self.patient_ids), "user_id": self.chance.choice(self.doctor_ids)}
        with images.uploaded(files) as uploads:
            report = Report(diagnosis=f"{kind}: {diagnosis}.", **people)
            uploads.attach_to(report)
            db.session.add(report)
            db.session.commit()
        self.progress(1)

    # --- Writing ---

    def _write(self, kind: type[Record], rows: Iterator[Row]) -> Sequence[int]:
        """Insert the rows, a chunk per transaction, and return their ids."""
        ids: list[int] = []
        with _bulky_connection() as connection:
            while chunk := [row for _, row in zip(range(CHUNK), rows, strict=False)]:
                with connection.begin():
                    ids += _insert(connection, kind, chunk, self.opened)
                self.progress(len(chunk))
        return ids


# SQLite settings for a bulk insert: fewer checkpoints, and a cache for whole indexes, since names come in no order.
BULKY = {"cache_size": -256 * 1024, "wal_autocheckpoint": 50_000}


@contextmanager
def _bulky_connection() -> Iterator[Connection]:
    with db.engine.connect() as connection:
        if connection.dialect.name != "sqlite":
            yield connection
            return
        driver: Any = connection.connection.driver_connection
        usual = {name: driver.execute(f"PRAGMA {name}").fetchone()[0] for name in BULKY}
        try:
            for name, value in BULKY.items():
                driver.execute(f"PRAGMA {name}={value}")
            yield connection
        finally:
            for name, value in usual.items():
                driver.execute(f"PRAGMA {name}={value}")


def _insert(connection: Connection, kind: type[Record], rows: list[Row], at: datetime) -> Sequence[int]:
    """Insert records together with their words and their history, and return their ids."""
    ids = _new_ids(connection, kind, len(rows))
    for record_id, row in zip(ids, rows, strict=True):
        row.update(id=record_id, created_at=at, updated_at=at, version=1)
    insert_many(connection, kind, tuple(rows[0]), [tuple(row.values()) for row in rows])
    if kind is Patient or kind is User:
        search.insert_words(connection, kind, [SimpleNamespace(**row) for row in rows])
    audit.write(connection, [audit.created(kind, row) for row in rows], heads={})
    return ids


def _new_ids(connection: Connection, kind: type[Record], count: int) -> Sequence[int]:
    """Return new ids of this kind. On SQLite no other transaction writes meanwhile."""
    if connection.dialect.name == "sqlite":
        last = connection.scalar(
            text("SELECT seq FROM sqlite_sequence WHERE name = :table"), {"table": kind.__tablename__}
        )
        first = (last or 0) + 1
        return range(first, first + count)
    drawn = text("SELECT nextval(pg_get_serial_sequence(:table, 'id')) FROM generate_series(1, :count)")
    return list(connection.scalars(drawn, {"table": kind.__tablename__, "count": count}))


def _email(first_name: str, last_name: str, taken: set[str]) -> str:
    plain = unicodedata.normalize("NFKD", f"{first_name}.{last_name}".lower().translate(str.maketrans("łđ", "ld")))
    name = re.sub(r"[^a-z.-]", "", plain)
    candidates = (f"{name}{number or ''}@hosi.example" for number in range(len(taken) + 1))
    return next(email for email in candidates if email not in taken)


def _record_numbers(chance: random.Random, count: int) -> Iterator[str]:
    """Yield unused medical record numbers. The step shares no factor with 900 million, so numbers do not repeat."""
    with db.engine.connect() as connection:
        taken = set(connection.scalars(select(Patient.mrn)))
    place = chance.randrange(900_000_000)
    while count:
        place = (place + 654_188_429) % 900_000_000
        digits = str(100_000_000 + place)
        mrn = digits + mrn_check_digit(digits)
        if mrn not in taken:
            count -= 1
            yield mrn


def _workday(first: date, number: int) -> date:
    """Return the nth working day after `first`, which is a Monday."""
    weeks, day = divmod(number, 5)
    return first + timedelta(weeks=weeks, days=day)


# --- What there is ---


def is_empty() -> bool:
    """Return whether there are no patients yet."""
    with db.engine.connect() as connection:
        return not connection.scalar(select(func.count()).select_from(select(Patient.id).limit(1).subquery()))


def logins(most: int) -> Sequence[tuple[str, str]]:
    """Return the email and role of the first `most` demonstration users, doctors last."""
    made = User.live().with_only_columns(User.email, User.role).where(User.email.like("%@hosi.example"))
    with db.engine.connect() as connection:
        rows = connection.execute(made.order_by(User.role == Role.DOCTOR, User.role, User.id).limit(most))
        return [(row.email, row.role) for row in rows]
