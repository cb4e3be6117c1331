"""Long reads on a standby: a real primary and a real standby, which is behind, away, or no standby at all."""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from client import Client, migrate, run_cli
from factories import USUAL, make_patient, sign_in, sign_up
from flask import Flask
from sql import dispose
from sqlalchemy import event

from app import create_app
from server import standby as standby_module

FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
ON_PATH = shutil.which("initdb")
TOOLS = FOLDERS[-1] if FOLDERS else Path(ON_PATH or "/").resolve().parent
pytestmark = pytest.mark.skipif(
    not (TOOLS / "pg_basebackup").exists(), reason="pg_basebackup is not installed (Debian: apt-get install postgresql)"
)
LONG = ("/patients", "/statistics", "/audit")


def as_postgres(*words: object) -> list[str]:
    """The command, run by the user postgres if we are root: PostgreSQL refuses root."""
    return [*(["runuser", "-u", "postgres", "--"] if getpass.getuser() == "root" else []), *map(str, words)]


class Server:
    """A PostgreSQL server with a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, tool: str, *words: object) -> None:
        subprocess.run(as_postgres(TOOLS / tool, *words), check=True, capture_output=True, cwd="/", timeout=60)

    def start(self) -> None:
        sockets = f"-k {self.folder} -p {self.port} -c listen_addresses=127.0.0.1 -c fsync=off"
        self.run("pg_ctl", "start", "-w", "-D", self.folder, "-l", self.folder / "log", "-o", sockets)

    def stop(self, how: str = "immediate") -> None:
        with suppress(subprocess.CalledProcessError):
            self.run("pg_ctl", "stop", "-m", how, "-D", self.folder)

    def ask(self, sql: str) -> Any:
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchone()[0] if cursor.description else None  # type: ignore[index]
        finally:
            connection.close()


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server]]:
    """A primary with the whole schema, and its standby."""
    with tempfile.TemporaryDirectory(prefix="hosi-standby-", ignore_cleanup_errors=True) as name, ExitStack() as ending:
        os.chmod(name, 0o777)  # the user postgres makes its folders here
        primary, standby = Server(Path(name) / "primary"), Server(Path(name) / "standby")
        primary.run("initdb", "-D", primary.folder, "-A", "trust", "-U", "postgres", "--no-sync")
        primary.start()
        ending.callback(primary.stop)
        app = create_app({**USUAL, "DATABASE_URL": primary.url, "INSTANCE_PATH": f"{name}/instance"})
        migrate(app, "upgrade")
        dispose(app)
        standby.run("pg_basebackup", "-D", standby.folder, "-R", "-X", "stream", "-c", "fast", "-d", primary.url)
        standby.start()
        ending.callback(standby.stop)
        yield primary, standby


@pytest.fixture
def clinic(pair: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    """A clinic that reads from the standby, which streams."""
    primary, standby = pair
    until(lambda: standby.ask("SELECT pg_is_in_recovery() AND count(*) = 1 FROM pg_stat_wal_receiver"))
    monkeypatch.setattr(standby_module, "WAIT", 1)  # seconds, of a machine that is busy
    primary.ask("TRUNCATE users CASCADE")
    primary.ask("TRUNCATE patients CASCADE")
    settings = {"DATABASE_URL": primary.url, "DATABASE_READ_URL": standby.url, "INSTANCE_PATH": tmp_path}
    app = create_app({**USUAL, **settings})
    yield app
    with app.app_context():
        for engine in app.extensions["sqlalchemy"].engines.values():
            assert engine.pool.checkedout() == 0
            engine.dispose()


@pytest.fixture
def ada(clinic: Flask) -> Client:
    sign_up(clinic, "Ada", "admin")
    return sign_in(clinic, "Ada")


def rows_asked(app: Flask, action: Callable[[], Any]) -> int:
    """How many statements the standby got for the answer, its own state not counted."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    with app.app_context():
        engine = app.extensions["sqlalchemy"].engines["standby"]
    event.listen(engine, "before_cursor_execute", note)
    try:
        action()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    return sum("pg_is_in_recovery" not in statement for statement in statements)


