"""Prints one table: what requests cost, against a floor measured in the same run or against a smaller table.

    python -m bench [sqlite] [postgresql] [--save]

PostgreSQL is the server at TEST_DATABASE_URL; without it, the bench starts a server. Exit code 1 if a figure misses its
mark. Figures are medians of interleaved rounds. CPU is that of this process, which on SQLite includes the database's.
"""

import contextlib
import gc
import json
import os
import platform
import re
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bcrypt  # noqa: E402
import psycopg2  # noqa: E402
from flask import Flask  # noqa: E402
from sqlalchemy import insert  # noqa: E402
from werkzeug.test import EnvironBuilder  # noqa: E402

from app import create_app  # noqa: E402
from bench import load  # noqa: E402
from bench.floor import create_floor  # noqa: E402
from models import Appointment, Report  # noqa: E402
from server import logs  # noqa: E402
from testing.fill import RARE, fill  # noqa: E402
from testing.postgresql import empty_database, postgresql_server  # noqa: E402
from testing.statements import counted_statements  # noqa: E402

KEYS = {name: secret * 40 for name, secret in (("SECRET_KEY", "s"), ("JWT_SECRET_KEY", "j"), ("AUDIT_KEY", "a"))}
ZONE = "Africa/Nairobi"
PASSWORD = "correct horse battery"
ADA = {"first_name": "Ada", "last_name": "Otieno", "email": "ada@clinic.test", "password": PASSWORD, "role": "admin"}
CONNECTIONS = 64  # kept open; with few connections, a single worker might get them all
SMALL, LARGE, WHOLE, DIARY, BOOKED = 1_000, 1_000_000, 100_000, 5_000, 200_000


@dataclass
class Figure:
    what: str
    value: float
    unit: str  # "x", "ms", "MB", ...
    most: float
    detail: str = ""
    least: bool = False  # the value must be at least `most`, not at most

    @property
    def good(self) -> bool:
        return self.value >= self.most if self.least else self.value <= self.most


# --- Asking ---


class Asker:
    """Sends requests to a WSGI application in this process, as someone signed in."""

    def __init__(self, app: Flask, token: str = "") -> None:
        self.app, self.headers = app, {"Authorization": f"Bearer {token}"} if token else {}

    def environ(self, path: str, method: str = "GET", **body: Any) -> Callable[[], dict[str, Any]]:
        given = {"json": body} if method != "GET" else {}
        ready = EnvironBuilder(path, method=method, headers=self.headers, **given)
        base = ready.get_environ()
        content = base["wsgi.input"].read()

        def fresh() -> dict[str, Any]:
            return {**base, "wsgi.input": BytesIO(content)}

        return fresh

    def ask(self, environ: dict[str, Any]) -> bytes:
        said: list[str] = []
        answer = self.app.wsgi_app(environ, lambda status, headers, error=None: said.append(status))  # type: ignore[arg-type,return-value]
        try:
            body = b"".join(answer)
        finally:
            answer.close()  # type: ignore[attr-defined]
        if not said[0].startswith("20"):
            raise SystemExit(f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}: {said[0]} {body[:300]!r}")
        return body

    def get(self, path: str) -> Any:
        return json.loads(self.ask(self.environ(path)()))

    def post(self, path: str, **body: Any) -> Any:
        return json.loads(self.ask(self.environ(path, "POST", **body)()))


Work = Callable[[], object]


def spent(work: Work, times: int, clock: Callable[[], float]) -> float:
    began = clock()
    for _ in range(times):
        work()
    return (clock() - began) / times


def compare(
    one: Work, other: Work, times: int, rounds: int = 15, clock: Callable[[], float] = time.process_time
) -> tuple[float, float, float]:
    """The medians of both, in seconds, and of their ratio, in rounds that take turns."""
    one(), other()
    gc.collect()
    pairs = [(spent(one, times, clock), spent(other, times, clock)) for _ in range(rounds)]
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    return first, second, statistics.median(a / b for a, b in pairs)


# --- Databases ---


@contextlib.contextmanager
def databases(engine: str) -> Iterator[Callable[[str], str]]:
    """Makes empty databases by name; they are gone afterwards."""
    if engine == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield lambda name: f"sqlite:///{folder}/{name}.db"
        return
    with postgresql_server() as server, contextlib.ExitStack() as made:
        yield lambda name: made.enter_context(empty_database(server, f"bench_{os.getpid()}_{name}"))


