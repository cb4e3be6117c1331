"""The server behind a real PgBouncer in transaction mode, with fewer connections than clients."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pytest
from client import Client, all_pages, assert_refused, at_once, stream_of
from factories import MakeApp, make_appointment, make_patient, make_report, many_patients, sign_in, sign_up
from flask import Flask
from sql import connections_in_use

PATIENT = {"first_name": "Amina", "last_name": "Wanjiru", "phone_number": "0712 345 678"}
PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
pytestmark = [
    pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed (Debian: apt-get install pgbouncer)"),
    pytest.mark.parametrize("database_url", ["postgresql"], indirect=True),
]


@pytest.fixture
def pooled(app: Flask, tmp_path: Path) -> Iterator[str]:
    """The tests' database, by way of PgBouncer."""
    assert PGBOUNCER
    url = urlsplit(app.config["DATABASE_URL"])
    [host] = parse_qs(url.query).get("host", [url.hostname])  # a folder, where PostgreSQL listens on a socket alone
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    password = f" password={url.password}" if url.password else ""
    settings = tmp_path / "pgbouncer.ini"
    settings.write_text(
        f"""[databases]
* = host={host} port={url.port or 5432} user={url.username}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
"""
    )
    someone = Path(host).owner() if host.startswith("/") else "nobody"  # the folder may be open to its owner alone
    user = ["-u", someone] if os.getuid() == 0 else []  # it refuses to be root
    process = subprocess.Popen([PGBOUNCER, "-q", *user, str(settings)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"postgresql://{url.username}@127.0.0.1:{port}{url.path}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def behind(app: Flask, make_app: MakeApp, pooled: str) -> Iterator[Flask]:
    served = make_app(DATABASE_URL=pooled, JWT_SECRET_KEY=app.config["JWT_SECRET_KEY"], STATEMENT_TIMEOUT=2)
    sign_up(served, "Ada", "admin")
    yield served
    with served.app_context():
        served.extensions["sqlalchemy"].engine.dispose()


def test_records_are_made_read_and_changed(behind: Flask) -> None:
    ada = sign_in(behind, "Ada")
    patient = make_patient(ada)
    make_appointment(ada, patient["id"])
    report = make_report(ada, patient["id"])
    assert ada.patch(f"/reports/{report['id']}", {"diagnosis": "Fracture"}).json["version"] == 2
    assert ada.get("/patient/1").json == patient
    for path in ("/patients?q=amina&limit=3&total=true", "/appointment", "/reports", "/patient/1/history"):
        assert len(ada.get(path).json) == 1


def test_streams_and_writers_share_a_few_connections(behind: Flask) -> None:
    ada = sign_in(behind, "Ada")
    many_patients(behind, 1200)
    streams = [stream_of(behind, ada), stream_of(behind, ada)]
    began = [next(iter(stream)).count(b'"mrn"') for stream in streams]
    statuses = sorted(at_once(*[lambda: Client(behind, ada.token).post("/patients", PATIENT).status_code] * 8))
    assert statuses == [201] * 8
    for stream, first in zip(streams, began, strict=True):
        assert first + sum(piece.count(b'"mrn"') for piece in stream) == 1200
        stream.close()
    assert len(all_pages(ada, "/patients?limit=500&sort=-admitted_at")) == 1208
    assert connections_in_use(behind) == 0


def test_a_statement_that_takes_too_long_is_given_up_there_too(behind: Flask) -> None:
    ada = sign_in(behind, "Ada")
    make_patient(ada)
    with psycopg2.connect(behind.config["DATABASE_URL"].replace("+psycopg2", "")) as connection:
        connection.cursor().execute("LOCK TABLE patients IN ACCESS EXCLUSIVE MODE")
        assert_refused(ada.get("/patient/1"), 503)
        assert_refused(ada.get("/patients"), 503)
        assert_refused(ada.patch("/patient/1", {"first_name": "Zawadi"}), 503)
        connection.rollback()
    connection.close()
    assert ada.get("/patient/1").status_code == 200