def names(client: Client) -> list[str]:
    return [patient["last_name"] for patient in client.get("/patients").json]


@contextmanager
def paused(standby: Server) -> Iterator[None]:
    """The standby replays nothing."""
    standby.ask("SELECT pg_wal_replay_pause()")
    until(lambda: standby.ask("SELECT pg_get_wal_replay_pause_state()") == "paused")
    try:
        yield
    finally:
        standby.ask("SELECT pg_wal_replay_resume()")


@pytest.mark.parametrize("path", ["/patients", "/users", "/appointment", "/statistics", "/audit"])
def test_long_reads_go_to_the_standby(clinic: Flask, ada: Client, path: str) -> None:
    def read() -> None:
        assert ada.get(path).status_code == 200

    assert rows_asked(clinic, read) > 0


@pytest.mark.parametrize("path", ["/patients?limit=5", "/me", "/slots", "/readyz"])
def test_short_reads_ask_the_primary_alone(clinic: Flask, ada: Client, path: str) -> None:
    assert rows_asked(clinic, lambda: ada.get(path)) == 0


def test_a_write_is_in_the_list_that_is_read_after_it(clinic: Flask, ada: Client) -> None:
    written = []
    for number in range(30):
        make_patient(ada, last_name=f"No {number}")
        written.append(f"No {number}")
        assert names(ada) == written
    assert ada.get("/statistics").json["patients"]["total"] == 30
    assert ada.get("/audit?kind=patient&limit=1").json[0]["changes"]["last_name"]["to"] == "No 29"


def test_everybody_sees_what_another_was_told_is_written(clinic: Flask, ada: Client) -> None:
    sign_up(clinic, "Dora")
    dora = sign_in(clinic, "Dora")
    for number in range(10):
        make_patient(ada, last_name=f"No {number}")
        assert len(names(dora)) == number + 1