def serve(url: str, folder: str, **rows: Any) -> tuple[Asker, str]:
    """Return a client of the application on a new database with these rows, and an access token."""
    app = create_app(
        {
            "FLASK_ENV": "testing",
            "DATABASE_URL": url,
            "INSTANCE_PATH": folder,
            "TIMEZONE": ZONE,
            "BCRYPT_LOG_ROUNDS": 4,
            "RATELIMIT_ENABLED": False,
            **KEYS,
        }
    )
    app.testing = False
    upgraded = app.test_cli_runner().invoke(args=["db", "upgrade"])
    if upgraded.exit_code:
        raise SystemExit(upgraded.output)
    anyone = Asker(app)
    anyone.post("/signup", **ADA)
    token = anyone.post("/login", email=ADA["email"], password=PASSWORD)["access_token"]
    if rows:
        with app.app_context():
            fill(app.extensions["sqlalchemy"].engine, **rows)
    return Asker(app, token), token


# --- The figures ---


def against_the_floor(make: Callable[[str], str], folder: str) -> Iterator[Figure]:
    url = make("small")
    server, token = serve(url, folder, patients=SMALL, appointments=200, reports=200)
    floor = Asker(create_floor(url, KEYS["JWT_SECRET_KEY"], KEYS["SECRET_KEY"], ZONE, 3600), token)
    for what, path, times, most in (
        ("guarded GET /patient/<id>", "/patient/7", 100, 1.7),
        ("page of 100 patients", "/patients?limit=100", 15, 1.25),
        ("page of 100 appointments, with names", "/appointment?limit=100", 15, 2),
        ("page of 100 reports, 3 images each", "/reports?limit=100", 8, 2),
    ):
        ours, theirs = server.environ(path), floor.environ(path)
        for _ in range(3):  # links to images tell the second
            if (a := server.ask(ours())) == (b := floor.ask(theirs())):
                break
        else:
            raise SystemExit(f"{path}: the bodies differ\n{a[:900]!r}\n{b[:900]!r}")
        one, other, ratio = compare(lambda a=ours: server.ask(a()), lambda b=theirs: floor.ask(b()), times)  # type: ignore[misc]
        yield Figure(f"{what}, CPU", ratio, "x", most, f"{one * 1e6:.0f} against {other * 1e6:.0f} µs")


def whole_collection(make: Callable[[str], str], folder: str) -> Iterator[Figure]:
    url = make("whole")
    server, token = serve(url, folder, patients=WHOLE)
    floor = Asker(create_floor(url, KEYS["JWT_SECRET_KEY"], KEYS["SECRET_KEY"], ZONE, 3600), token)
    ours, theirs = server.environ("/patients"), floor.environ("/patients")

    def drain(asker: Asker, environ: dict[str, Any]) -> int:
        answer = asker.app.wsgi_app(environ, lambda *_: None)  # type: ignore[arg-type,return-value]
        length = sum(map(len, answer))
        answer.close()  # type: ignore[attr-defined]
        return length

    if server.ask(ours()) != floor.ask(theirs()):
        raise SystemExit("/patients: the bodies differ")
    for what, clock, most in (("CPU", time.process_time, 1.5), ("time", time.perf_counter, 1.2)):
        one, other, ratio = compare(
            lambda: drain(server, ours()), lambda: drain(floor, theirs()), 1, rounds=7, clock=clock
        )
        detail = f"{one:.2f} against {other:.2f} s"
        yield Figure(f"whole GET /patients, {WHOLE:,} rows, {what}", ratio, "x", most, detail)
    growth = subprocess.run(
        [sys.executable, "-m", "bench.memory", url, folder, token],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "BENCH_KEYS": json.dumps(KEYS)},
    )
    yield Figure("the same, growth of peak memory over idle", float(growth.stdout), "MB", 25)


def next_page(server: Asker, path: str) -> str:
    found: list[str] = []

    def start(status: str, headers: list[tuple[str, str]], error: Any = None) -> None:
        found.extend(value for name, value in headers if name == "Link")

    answer = server.app.wsgi_app(server.environ(path)(), start)  # type: ignore[arg-type]
    b"".join(answer)
    answer.close()  # type: ignore[attr-defined]
    return re.findall(r"<(.+)>", found[0])[0]


def at_any_size(make: Callable[[str], str], folder: str) -> Iterator[Figure]:
    small, _ = serve(make("thousand"), folder, patients=SMALL)
    large, _ = serve(make("million"), folder, patients=LARGE)

    def timed(one: tuple[Asker, str], other: tuple[Asker, str], times: int = 10) -> dict[str, Any]:
        asks = [(asker, asker.environ(path)) for asker, path in (one, other)]
        works = [lambda asker=asker, environ=environ: asker.ask(environ()) for asker, environ in asks]
        first, second, ratio = compare(*works, times, clock=time.perf_counter)
        return {"value": ratio, "unit": "x", "detail": f"{first * 1e6:.0f} against {second * 1e6:.0f} µs"}

    first = far = "/patients?limit=100"
    for _ in range(199):
        far = next_page(large, far.replace("limit=100", "limit=500"))
    far = next_page(large, far.replace("limit=500", "limit=400")).replace("limit=400", "limit=100")
    assert large.get(far)[0]["id"] == 99_901
    yield Figure("page 1,000 against page 1, 1,000,000 patients, time", most=1.2, **timed((large, far), (large, first)))
    for what, query in (
        ("page", {}),
        ("page by -admitted_at", {"sort": "-admitted_at"}),
        ("page of one status by last_name", {"sort": "last_name", "status": "admitted"}),
        ("search, a hit", {"q": RARE}),
        ("search, a miss", {"q": "zebra"}),
        ("search, one letter", {"q": "k"}),
        ("of one birth date, the first", {"date_of_birth": "1931-05-31", "limit": 1}),
        (
            "admitted within an hour",
            {"admitted_from": "2020-01-01T10:00", "admitted_to": "2020-01-01T11:00", "limit": 50},
        ),
    ):
        path = f"/patients?{urlencode({'limit': 100, **query})}"
        name = f"{what}, 1,000,000 patients against 1,000, time"
        yield Figure(name, most=1.5, **timed((large, path), (small, path)))
    for what, path in (("by id", "/patient/777"), ("duplicates", "/patient/777/duplicates")):
        name = f"{what}, 1,000,000 patients against 1,000, time"
        yield Figure(name, most=1.5, **timed((large, path), (small, path), 50))


def bookings(make: Callable[[str], str], folder: str) -> Iterator[Figure]:
    askers = [serve(make(f"booked{rows}"), folder, patients=SMALL, appointments=rows)[0] for rows in (DIARY, BOOKED)]
    made = iter(range(1_000_000))

    def book(asker: Asker) -> Work:
        def work() -> None:
            number = next(made)
            at = (datetime.fromisoformat("2035-01-01") + timedelta(minutes=30 * number)).isoformat()
            asker.post("/appointment", patient_id=number % SMALL + 1, user_id=2 + number % 50, appointment_datetime=at)

        return work

    few, many, ratio = compare(book(askers[0]), book(askers[1]), 10, rounds=11, clock=time.perf_counter)
    detail = f"{many * 1e3:.2f} against {few * 1e3:.2f} ms"
    yield Figure(f"POST /appointment, {BOOKED:,} in the table against {DIARY:,}, time", 1 / ratio, "x", 1.5, detail)
    for what, query in (
        ("a doctor's day", {"user_id": 7, "holding": "true", "on": "{}"}),
        ("a span of ten minutes", {"from": "{}T12:05", "to": "{}T12:15", "limit": 100}),
        ("a page of a day", {"from": "{}", "limit": 100}),
    ):
        works = []
        for asker, day in zip(askers, ("2020-01-02", "2020-02-10"), strict=True):
            environ = asker.environ(f"/appointment?{urlencode(query).replace('%7B%7D', day)}")
            works.append(lambda asker=asker, environ=environ: asker.ask(environ()))
        few, many, ratio = compare(*works, 10, clock=time.perf_counter)
        detail = f"{many * 1e3:.2f} against {few * 1e3:.2f} ms"
        yield Figure(f"{what}, {BOOKED:,} appointments against {DIARY:,}, time", 1 / ratio, "x", 1.5, detail)