def test_a_standby_that_is_behind_is_not_asked(
    clinic: Flask, ada: Client, pair: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    assert names(ada) == []
    with paused(pair[1]):
        make_patient(ada, last_name="New")
        assert rows_asked(clinic, lambda: names(ada)) == 0
        assert names(ada) == ["New"]
        assert ada.get("/statistics").json["patients"]["total"] == 1
        assert ada.get("/audit?kind=patient").json[0]["record_id"] > 0
        began = time.monotonic()
        names(ada)
        assert time.monotonic() - began < 0.5  # it is remembered, and not waited for again
    assert caplog.text.count("the standby is behind") == 1


def test_a_standby_that_has_caught_up_is_asked_again(
    clinic: Flask, ada: Client, pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_module, "PAUSE", 0.1)
    with paused(pair[1]):
        make_patient(ada)
        assert rows_asked(clinic, lambda: names(ada)) == 0
    time.sleep(0.2)
    assert rows_asked(clinic, lambda: names(ada)) > 0


def test_a_standby_an_hour_behind_is_not_asked(clinic: Flask, ada: Client, pair: tuple[Server, Server]) -> None:
    standby = pair[1]
    standby.ask("ALTER SYSTEM SET recovery_min_apply_delay = '1h'")
    standby.ask("SELECT pg_reload_conf()")
    until(lambda: standby.ask("SHOW recovery_min_apply_delay") == "1h")
    try:
        make_patient(ada, last_name="New")
        assert names(ada) == ["New"]
        assert rows_asked(clinic, lambda: names(ada)) == 0
    finally:
        standby.ask("ALTER SYSTEM RESET recovery_min_apply_delay")
        standby.ask("SELECT pg_reload_conf()")
        until(lambda: standby.ask("SHOW recovery_min_apply_delay") == "0")


def test_a_standby_that_is_away_costs_nobody_an_answer(
    clinic: Flask, ada: Client, pair: tuple[Server, Server], caplog: pytest.LogCaptureFixture
) -> None:
    make_patient(ada, last_name="Here")
    assert names(ada) == ["Here"]  # by a connection that is in the pool then
    pair[1].stop()
    try:
        began = time.monotonic()
        assert [names(ada) for _ in range(5)] == [["Here"]] * 5
        assert ada.get("/readyz").status_code == 200
        assert time.monotonic() - began < 4
        assert caplog.text.count("the standby is away") == 1
    finally:
        pair[1].start()


def test_a_standby_that_accepts_no_connection_is_given_up_soon(clinic: Flask, ada: Client, make_deaf: str) -> None:
    settings = {**{name: clinic.config[name] for name in ("DATABASE_URL", "INSTANCE_PATH", "JWT_SECRET_KEY")}}
    app = create_app({**USUAL, **settings, "DATABASE_READ_URL": make_deaf})
    client = Client(app, ada.token, ada.user)
    began = time.monotonic()
    assert [client.get(path).status_code for path in ("/patients", "/statistics", "/audit")] == [200] * 3
    assert 1.5 < time.monotonic() - began < 4
    dispose(app)


@pytest.fixture
def make_deaf() -> Iterator[str]:
    """The URL of a port where somebody listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"postgresql://postgres@127.0.0.1:{server.getsockname()[1]}/postgres"


def test_a_server_that_is_no_standby_is_not_asked(clinic: Flask, ada: Client) -> None:
    settings = {**{name: clinic.config[name] for name in ("DATABASE_URL", "INSTANCE_PATH", "JWT_SECRET_KEY")}}
    app = create_app({**USUAL, **settings, "DATABASE_READ_URL": clinic.config["DATABASE_URL"]})
    client = Client(app, ada.token, ada.user)
    assert rows_asked(app, lambda: client.get("/patients")) == 0
    with app.app_context():
        app.extensions["sqlalchemy"].engines["standby"].dispose()
    dispose(app)


def test_a_caller_who_was_signed_out_reads_nothing(clinic: Flask, ada: Client, pair: tuple[Server, Server]) -> None:
    with paused(pair[1]):
        ada.post("/logout")
        assert [ada.get(path).status_code for path in LONG] == [401] * 3


def test_a_read_does_not_wait_for_a_synchronous_standby_that_is_away(
    clinic: Flask, ada: Client, pair: tuple[Server, Server]
) -> None:
    settings = {**{name: clinic.config[name] for name in ("DATABASE_URL", "INSTANCE_PATH", "JWT_SECRET_KEY")}}
    app = create_app({**USUAL, **settings, "PUBLIC_URL": "https://api.clinic.example"})  # notes its node
    answers: list[int] = []
    pair[0].ask("ALTER SYSTEM SET synchronous_standby_names = 'away'")
    try:
        pair[0].ask("SELECT pg_reload_conf()")
        until(lambda: pair[0].ask("SHOW synchronous_standby_names") == "away")
        reader = threading.Thread(
            target=lambda: answers.append(Client(app, ada.token, ada.user).get("/patients").status_code)
        )
        reader.start()
        reader.join(20)
        assert answers == [200]
        assert pair[0].ask("SELECT count(*) FROM nodes") == 1
    finally:
        pair[0].ask("ALTER SYSTEM RESET synchronous_standby_names")
        pair[0].ask("SELECT pg_reload_conf()")  # lets go whoever waits
        reader.join()
        dispose(app)


def test_the_history_is_verified_on_the_standby(clinic: Flask, pair: tuple[Server, Server]) -> None:
    primary, standby = pair
    primary.ask("TRUNCATE audit_entries, audit_heads, login_sessions CASCADE")
    there = create_app({**USUAL, "DATABASE_URL": standby.url, "INSTANCE_PATH": clinic.config["INSTANCE_PATH"]})

    def verified(*options: str) -> list[str]:
        until(
            lambda: (
                standby.ask("SELECT count(*) FROM audit_entries") == primary.ask("SELECT count(*) FROM audit_entries")
            )
        )
        code, said = run_cli(there, "audit", "verify", *options)
        assert code == 0, said
        return said.splitlines()

    sign_up(clinic, "Ada", "admin")
    ada = sign_in(clinic, "Ada")
    whole, checkpoint = verified("--checkpoint")
    assert whole == "The history is whole."
    make_patient(ada)
    assert verified("--processes", "2") == [whole]
    assert verified("--since", checkpoint) == ["The history since the checkpoint is whole."]
    dispose(there)