def desk(make: Callable[[str], str], folder: str) -> Iterator[Figure]:
    """Free slots and the day list."""
    diary = {"first_day": "2030-01-01", "patients": SMALL}
    full, _ = serve(make("full"), folder, appointments=BOOKED, **diary)  # each doctor is busy until 25 March
    first = full.environ("/slots?user_id=7&limit=1&from=2030-03-15")
    if not json.loads(full.ask(first())):
        raise SystemExit("no free slot was found")
    took = timed(lambda: full.ask(first()))
    yield Figure(f"first free slot of a doctor, {BOOKED:,} appointments, time", took * 1000, "ms", 5)
    busy, _ = serve(make("busy"), folder, appointments=60 * 16 * 15, doctors=60, every=90, **diary)
    search = busy.environ("/slots?from=2030-01-01")
    took = timed(lambda: busy.ask(search()))
    yield Figure("free slots of 60 doctors in 14 days, 16 appointments a day, time", took * 1000, "ms", 50)
    askers = [serve(make(f"days{rows}"), folder, appointments=rows, doctors=20, **diary)[0] for rows in (SMALL, LARGE)]
    for what, path in (
        ("a doctor's day list", "/appointment?user_id=7&holding=true&on=2030-01-01"),
        ("free slots of a doctor's day", "/slots?user_id=7&from=2030-01-01&to=2030-01-01"),
        ("free slots of 20 doctors' day", "/slots?from=2030-01-01&to=2030-01-01"),
    ):
        environs = [asker.environ(path) for asker in askers]
        works = [lambda a=asker, e=environ: a.ask(e()) for asker, environ in zip(askers, environs, strict=True)]
        few, many, ratio = compare(*works, 10, clock=time.perf_counter)
        detail = f"{many * 1e3:.2f} against {few * 1e3:.2f} ms"
        yield Figure(f"{what}, {LARGE:,} appointments against {SMALL:,}, time", 1 / ratio, "x", 1.5, detail)


def timed(work: Work, times: int = 15) -> float:
    """Return the median time of a call in seconds, after a first call."""
    work()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def course(make: Callable[[str], str], folder: str) -> Iterator[Figure]:
    """Statistics of a year, and the timeline of a patient."""
    url = make("course")
    server, _ = serve(url, folder, patients=SMALL, appointments=LARGE, doctors=60)  # of 347 days
    for by in ("day", "month"):
        year = server.environ(f"/statistics?from=2020-01-01&to=2020-12-31&by={by}")
        with counted_statements(server.app) as said:
            server.ask(year())
        counts = [statement for statement in said if "login_sessions" not in statement]
        with contextlib.closing(driver(url)) as connection:

            def count(connection: Any = connection, counts: list[str] = counts) -> None:
                cursor = connection.cursor()
                for statement in counts:
                    cursor.execute(statement)
                    cursor.fetchall()

            ours, theirs, ratio = compare(lambda a=year: server.ask(a()), count, 1, 7, clock=time.perf_counter)  # type: ignore[misc]
        what = f"statistics of a year by {by}, {LARGE:,} appointments, against the driver alone, time"
        yield Figure(what, ratio, "x", 1.5, f"{ours * 1e3:.0f} against {theirs * 1e3:.0f} ms")
    few, many = (timeline_page(server, entries) for entries in (20, 2_000))
    one, other, ratio = compare(many, few, 20, clock=time.perf_counter)
    detail = f"{one * 1e6:.0f} against {other * 1e6:.0f} µs"
    yield Figure("page of a timeline, 2,000 entries against 20, time", ratio, "x", 1.5, detail)


def driver(url: str) -> Any:
    """A connection of the driver alone."""
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///"))
    return psycopg2.connect(url)


def timeline_page(server: Asker, entries: int) -> Work:
    """Work that reads 20 entries of a new patient, who has so many: appointments and reports by turns."""
    patient = server.post("/patients", first_name="Amina", last_name="Wanjiru", phone_number="0712")["id"]
    began, kept = datetime(2021, 1, 1, tzinfo=UTC), {"patient_id": patient, "user_id": 2, "version": 1}
    times = [began + timedelta(minutes=n) for n in range(0, entries, 2)]
    with server.app.app_context(), server.app.extensions["sqlalchemy"].engine.begin() as connection:
        booked = {**kept, "status": "cancelled"}
        connection.execute(insert(Appointment), [{**booked, "appointment_datetime": time} for time in times])
        connection.execute(insert(Report), [{**kept, "diagnosis": "Malaria", "created_at": time} for time in times])
    environ = server.environ(f"/patient/{patient}/timeline?limit=20")
    return lambda: server.ask(environ())


def statements(make: Callable[[str], str], folder: str) -> Iterator[Figure]:
    server, _ = serve(make("statements"), folder, patients=200, appointments=200, reports=200)

    def count(work: Work) -> int:
        work()
        with counted_statements(server.app) as said:
            work()
        return len(said)

    day = iter(range(1, 29))
    book = {"patient_id": 1, "user_id": 2}
    for what, work, most in (
        ("read", lambda: server.get("/patient/7"), 1),
        ("page", lambda: server.get("/appointment?limit=100"), 2),
        ("page of reports", lambda: server.get("/reports?limit=100"), 3),
        ("statistics", lambda: server.get("/statistics"), 4),
        ("page of a timeline", lambda: server.get("/patient/7/timeline?limit=100"), 3),
        ("page with total", lambda: server.get("/patients?limit=100&total=true"), 3),
        ("create a patient", lambda: server.post("/patients", first_name="A", last_name="B", phone_number="0712"), 8),
        (
            "create an appointment",
            lambda: server.post("/appointment", **book, appointment_datetime=f"2035-01-{next(day):02}T10:00"),
            8,
        ),
    ):
        yield Figure(f"SQL statements: {what}", count(work), "", most)


def over_http(make: Callable[[str], str], folder: str) -> Iterator[Figure]:
    """Our server and the floor, both served by `serve.py`, in rounds that take turns."""
    url = make("http")
    _, token = serve(url, folder, patients=SMALL)
    with running("serve.py", url, folder, 2) as ours, running("bench/floor_server.py", url, folder, 2) as floor:
        for what, path, least in (
            ("guarded GET /patient/<id>", "/patient/7", 0.6),
            ("page of 100 patients", "/patients?limit=100", 0.85),
        ):
            pairs = [[load.rate(port, path, token, 16, 2) for port in (ours, floor)] for _ in range(5)]
            one, other = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            detail = f"{one:.0f} against {other:.0f} requests per second"
            yield Figure(f"{what}, 2 workers, against the floor's", ratio, "x", least, detail, least=True)
        found = [load.run(ours, load.mix(token, SMALL), CONNECTIONS, 5) for _ in range(3)]
        worst = statistics.median(one.percentile(99) / one.percentile(50) for one in found)
        detail = f"p50 {found[-1].percentile(50):.0f} ms, p99 {found[-1].percentile(99):.0f} ms, {found[-1].rate:.0f}/s"
        yield Figure(f"p99 against p50, {CONNECTIONS} connections, a write to nine reads", worst, "x", 5, detail)


def workers(make: Callable[[str], str], folder: str) -> Iterator[Figure]:
    url = make("workers")
    _, token = serve(url, folder, patients=SMALL)
    with running("serve.py", url, folder, 1) as one, running("serve.py", url, folder, 2) as two:
        pairs = [[load.rate(port, "/patient/7", token, CONNECTIONS, 2) for port in (one, two)] for _ in range(5)]
    ratio = statistics.median(b / a for a, b in pairs)
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    detail = f"{second:.0f} against {first:.0f} requests per second"
    yield Figure("requests per second, 2 workers against 1", ratio, "x", 1.7, detail, least=True)


def whole_over_http(make: Callable[[str], str], folder: str) -> Iterator[Figure]:
    url = make("whole_http")
    _, token = serve(url, folder, patients=WHOLE)
    with running("serve.py", url, folder, 1) as ours, running("bench/floor_server.py", url, folder, 1) as floor:
        rounds = [[load.stream(port, "/patients", token) for port in (ours, floor)] for _ in range(6)][1:]
    ratio = statistics.median(a.whole / b.whole for a, b in rounds)
    one, other = (statistics.median(read.whole for read in column) for column in zip(*rounds, strict=True))
    what = f"whole GET /patients, {WHOLE:,} rows, time"
    yield Figure(f"{what}, against the floor's", ratio, "x", 1.2, f"{one:.2f} against {other:.2f} s")
    yield Figure(f"{what} of the first byte", statistics.median(a.first for a, _ in rounds) * 1000, "ms", 50)


@contextlib.contextmanager
def running(program: str, url: str, folder: str, count: int) -> Iterator[int]:
    """Run a program that serves as `make run` does, with this many workers. Yields its port once all of them answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        **KEYS,
        "FLASK_ENV": "development",
        "DATABASE_URL": url,
        "INSTANCE_PATH": folder,
        "PORT": str(port),
        "WEB_CONCURRENCY": str(count),
        "LOG_LEVEL": "WARNING",
        "TIMEZONE": ZONE,
    }
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen([sys.executable, program], cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 60
            while os.pread(log.fileno(), 1 << 20, 0).count(b"Started worker") < count:
                if server.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise SystemExit(log.read())
                time.sleep(0.1)
            yield port
        finally:
            server.terminate()
            server.wait(40)


def login(make: Callable[[str], str], folder: str) -> Iterator[Figure]:
    server, _ = serve(make("login"), folder)
    environ = server.environ("/login", "POST", email=ADA["email"], password=PASSWORD)
    hashed = bcrypt.hashpw(b"x" * 64, bcrypt.gensalt(4))
    whole, hashing, _ = compare(lambda: server.ask(environ()), lambda: bcrypt.checkpw(b"x" * 64, hashed), 10)
    yield Figure("login, bcrypt aside, CPU", (whole - hashing) * 1000, "ms", 2)


FIXED_PACKAGES = "import flask_migrate, flask_jwt_extended, flask_bcrypt, pydantic, psycopg2"  # and what they import


def starting() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        nobody = "postgresql://nobody@127.0.0.1:1/none"  # SQL would fail here
        environment = {**os.environ, "FLASK_ENV": "development", "DATABASE_URL": nobody, "INSTANCE_PATH": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # the first start compiles, as everywhere

        def run(code: str) -> None:
            command = [sys.executable, "-c", code]
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)

        ours, packages, _ = compare(
            lambda: run("import app; app.create_app()"),
            lambda: run(FIXED_PACKAGES),
            1,
            rounds=7,
            clock=time.perf_counter,
        )
        what = 'python -c "import app; app.create_app()", no SQL'
        yield Figure(what, ours, "s", 0.7, f"{packages:.2f} s of it for the packages of requirements.in that are fixed")


# --- The table ---

SECTIONS = (
    against_the_floor,
    statements,
    login,
    over_http,
    workers,
    whole_collection,
    whole_over_http,
    bookings,
    desk,
    course,
    at_any_size,
)


def machine() -> str:
    about = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", about.read_text() if about.exists() else "")
    return f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main(asked: list[str]) -> int:
    save = "--save" in asked
    engines = [name for name in ("sqlite", "postgresql") if name in asked] or ["sqlite", "postgresql"]
    chosen = [section for section in SECTIONS if section.__name__ in asked] or SECTIONS
    began, lines, missed = time.monotonic(), [], 0

    def note(figure: Figure, engine: str) -> None:
        nonlocal missed
        missed += not figure.good
        value = f"{figure.value:.0f}" if figure.unit == "" else f"{figure.value:.2f} {figure.unit}"
        mark = f"{'at least' if figure.least else 'at most'} {figure.most:g} {figure.unit}".strip()
        detail = f"{'' if figure.good else '**missed** '}{figure.detail}"
        lines.append(f"| {figure.what} | {engine} | {value} | {mark} | {detail} |")
        print(lines[-1], flush=True)

    print("| what | on | figure | mark | |\n|---|---|---|---|---|")
    for engine in engines:
        for section in chosen:
            with databases(engine) as make, tempfile.TemporaryDirectory() as folder:
                for figure in section(make, folder):
                    note(figure, {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[engine])
    if chosen is SECTIONS:
        for figure in starting():
            note(figure, "")
    print(f"\n{time.monotonic() - began:.0f} s on {machine()}; {missed} missed")
    if save:
        text = f"# `make bench`\n\n{machine()}\n\n| what | on | figure | mark | |\n|---|---|---|---|---|\n"
        (ROOT / "bench" / "RESULTS.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
    return int(missed > 0)


if __name__ == "__main__":
    logs.set_up("WARNING", stream=open(os.devnull, "w"))  # noqa: SIM115
    sys.exit(main(sys.argv[1:]))
